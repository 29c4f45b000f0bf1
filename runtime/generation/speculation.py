"""Prompt lookup: what followed the last tokens when they stood there before is guessed, and verified in one run.

Every position is chosen exactly as without guessing, from the scores that the same tokens before it give, so the
result is the same and only the number of runs is smaller. A guess makes its run longer, so only so many are made as
have paid lately; where none would, they are compared with the tokens that come, which costs next to nothing.

Source: the idea of A. Saxena, "Prompt Lookup Decoding" (2023), and ``prompt_lookup_num_tokens`` of transformers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from pinnace.arrays import Array
from pinnace.errors import UsageError
from pinnace.runtime.engine.cancellation import RunLimit
from pinnace.runtime.generation.decoder import Decoder
from pinnace.runtime.generation.prefix import Prefix
from pinnace.runtime.generation.row import Row, Token

LONGEST_NGRAM: Final = 3
# What a guess adds to a run, in runs of one token. On a CPU 0.05 was measured in fp32, for small and large models; more
# is assumed, for weights of few bits, whose kernels read one row faster than several.
PRICE: Final = 0.1
# How much the newest guess counts in the share of right ones, and that share before there was any.
NEWEST: Final = 0.2
START: Final = 0.5


def find_draft(ids: Array, count: int) -> tuple[Array, int]:
    """Return up to ``count`` tokens that followed the latest earlier place where ``ids`` had its last tokens.

    Longer matches go before shorter ones, from three tokens down to one.

    Returns:
        the guesses, none where nothing matches; and how many tokens matched.
    """
    for size in range(min(LONGEST_NGRAM, len(ids) - 1), 0, -1):
        # The last window is the end itself, which nothing follows.
        windows = np.lib.stride_tricks.sliding_window_view(ids[:-1], size)
        places = np.flatnonzero((windows == ids[-size:]).all(axis=1))
        if len(places):
            begin = int(places[-1]) + size
            return ids[begin : begin + count], size
    return ids[:0], 0


class Trust:
    """How often guesses were right lately, by the length of the match that they came from, and how many pay."""

    def __init__(self) -> None:
        self._right = [START] * (LONGEST_NGRAM + 1)

    def width(self, size: int, most: int) -> int:
        """How many guesses after a match of ``size`` tokens give the most tokens for their price, up to ``most``."""
        share = self._right[size]
        tokens, chance, best, width = 1.0, 1.0, 1.0, 0
        for count in range(1, most + 1):
            chance *= share  # that this guess and all before it are right
            tokens += chance
            if (rate := tokens / (1 + PRICE * count)) <= best:
                break
            best, width = rate, count
        return width

    def learn(self, size: int, right: int, wrong: bool) -> None:
        """Note ``right`` guesses that held, and whether one did not."""
        share = self._right[size]
        for seen in [1.0] * right + [0.0] * wrong:
            share += NEWEST * (seen - share)
        self._right[size] = share


def speculate(decoder: Decoder, row: Row, limit: RunLimit, drafts: int, prefix: Prefix | None) -> Iterator[Token]:
    """Generate one row, several tokens a run where the drafts are right.

    Args:
        decoder: a model that gives logits for all positions.
        row: the row, without a new token yet.
        limit: what may stop it.
        drafts: most tokens to guess at a time.
        prefix: keys and values of a beginning of its prompt.

    Raises:
        Stopped: the limit was reached.
    """
    shared = 0 if prefix is None else prefix.shared(row.prompt, decoder)
    batch = decoder.batch(int(prefix is None), len(row.prompt) + row.limit)
    if prefix is not None:
        batch.join(prefix.state(shared))
    yield row.take(batch.extend(row.prompt[shared:], limit)[-1])
    # A longer run would be made in pieces, of which only the last one's logits are kept.
    drafts = min(drafts, decoder.piece - 1)
    trust = Trust()
    while row.reason is None:
        before = row.length - 1  # tokens in the cache: all but the newest
        room = min(drafts, row.limit - (row.length - len(row.prompt)) - 1)
        if not decoder.splits(row.length + room):
            room = 0  # a token's keys would turn by the length that the guesses give the row
        found, size = find_draft(row.ids, max(room, 0))
        found = found.copy()
        draft = found[: trust.width(size, len(found))]
        logits = batch.extend(np.concatenate([row.ids[-1:], draft]), limit)
        right = 0
        for place in range(len(draft) + 1):
            token = row.take(logits[place])
            if place < len(found) and token.id == found[place]:
                right += 1
            yield token
            if row.reason is not None:
                return
            if place == len(draft) or right == place:
                break
        # A guess that was not run is compared all the same.
        trust.learn(size, right, right < min(len(found), len(draft) + 1))
        batch.cache.shorten(0, before + 1 + min(right, len(draft)))


def check_positions(decoder: Decoder) -> None:
    """Refuse a model whose guesses could not be verified.

    Raises:
        UsageError: the graph gives only the last position's logits.
    """
    if decoder.every_position:
        return
    bundle = decoder.session.bundle
    manifest = bundle.manifest
    targets = {variant.target for variant in manifest.variants.values()} - {"ort"}
    name, at_random, _ = manifest.source.name.partition(" (random weights)")
    words = ["pinnace export", name, *(["--random-weights"] if at_random else []), f"--task {manifest.task}"]
    words += [
        *(f"--precision {each}" for each in manifest.variants if each != "fp32"),
        *(f"--target {t}" for t in targets),
    ]
    raise UsageError(
        f"prompt_lookup_num_tokens needs logits of all positions, and {bundle.path.name} gives the last one's.\n"
        f"  Leave the option out, or export again: {' '.join(words)} --all-logits -o {bundle.path.name}"
    )
