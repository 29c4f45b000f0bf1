"""Picks the next token of each row from its scores: the likeliest, or a seeded draw that no batch mate can change."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pinnace.errors import NumericalError


def generator(seed: int | None, sequence: int = 0) -> np.random.Generator:
    """Make the source of one row's draws.

    The same seed and sequence number give the same draws wherever the row stands in a batch. So a prompt's rows are
    numbered from 0 within that prompt (``num_return_sequences``), never within the batch.

    Args:
        seed: the request's seed; None for fresh draws that cannot be repeated.
        sequence: number of the row among those of the same prompt.
    """
    return np.random.default_rng(None if seed is None else [seed, sequence])


def greedy(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the likeliest token of each row of ``scores (rows, V)``; of equals the first.

    Raises:
        NumericalError: a score is NaN or infinite, or every token of a row is forbidden.
    """
    tokens = scores.argmax(axis=-1)
    check_best(scores[np.arange(len(scores)), tokens])
    return np.asarray(tokens, dtype=np.int64)


def sample(scores: NDArray[np.float32], generators: Sequence[np.random.Generator]) -> NDArray[np.int64]:
    """Draw one token a row from ``scores (rows, V)``, with one number of each row's generator.

    Raises:
        NumericalError: as `greedy`.
    """
    tokens = np.empty(len(scores), dtype=np.int64)
    for index, (row, source) in enumerate(zip(scores, generators, strict=True)):
        live = _live(row)
        powers = np.exp(row[live].astype(np.float64) - row[live].max())
        reached = np.cumsum(powers)
        # A number just below 1 times the whole may round up to it; the last token is then the one.
        place = np.searchsorted(reached, source.random() * reached[-1], side="right")
        tokens[index] = live[min(int(place), live.size - 1)]
    return tokens


def sample_without_replacement(
    scores: NDArray[np.float32], count: int, source: np.random.Generator
) -> NDArray[np.int64]:
    """Draw ``count`` different places of ``scores (N,)``, in the order drawn.

    Adding Gumbel noise to logarithms and taking the largest is the same as drawing one after the other
    (Kool et al., 1903.06059). Places at minus infinity come last, in order, where too few others are there.
    """
    check_best(scores.max(keepdims=True))
    noisy = scores.astype(np.float64) + source.gumbel(size=scores.size)
    return np.argsort(-noisy, kind="stable")[:count].astype(np.int64)


def _live(row: NDArray[np.float32]) -> NDArray[np.intp]:
    """Places of a row that can be drawn."""
    check_best(row.max(keepdims=True))
    return np.flatnonzero(row > -np.inf)


def check_scores(scores: NDArray[np.float32]) -> None:
    """Refuse a model's scores that hold NaN or infinity, before an option hides them.

    Raises:
        NumericalError: the text says how to check the bundle.
    """
    # The largest is NaN where any is.
    if not np.isfinite(scores.max(axis=-1)).all():
        raise NumericalError("the model's scores hold NaN or infinity.\n  Check the bundle with: pinnace verify BUNDLE")


def check_best(best: NDArray[np.float32]) -> None:
    """Refuse rows by their best score: NaN, which a maximum is where any score is, or infinite.

    Raises:
        NumericalError: there is no next token to pick.
    """
    if np.isnan(best).any() or np.isposinf(best).any():
        raise NumericalError("the model's scores hold NaN or infinity, so there is no next token to pick.")
    if np.isneginf(best).any():
        raise NumericalError(
            "the options forbid every token of a row, so there is no next one.\n"
            "  Loosen bad_words_ids, suppress_tokens, no_repeat_ngram_size or the biases."
        )
