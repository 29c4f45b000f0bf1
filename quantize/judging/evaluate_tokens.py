"""Judging decoders: a variant's next-token distributions beside fp32's, by way of the cache and of the prompt."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np

from pinnace.arrays import Array
from pinnace.compare import Evaluation
from pinnace.errors import InputError, NumericalError
from pinnace.quantize.examples.random_inputs import inputs_of
from pinnace.quantize.examples.source import Examples
from pinnace.quantize.judging.metrics import divergence, token_nats, top1_kept
from pinnace.runtime.bundles.bundle import Bundle
from pinnace.runtime.engine.cancellation import RunLimit
from pinnace.runtime.engine.session import Session
from pinnace.runtime.generation.decoder import Decoder
from pinnace.runtime.tokenization.tokenizer import Tokenizer, load_tokenizer

# fp32's logits are kept in memory, so that each variant runs alone; a large vocabulary leaves room for fewer.
REFERENCE_BYTES: Final = 256 << 20
POSITIONS: Final = 4096
MAX_TOKENS: Final = 256
_ROWS: Final = 16  # rows that step together


@dataclasses.dataclass(frozen=True)
class _Piece:
    """Logits [n, V] of some rows, their places [n], and the tokens that follow [n]; None where no loss is counted.

    ``first`` [n] tells where a row's beginning is met for the first time. The one after the tokens that all
    texts begin with would otherwise count once for each text, and decide the share of likeliest tokens kept.
    """

    rows: Array
    logits: Array
    targets: Array | None
    first: Array


def token_rows(tokenizer: Tokenizer, texts: Sequence[str], most: int) -> list[Array]:
    """Tokenize texts as a prompt is, with the end token where a text is not cut.

    Args:
        tokenizer: the bundle's.
        texts: one for each row.
        most: tokens to cut to.

    Returns:
        int64 [tokens] for each text; a text without two tokens gives an empty row.
    """
    rows = []
    for text in texts:
        ids = list(tokenizer.encode(text))
        if tokenizer.eos_token_id is not None and ids[-1:] != [tokenizer.eos_token_id]:
            ids.append(tokenizer.eos_token_id)
        rows.append(np.asarray(ids[:most] if len(ids) > 1 else [], np.int64))
    return rows


class TokenJudge:
    """Compares distributions over tokens, with the texts themselves as what was said (teacher forcing).

    Each row is read token by token through the cache, which gives a distribution at every position, and twice more as
    a prompt, its first half and the whole, for prompts run through other kernels than single tokens.

    Args:
        bundle: has an fp32 variant.
        examples: texts.
        threads: threads of one run.
        positions: most distributions to compare.

    Raises:
        InputError: no text has two tokens.
    """

    def __init__(self, bundle: Bundle, examples: Examples, threads: int | None, positions: int = POSITIONS) -> None:
        self._threads = threads
        self._count = len(examples)
        session = Session(bundle, "fp32", threads=threads)
        decoder = Decoder(session)
        most = max(2, min(positions, REFERENCE_BYTES // (4 * decoder.vocabulary)))
        tokens = min(MAX_TOKENS, decoder.limit, max(16, most // _ROWS))
        rows = token_rows(load_tokenizer(bundle.path), [example.input for example in examples], tokens)
        self._rows = _within(rows, most)
        if not self._rows:
            raise InputError(f"no text of {examples.source} has two tokens; expected longer ones")
        for place, row in self._rows.items():
            decoder.check(row, f"the text of {examples[place].place}")
        self._reference = list(self._pieces(decoder))
        pairs = [(piece.logits, piece.targets) for piece in self._reference if piece.targets is not None]
        self._nats = float(np.concatenate([token_nats(logits, targets) for logits, targets in pairs]).mean())

    def score(self, bundle: Bundle, precision: str) -> Evaluation:
        """Measure a variant; arguments and errors are those of `pinnace.quantize.judging.evaluate.Judge.score`."""
        try:
            kls, kept, nats, rows = self._compare(Decoder(Session(bundle, precision, threads=self._threads)))
        except NumericalError:
            return self._evaluation(precision, np.nan, {}, ())
        mean_of_row = {place: float(kls[rows == place].mean()) for place in self._rows if (rows == place).any()}
        worst = sorted((p for p, mean in mean_of_row.items() if mean > 0), key=lambda p: (-mean_of_row[p], p))
        details = {
            "top1": float(kept.mean()),
            "kl_p99": float(np.quantile(kls, 0.99)),
            "kl_max": float(kls.max()),
            "nats": float(nats.mean()),
            "reference_nats": self._nats,
            "perplexity": float(np.exp(nats.mean())),
            "reference_perplexity": float(np.exp(self._nats)),
            "positions": float(len(kls)),
        }
        return self._evaluation(precision, float(kls.mean()), details, tuple(worst[:10]))

    def _compare(self, decoder: Decoder) -> tuple[Array, Array, Array, Array]:
        """Divergence, kept top-1 and row of every distribution, and the loss of those that have a target."""
        kls, kept, nats, rows = [], [], [], []
        for mine, theirs in zip(self._pieces(decoder), self._reference, strict=True):
            new = mine.first
            if new.any():
                kls.append(divergence(theirs.logits[new], mine.logits[new]))
                kept.append(top1_kept(theirs.logits[new], mine.logits[new]))
                rows.append(mine.rows[new])
            if mine.targets is not None:
                nats.append(token_nats(mine.logits, mine.targets))
        return np.concatenate(kls), np.concatenate(kept), np.concatenate(nats), np.concatenate(rows)

    def _evaluation(
        self, precision: str, value: float, details: dict[str, float], worst: tuple[int, ...]
    ) -> Evaluation:
        return Evaluation("text-generation", precision, "kl", value, 0.0, len(self._rows), False, details, worst)

    def _pieces(self, decoder: Decoder) -> Iterator[_Piece]:
        """Run all rows; the same rows give pieces of the same shapes in the same order, whatever the variant."""
        seen: set[bytes] = set()
        longest_first = sorted(self._rows, key=lambda place: (-len(self._rows[place]), place))
        with RunLimit() as limit:
            for first in range(0, len(longest_first), _ROWS):
                places = np.asarray(longest_first[first : first + _ROWS])
                rows = [self._rows[place] for place in places.tolist()]
                yield from _steps(decoder, places, rows, limit, seen)
                for prompts in ([row[: len(row) // 2] for row in rows], [row[:-1] for row in rows]):
                    logits = decoder.prompt(prompts, limit)[1].astype(np.float32)
                    yield _Piece(places, logits, None, np.ones(len(places), bool))


def _steps(decoder: Decoder, places: Array, rows: list[Array], limit: RunLimit, seen: set[bytes]) -> Iterator[_Piece]:
    """Read rows, the longest first, token by token together; a row that has ended leaves.

    ``seen`` holds the beginnings of earlier rows, and those of these afterwards.
    """
    batch = decoder.batch(len(rows), len(rows[0]))
    alive = len(rows)
    for step in range(len(rows[0]) - 1):
        still = sum(len(row) > step + 1 for row in rows)
        if still < alive:
            batch.cache.keep(range(still))
            alive = still
        tokens = np.asarray([row[step] for row in rows[:alive]])
        targets = np.asarray([row[step + 1] for row in rows[:alive]])
        first = np.zeros(alive, bool)
        for index, row in enumerate(rows[:alive]):
            beginning = row[: step + 1].tobytes()
            first[index] = beginning not in seen
            seen.add(beginning)
        yield _Piece(places[:alive], batch.step(tokens, limit).copy(), targets, first)


def _within(rows: Sequence[Array], most: int) -> dict[int, Array]:
    """Choose rows, evenly spread, whose distributions are not more than ``most``; at least one."""
    usable = [place for place, row in enumerate(rows) if len(row) > 1]
    cost = sum(len(rows[place]) + 1 for place in usable)  # one less than its tokens by steps, and two as a prompt
    count = len(usable) if cost <= most else max(1, len(usable) * most // cost)
    chosen = [usable[i * len(usable) // count] for i in range(count)] if usable else []
    while len(chosen) > 1 and sum(len(rows[place]) + 1 for place in chosen) > most:
        chosen.pop()
    return {place: rows[place] for place in chosen}


def prompt_feeds(bundle: Bundle, examples: Examples, most: int = MAX_TOKENS) -> Iterator[dict[str, Any]]:
    """Yield the inputs of one prompt run for each text: a row of tokens and an empty cache."""
    manifest = bundle.manifest
    most = min(most, manifest.limits.sequence, manifest.cache.capacity if manifest.cache else most)
    for row in token_rows(load_tokenizer(bundle.path), [example.input for example in examples], most):
        if not len(row):
            continue
        yield inputs_of(manifest, row[None])
