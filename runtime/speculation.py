"""Prompt lookup: what followed the last tokens when they stood there before is guessed, and verified in one run.

Every position is chosen exactly as without guessing, from the scores that the same tokens before it give, so the
result is the same and only the number of runs is smaller.

Source: the idea of A. Saxena, "Prompt Lookup Decoding" (2023), and ``prompt_lookup_num_tokens`` of transformers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from pinnace.errors import UsageError
from pinnace.runtime.cancellation import RunLimit
from pinnace.runtime.decoder import Decoder
from pinnace.runtime.generation_row import Row, Token
from pinnace.runtime.inputs import Array
from pinnace.runtime.prefix import Prefix

LONGEST_NGRAM: Final = 3


def find_draft(ids: Array, count: int) -> Array:
    """Return up to ``count`` tokens that followed the latest earlier place where ``ids`` had its last tokens.

    Longer matches go before shorter ones, from three tokens down to one.
    """
    for size in range(min(LONGEST_NGRAM, len(ids) - 1), 0, -1):
        # The last window is the end itself, which nothing follows.
        windows = np.lib.stride_tricks.sliding_window_view(ids[:-1], size)
        places = np.flatnonzero((windows == ids[-size:]).all(axis=1))
        if len(places):
            begin = int(places[-1]) + size
            return ids[begin : begin + count]
    return ids[:0]


def speculate(decoder: Decoder, row: Row, limit: RunLimit, drafts: int, prefix: Prefix | None) -> Iterator[Token]:
    """Generate one row, several tokens a run where the drafts are right.

    Args:
        decoder: a model that gives logits for all positions.
        row: the row, without a new token yet.
        limit: what may stop it.
        drafts: most tokens to guess at a time.
        prefix: keys and values of a beginning of its prompt.

    Raises:
        UsageError: the graph gives only the last position's logits, so that a guess cannot be verified.
        Stopped: the limit was reached.
    """
    if not decoder.every_position:
        raise UsageError(
            f"prompt_lookup_num_tokens needs logits of all positions, and {decoder.session.bundle.path.name} gives the "
            "last one's. Export it again with --all-logits, or leave the option out"
        )
    batch = decoder.batch(0, len(row.prompt) + row.limit)
    shared = 0 if prefix is None else prefix.shared(row.prompt)
    if prefix is None:
        batch = decoder.batch(1, len(row.prompt) + row.limit)
    else:
        batch.join(prefix.state(shared))
    yield row.take(batch.extend(row.prompt[shared:], limit)[-1])
    while row.reason is None:
        before = row.length - 1  # tokens in the cache: all but the newest
        room = min(drafts, row.limit - (row.length - len(row.prompt)) - 1)
        draft = find_draft(row.ids, room).copy() if room > 0 else row.ids[:0]
        logits = batch.extend(np.concatenate([row.ids[-1:], draft]), limit)
        right = 0
        for place in range(len(draft) + 1):
            token = row.take(logits[place])
            yield token
            if row.reason is not None:
                return
            if place == len(draft) or token.id != draft[place]:
                break
            right += 1
        batch.cache.shorten(0, before + 1 + right)
