"""How much one series of rounds differs from another, and how sure that is: robust means and honest errors."""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

_TRIM: Final = 0.2
_FAR: Final = 3.0  # standard deviations
_STILL: Final = 1e-4
_CHOICE: Final = 0.05  # the level at which the wider of two intervals is chosen
# Two runs without the machine's rates differ by so much for reasons that nothing in them tells.
_BETWEEN_RUNS: Final = 0.04
Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclasses.dataclass(frozen=True)
class Shift:
    """A change, or a level, on the logarithmic scale, its standard error and its degrees of freedom."""

    value: float
    error: float
    freedom: float

    def reach(self, level: float) -> float:
        """Half the width of the two-sided interval at a level."""
        return t_quantile(1 - level / 2, self.freedom) * self.error

    def interval(self, level: float) -> tuple[float, float]:
        """The two-sided interval at a level."""
        return self.value - self.reach(level), self.value + self.reach(level)

    def chance(self, least: float) -> float:
        """The two-sided p-value: how likely noise alone shows as much, where a change up to ``least`` is none."""
        beyond = abs(self.value) - least
        if beyond <= 0:
            return 1.0
        return 2 * (1 - t_probability(beyond / self.error, self.freedom)) if self.error else 0.0


def explained(before: Floats, after: Floats, *limits: Sequence[Sequence[float]]) -> tuple[Floats, Floats, float]:
    """Take away what the machine's own rates explain: a slow hour of the machine is no slow program.

    How much a measure follows the machine is learnt inside the runs, and only there: the difference between them is
    what is asked. A program that follows none of the rates keeps its values.

    Args:
        before, after: logarithms of times (or of inverse rates) of each round.
        limits: rates of the machine in the rounds of the first and of the second run.

    Returns:
        Both, and how far the machine's own rates lie apart that nothing was learnt about: an error of its own.
    """
    usable = all(
        len(rates) == len(values) for values, run in zip((before, after), limits, strict=True) for rates in run
    )
    if not usable or not limits[0] or len(limits[0]) != len(limits[1]):
        return before, after, _BETWEEN_RUNS
    slow = [np.array([drawn_in(-np.log(np.array(rates))) for rates in run]) for run in limits]  # (rates, rounds)
    inside = [np.concatenate([run[place] - run[place].mean() for run in slow]) for place in range(len(slow[0]))]
    own = np.concatenate([before - before.mean(), after - after.mean()])
    # The rate that explains most, alone: together they would explain noise.
    best, slope = 0.0, np.zeros(len(inside))
    for place, column in enumerate(inside):
        if float(column.std()) <= _STILL:
            continue
        factor = float(column @ own) / float(column @ column)
        gain = factor * float(column @ own)
        if factor > 0 and gain > best:
            best, slope = gain, np.eye(len(inside))[place] * min(factor, 1.0)
    apart = np.array([trimmed_mean(b) - trimmed_mean(a) for a, b in zip(*slow, strict=True)])
    left = (1 - slope) * apart
    unexplained = float(left[slope > 0][0] if best else np.abs(left).min())
    return before - slope @ slow[0], after - slope @ slow[1], abs(unexplained)


def drawn_in(values: Floats, starts: int = 1) -> Floats:
    """Values farther from the median than noise goes are drawn in to where it ends.

    Where most rounds of a start lie that far, its process is another one, and they stay.
    """
    middle = float(np.median(values))
    reach = _FAR * 1.4826 * float(np.median(np.abs(values - middle)))
    near = np.clip(values, middle - reach, middle + reach)
    if starts >= len(values):
        return near
    parts = zip(np.array_split(values, starts), np.array_split(near, starts), strict=True)
    return np.concatenate([part if np.mean(part != drawn) > 0.5 else drawn for part, drawn in parts])


def shift_of_one(values: Floats, starts: int) -> Shift:
    """The level of one series, by whichever of rounds and starts knows less of it.

    Args:
        values: of the rounds, in order.
        starts: among which the rounds are shared; where there are no more values than these, each is a start's.
    """
    if not 2 <= starts < len(values):
        return _of_rounds(values, effective_share(values))
    parts = np.array_split(values, starts)
    medians = [float(np.median(part)) for part in parts]
    # What starts differ by is not counted twice, as a likeness of neighbouring rounds.
    inside = np.concatenate([part - median for part, median in zip(parts, medians, strict=True)])
    levels = (_of_rounds(values, effective_share(inside)), _of_starts(medians))
    return max(levels, key=lambda level: level.reach(_CHOICE))


def shift_of_two(before: Floats, after: Floats, starts: tuple[int, int], unexplained: float) -> Shift:
    """The difference of two series that were measured apart; ``unexplained`` is an error of its own."""
    one, other = shift_of_one(before, starts[0]), shift_of_one(after, starts[1])
    variance = one.error**2 + other.error**2
    # Welch's degrees of freedom.
    spread = one.error**4 / one.freedom + other.error**4 / other.freedom
    freedom = variance**2 / spread if spread else one.freedom + other.freedom
    return Shift(other.value - one.value, math.sqrt(variance + unexplained**2), freedom)


def _of_rounds(values: Floats, share: float) -> Shift:
    """The trimmed mean; neighbours that resemble each other count as fewer rounds, and their error is known less."""
    count = len(values)
    kept = count - 2 * int(_TRIM * count)
    plain = math.sqrt(winsorized_variance(values) * (count - 1) / (kept * (kept - 1)))
    return Shift(trimmed_mean(values), plain / math.sqrt(share), max(2.0, share * (kept - 1)))


def _of_starts(medians: Sequence[float]) -> Shift:
    """The mean of the starts: however many rounds each has, its process was drawn once."""
    error = statistics.stdev(medians) / math.sqrt(len(medians))
    return Shift(statistics.mean(medians), error, len(medians) - 1.0)


def trimmed_mean(values: Floats) -> float:
    """The mean without the smallest and the largest fifth."""
    cut = int(_TRIM * len(values))
    return float(np.sort(values)[cut : len(values) - cut].mean())


def winsorized_variance(values: Floats) -> float:
    """The variance with the smallest and the largest fifth drawn in to their neighbours."""
    ordered = np.sort(values)
    cut = int(_TRIM * len(values))
    if cut:
        ordered[:cut], ordered[-cut:] = ordered[cut], ordered[-cut - 1]
    return float(ordered.var(ddof=1)) if len(ordered) > 1 else 0.0


def effective_share(values: Floats) -> float:
    """How many independent rounds these are worth, as a share: by the correlation of neighbours."""
    centred = values - np.median(values)
    spread = float((centred**2).sum())
    if spread == 0.0 or len(values) < 4:
        return 1.0
    rho = float((centred[1:] * centred[:-1]).sum()) / spread
    rho = min(0.9, max(0.0, rho + (1 + 4 * rho) / len(values)))  # the estimate is too low in short series
    return max((1 - rho) / (1 + rho), 2 / len(values))


def t_probability(value: float, freedom: float) -> float:
    """Student's distribution function, by integrating its density; good to 1e-6."""
    if math.isinf(value):
        return 1.0 if value > 0 else 0.0
    # t = sqrt(n) tan(a) makes the density a power of the cosine on a finite range.
    angle = math.atan(abs(value) / math.sqrt(freedom))
    places = np.linspace(0.0, angle, 2001)
    heights = np.cos(places) ** (freedom - 1)
    weights = np.ones(2001)
    weights[1:-1:2], weights[2:-1:2] = 4, 2  # Simpson's rule
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
    half = scale * float((heights * weights).sum()) * (angle / 2000) / 3
    return 0.5 + half if value >= 0 else 0.5 - half


@functools.lru_cache(maxsize=4096)
def t_quantile(share: float, freedom: float) -> float:
    """Where Student's distribution function reaches a share above one half, by halving."""
    low, high = 0.0, 1.0
    while t_probability(high, freedom) < share and high < 1e6:
        high *= 2
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if t_probability(middle, freedom) < share else (low, middle)
    return (low + high) / 2
