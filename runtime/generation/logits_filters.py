"""Filters of sampling: which tokens may be drawn at all; the others' scores become minus infinity.

Each maker returns a function of ``scores (rows, V)`` float32, which is never written to. ``keep`` is how many of the
likeliest tokens stay whatever the filter says. Only scores above minus infinity are sorted, so a filter behind another
costs little.

Source: the warpers of transformers 5, whose results these equal. Nucleus sampling: Holtzman et al., 1904.09751;
typical: Meister et al., 2202.00666; min-p: Nguyen et al., 2407.01082.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Filter = Callable[[NDArray[np.float32]], NDArray[np.float32]]

_NEVER = np.float32(-np.inf)
_HEAD = 1024


def temperature(value: float) -> Filter:
    """Divide scores: below 1 sharpens the distribution, above 1 flattens it."""
    divisor = np.float32(value)
    return lambda scores: scores / divisor


def top_k(count: int, keep: int = 1) -> Filter:
    """Keep the ``count`` likeliest tokens, and those that tie with the last of them."""

    def apply(scores: NDArray[np.float32]) -> NDArray[np.float32]:
        k = min(max(count, keep), scores.shape[1])
        least = np.partition(scores, -k, axis=1)[:, -k, None]
        return np.where(scores < least, _NEVER, scores)

    return apply


def top_p(mass: float, keep: int = 1) -> Filter:
    """Keep the smallest set of likeliest tokens whose probabilities reach ``mass``."""

    def row(scores: NDArray[np.float32]) -> NDArray[np.bool_]:
        shares = softmax(scores)
        head, rest = _head(shares, 1 - mass)
        order = head[np.argsort(scores[head], kind="stable")]
        out = np.ones(scores.shape, dtype=np.bool_)
        out[order] = _running_sum(shares[order], rest) <= np.float32(1 - mass)
        out[order[-keep:]] = False
        return out

    return _by_row(row)


def min_p(share: float, keep: int = 1) -> Filter:
    """Drop tokens whose probability is below ``share`` of the likeliest one's."""

    def row(scores: NDArray[np.float32]) -> NDArray[np.bool_]:
        probabilities = softmax(scores)
        out: NDArray[np.bool_] = probabilities < np.float32(share) * probabilities.max()
        out[_largest(probabilities, keep)] = False
        return out

    return _by_row(row)


def typical_p(mass: float, keep: int = 1) -> Filter:
    """Keep the tokens whose surprise is nearest the expected one, until their probabilities reach ``mass``."""

    def row(scores: NDArray[np.float32]) -> NDArray[np.bool_]:
        logs = log_softmax(scores)
        entropy = -np.sum(logs * np.exp(logs), dtype=np.float32)
        distance = np.abs(-logs - entropy)
        order = np.argsort(distance, kind="stable")
        reached = _running_sum(softmax(scores[order]))
        last = min(int((reached < np.float32(mass)).sum()), scores.size - 1)
        ordered = distance[order]
        out = np.empty(scores.shape, dtype=np.bool_)
        out[order] = ordered > ordered[last]
        out[order[:keep]] = False
        return out

    return _by_row(row)


def softmax(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probabilities along the last axis, float32; minus infinity gives 0."""
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def log_softmax(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logarithms of the probabilities along the last axis, float32."""
    shifted = scores - scores.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def _by_row(removed: Callable[[NDArray[np.float32]], NDArray[np.bool_]]) -> Filter:
    def apply(scores: NDArray[np.float32]) -> NDArray[np.float32]:
        scores = scores.copy()
        for row in scores:
            live = np.flatnonzero(row > _NEVER)
            if live.size:
                row[live[removed(row[live])]] = _NEVER
        return scores

    return apply


def _running_sum(values: NDArray[np.float32], before: float = 0) -> NDArray[np.float32]:
    # Summed in double: in single, the sum of 100,000 small shares would miss 1 by more than the last ones' size.
    return (np.cumsum(values, dtype=np.float64) + before).astype(np.float32)


def _head(shares: NDArray[np.float32], tail: float) -> tuple[NDArray[np.intp], float]:
    """Places of the largest shares, and the sum of the others, which is at most ``tail``; all where they are few.

    Sorting a whole vocabulary takes ten times as long as finding its thousand likeliest tokens.
    """
    if shares.size > 2 * _HEAD:
        head = _largest(shares, _HEAD)
        rest = float(shares.sum(dtype=np.float64) - shares[head].sum(dtype=np.float64))
        if rest <= tail:
            return head, rest
    return np.arange(shares.size), 0.0


def _largest(values: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    count = min(count, values.size)
    return np.argpartition(values, -count)[-count:]
