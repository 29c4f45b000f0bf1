"""A histogram that grows with its data: one pass, bounded memory, and no need to know the range before."""

from __future__ import annotations

from typing import Final

import numpy as np

from pinnace.arrays import Array

HALF_BINS: Final = 4096  # on either side of zero
_SMALLEST: Final = -126  # exponent of the narrowest range


class Histogram:
    """Counts of numbers in equal bins over ``-limit`` to ``limit``, zero on a boundary.

    The limit is a power of two. Where a number lies beyond, the limit doubles and neighbours merge, which gives exactly
    the counts that the wider bins would have had from the beginning: the order of the data does not matter.

    Attributes:
        counts: int64 ``(2 * HALF_BINS,)``, of rising numbers.
        limit: the range's end; 0 before the first number that is not zero.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(2 * HALF_BINS, np.int64)
        self.limit = 0.0

    @property
    def edges(self) -> Array:
        """The bins' boundaries, float64 ``(2 * HALF_BINS + 1,)``."""
        return np.linspace(-self.limit, self.limit, 2 * HALF_BINS + 1)

    def add(self, numbers: Array) -> None:
        """Count numbers of any shape, all of them finite."""
        peak = float(np.abs(numbers).max(initial=0.0))
        if peak >= self.limit:
            self._widen(2.0 ** max(int(np.floor(np.log2(peak))) + 1 if peak else _SMALLEST, _SMALLEST))
        places = np.floor(numbers.ravel() * np.float64(HALF_BINS / self.limit)).astype(np.int64) + HALF_BINS
        self.counts += np.bincount(places, minlength=2 * HALF_BINS)

    def _widen(self, limit: float) -> None:
        while self.limit and self.limit < limit:
            merged = self.counts.reshape(-1, 2).sum(1)
            self.counts[:] = 0
            self.counts[HALF_BINS // 2 : HALF_BINS // 2 + HALF_BINS] = merged
            self.limit *= 2
        self.limit = max(self.limit, limit)
