"""From single times to figures: percentiles and their bootstrap intervals, with starts and rounds drawn as a whole."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from pinnace.bench.results import MAX_SAMPLES, Measure, Samples
from pinnace.bench.shifts import t_quantile

RESAMPLES: Final = 500
LEVEL: Final = 0.95
P99_SAMPLES: Final = 1000
# Times of a round that take part in the bootstrap of percentiles; more change nothing but its cost.
_PER_ROUND: Final = 400

PERCENTILES: Final = {"latency_p50_s": 50.0, "latency_p90_s": 90.0, "latency_p95_s": 95.0, "latency_p99_s": 99.0}
Floats = np.ndarray[Any, np.dtype[np.float64]]
Places = np.ndarray[Any, np.dtype[np.int64]]


def from_blocks(
    blocks: Sequence[float], seed: int, why_absent: str = "nothing was measured", starts: int | None = None
) -> Measure:
    """The median of the rounds' values, with its interval.

    Args:
        blocks: values, in order.
        seed: of the bootstrap.
        why_absent: what is said where there are none.
        starts: among which the rounds are shared; None where each value is a start's.
    """
    values = [float(value) for value in blocks]
    if not values:
        return Measure(None, absent=why_absent)
    if len(values) == 1:
        return Measure(values[0], blocks=tuple(values))
    array, places = np.array(values), _resampled(len(values), starts, seed)
    drawn = np.array([float(np.median(array[row])) for row in places])
    value = statistics.median(values)
    return Measure(value, *_interval(drawn, value, _clusters(len(values), starts)), tuple(values))


def latency(rounds: Sequence[Sequence[float]], seed: int, starts: int | None = None) -> dict[str, Measure]:
    """Mean and percentiles of a query's time, over all queries of all rounds.

    Times of one round resemble each other, on a shared machine above all, and so do rounds of one process. The
    bootstrap therefore draws whole starts, and whole rounds of these; with a single round it draws times, and its
    interval is too narrow by as much as they depend on each other.

    Args:
        rounds: times of each, in seconds.
        seed: of the bootstrap.
        starts: among which the rounds are shared, in order; None where each round is a start's.
    """
    pooled = np.sort(np.concatenate([np.asarray(times, float) for times in rounds]))
    found = {"latency_mean_s": _mean(rounds, seed, starts)}
    for name, percent in PERCENTILES.items():
        if percent == 99.0 and len(pooled) < P99_SAMPLES:
            why = f"{len(pooled):,} queries were measured, a p99 needs {P99_SAMPLES:,}"
            found[name] = Measure(None, absent=why)
            continue
        found[name] = _percentile(rounds, percent, pooled, seed, starts)
    return found


def samples(rounds: Sequence[Sequence[float]]) -> Samples:
    """The single times, sorted; of very many as many quantiles as are kept."""
    pooled = np.sort(np.concatenate([np.asarray(times, float) for times in rounds])) if rounds else np.empty(0)
    return Samples(len(pooled), tuple(float(f"{value:.6g}") for value in thinned(pooled, MAX_SAMPLES)))


def thinned(ordered: Floats, most: int) -> Floats:
    """At most so many of sorted values at even distances, the first and the last among them."""
    if len(ordered) <= most:
        return ordered
    chosen: Floats = ordered[np.round(np.linspace(0, len(ordered) - 1, most)).astype(int)]
    return chosen


def _mean(rounds: Sequence[Sequence[float]], seed: int, starts: int | None) -> Measure:
    """Rounds are drawn by their sums: among a few quantiles of each, a rare stall would count as a frequent one."""
    parts = [np.asarray(times, float) for times in rounds if len(times)]
    blocks = tuple(float(part.mean()) for part in parts)
    if len(parts) == 1:  # a round alone is drawn in pieces, in its own order: neighbours resemble each other
        parts, starts = np.array_split(parts[0], min(_PER_ROUND, len(parts[0]))), None
    sums, counts = np.array([part.sum() for part in parts]), np.array([len(part) for part in parts])
    drawn = np.array([sums[row].sum() / counts[row].sum() for row in _resampled(len(parts), starts, seed)])
    value = float(sums.sum() / counts.sum())
    return Measure(value, *_interval(drawn, value, _clusters(len(parts), starts)), blocks)


def _percentile(
    rounds: Sequence[Sequence[float]], percent: float, pooled: Floats, seed: int, starts: int | None
) -> Measure:
    def statistic(times: Floats) -> float:
        return float(np.percentile(times, percent))

    kept = [thinned(np.sort(np.asarray(times, float)), _PER_ROUND) for times in rounds if len(times)]
    if len(kept) > 1:
        places, clusters = _resampled(len(kept), starts, seed), _clusters(len(kept), starts)
        drawn = [statistic(np.concatenate([kept[i] for i in row])) for row in places]
    else:
        generator, clusters = np.random.default_rng(seed), len(kept[0])
        drawn = [statistic(generator.choice(kept[0], clusters)) for _ in range(RESAMPLES)]
    value = statistic(pooled)
    blocks = tuple(statistic(np.asarray(times, float)) for times in rounds if len(times))
    return Measure(value, *_interval(np.array(drawn), value, clusters), blocks)


def _clusters(count: int, starts: int | None) -> int:
    """How many of so many rounds are independent: the starts; of a single start nothing but its rounds is known."""
    return count if starts is None or starts < 2 else min(starts, count)


@functools.lru_cache(maxsize=32)  # the same for all measures of a run
def _resampled(count: int, starts: int | None, seed: int) -> tuple[Places, ...]:
    """Places of rounds for each resample: starts are drawn, and rounds of each that was drawn."""
    generator = np.random.default_rng(seed)
    parts = np.array_split(np.arange(count), _clusters(count, starts))

    def resample() -> Places:
        chosen = [parts[place] for place in generator.integers(0, len(parts), len(parts))]
        return np.concatenate([part[generator.integers(0, len(part), len(part))] for part in chosen])

    return tuple(resample() for _ in range(RESAMPLES))


def _interval(drawn: Floats, value: float, clusters: int) -> tuple[float, float]:
    """The percentiles of a bootstrap, moved away from the value as far as so few clusters tell too little.

    A bootstrap of n clusters has a variance too small by (n - 1) / n, and knows of no Student's distribution.
    Source: Hesterberg, What Teachers Should Know About the Bootstrap (2015), section 5.3.
    """
    low, high = (float(end) for end in np.percentile(drawn, [50 * (1 - LEVEL), 50 * (1 + LEVEL)]))
    if clusters < 2:
        return min(low, value), max(high, value)
    share = (1 + LEVEL) / 2
    wider = (
        math.sqrt(clusters / (clusters - 1)) * t_quantile(share, clusters - 1) / statistics.NormalDist().inv_cdf(share)
    )
    if min(low, value) > 0:  # times and rates differ by factors
        return value * min(1.0, low / value) ** wider, value * max(1.0, high / value) ** wider
    return value - wider * max(0.0, value - low), value + wider * max(0.0, high - value)
