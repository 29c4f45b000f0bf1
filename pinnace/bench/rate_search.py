"""The highest rate of arrivals that keeps a latency bound: bracketed by steps, then halved."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from pinnace.bench.results import RatePoint
from pinnace.errors import UsageError

STEP: Final = 1.5
NEAR_STEP: Final = 1.1
PRECISION: Final = 0.04
MOST_TRIALS: Final = 14
# Rates below this share of the highest that the machine can do are not tried: there it is as good as idle.
LEAST_SHARE: Final = 0.05
# A trial lasts so many bounds at least: in a short one any rate keeps the bound, since few queries can wait.
SPAN: Final = 20
# Share of the arrivals that must be served while they arrive; what is left waits, and the queue would grow for ever.
KEPT_UP: Final = 0.97


class RateSearch:
    """Proposes rates, and is told whether each was held.

    Trials of several candidates can take turns, since the search does not measure by itself.

    Args:
        guess: the first rate, in queries/s.
        step: factor between rates until the answer is bracketed.
        least: rate in queries/s below which none is tried.
    """

    def __init__(self, guess: float, step: float = STEP, least: float = 0.0) -> None:
        self._next, self._step, self._least = guess, step, least
        self._low: float | None = None
        self._high: float | None = None
        self._served: float | None = None
        self._trials = 0

    @property
    def done(self) -> bool:
        """Whether the answer is known to `PRECISION`, or none can be found, or too many rates were tried."""
        near = self._low is not None and self._high is not None and self._high / self._low <= 1 + PRECISION
        return near or self._trials >= MOST_TRIALS or (self._low is None and self._next < self._least)

    @property
    def rate(self) -> float:
        """The rate to try next."""
        return self._next

    @property
    def found(self) -> float | None:
        """The highest rate that was held, as far as it was served; None where none was held."""
        return self._served

    def tell(self, held: bool, served: float | None = None) -> None:
        """Say whether `rate` was held, and how many queries/s were served of it; None: all."""
        self._trials += 1
        if not held:
            self._high = self._next if self._high is None else min(self._high, self._next)
        elif self._low is None or self._next > self._low:
            self._low, self._served = self._next, self._next if served is None else served
        if self._low is None:
            self._next /= self._step
        elif self._high is None:
            self._next *= self._step
        else:
            self._next = math.sqrt(self._low * self._high)


def search_from(capacity: float, known: Sequence[float], draw: random.Random) -> RateSearch:
    """A search of one start. Its first rate is drawn, so that no two starts try the same grid of rates.

    Args:
        capacity: queries/s that the program answers when one follows another.
        known: what earlier starts found; the neighbourhood of the last is searched first.
        draw: of this start and candidate alone.
    """
    guess, step = (known[-1], NEAR_STEP) if known else (0.7 * capacity, STEP)
    return RateSearch(guess * step ** draw.uniform(-0.5, 0.5), step, LEAST_SHARE * capacity)


def queries_needed(percentile: float) -> int:
    """Queries of a trial at least: ten of them may be late, so that the bound is judged by more than luck.

    Raises:
        UsageError: a percentile that is no share between none and all.
    """
    if not 0 < percentile < 1:
        raise UsageError(
            f"the server scenario's percentile is {percentile:.6g} of the queries; expected more than 0 and less than "
            "1 (100 %): of any number of queries one may be late by chance"
        )
    return max(30, math.ceil(10 / (1 - percentile) - 1e-9))


def trial_queries(rate: float, percentile: float, bound: float) -> int:
    """Queries of a trial at a rate: enough for the percentile, and for `SPAN` bounds (in seconds)."""
    return max(queries_needed(percentile), math.ceil(SPAN * bound * rate))


def most_late(count: int, percentile: float) -> int:
    """How many of so many queries may miss the bound."""
    return math.floor((1 - percentile) * count + 1e-9)


def never_holds(idle: Sequence[float], percentile: float, bound: float) -> bool:
    """Whether queries miss the bound even one by one; ``idle`` are their times in seconds."""
    return sorted(idle)[int(min(percentile, 0.5) * len(idle))] > bound


def tried(rate: float, count: int, percentile: float, found: Mapping[str, Any]) -> tuple[RatePoint, float]:
    """Judge a trial of so many queries at a rate.

    Args:
        found: what `pinnace.bench.loop.TimedJob.arriving` gave.

    Returns:
        The trial, and how many queries/s were served while they arrived.
    """
    times = sorted(found["latency"])
    span = count / rate
    served = count / (span + found["behind"])
    held = not found["stopped"] and served >= KEPT_UP * rate
    late = times[math.ceil(percentile * len(times) - 1e-9) - 1]
    return RatePoint(rate, len(times) / found["seconds"], late, len(times), held), served


def steps_up(rate: float, count: int) -> Iterator[float]:
    """Even shares of a rate below it: the points of a curve of throughput against latency."""
    return (rate * (number + 1) / (count + 1) for number in range(count))
