"""The highest rate of arrivals that keeps a latency bound: bracketed by steps, then halved."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

STEP: Final = 1.5
PRECISION: Final = 0.04
MOST_TRIALS: Final = 14


class RateSearch:
    """Proposes rates, and is told whether each was held.

    Trials of several candidates can take turns, since the search does not measure by itself.

    Args:
        guess: the first rate, in queries/s.
        step: factor between rates until the answer is bracketed.
    """

    def __init__(self, guess: float, step: float = STEP) -> None:
        self._next, self._step = guess, step
        self._low: float | None = None
        self._high: float | None = None
        self._trials = 0

    @property
    def done(self) -> bool:
        """Whether the answer is known to `PRECISION`, or too many rates were tried."""
        near = self._low is not None and self._high is not None and self._high / self._low <= 1 + PRECISION
        return near or self._trials >= MOST_TRIALS

    @property
    def rate(self) -> float:
        """The rate to try next."""
        return self._next

    @property
    def found(self) -> float | None:
        """The highest rate that was held; None where none was."""
        return self._low

    def tell(self, held: bool) -> None:
        """Say whether `rate` was held."""
        self._trials += 1
        if held:
            self._low = self._next if self._low is None else max(self._low, self._next)
        else:
            self._high = self._next if self._high is None else min(self._high, self._next)
        if self._low is None:
            self._next /= self._step
        elif self._high is None:
            self._next *= self._step
        else:
            self._next = math.sqrt(self._low * self._high)


def queries_needed(percentile: float) -> int:
    """Queries of a trial: ten of them may be late, so that the bound is judged by more than luck."""
    return max(30, math.ceil(10 / (1 - percentile)))


def steps_up(rate: float, count: int) -> Iterator[float]:
    """Even shares of a rate below it: the points of a curve of throughput against latency."""
    return (rate * (number + 1) / (count + 1) for number in range(count))
