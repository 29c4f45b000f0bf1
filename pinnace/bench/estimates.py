"""From single times to figures: percentiles and their bootstrap intervals, with rounds drawn as a whole."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from pinnace.bench.results import MAX_SAMPLES, Measure, Samples

RESAMPLES: Final = 500
LEVEL: Final = 0.95
P99_SAMPLES: Final = 1000
# Times of a round that take part in the bootstrap; more change nothing but its cost.
_PER_ROUND: Final = 400

PERCENTILES: Final = {"latency_p50_s": 50.0, "latency_p90_s": 90.0, "latency_p95_s": 95.0, "latency_p99_s": 99.0}
Array = np.ndarray[Any, np.dtype[np.float64]]


def from_blocks(blocks: Sequence[float], seed: int, why_absent: str = "nothing was measured") -> Measure:
    """The median of the rounds' values, with its interval."""
    values = [float(value) for value in blocks]
    if not values:
        return Measure(None, absent=why_absent)
    if len(values) == 1:
        return Measure(values[0], blocks=tuple(values))
    drawn = np.random.default_rng(seed).choice(np.array(values), (RESAMPLES, len(values)))
    low, high = _interval(np.median(drawn, axis=1))
    return Measure(statistics.median(values), low, high, tuple(values))


def latency(rounds: Sequence[Sequence[float]], seed: int) -> dict[str, Measure]:
    """Mean and percentiles of a query's time, over all queries of all rounds.

    Times of one round resemble each other, on a shared machine above all. The bootstrap therefore draws whole rounds;
    with a single round it draws times, and its interval is too narrow by as much as they depend on each other.
    """
    pooled = np.sort(np.concatenate([np.asarray(times, float) for times in rounds]))
    found = {"latency_mean_s": _estimate(rounds, np.mean, pooled, seed)}
    for name, percent in PERCENTILES.items():
        if percent == 99.0 and len(pooled) < P99_SAMPLES:
            why = f"{len(pooled):,} queries were measured, a p99 needs {P99_SAMPLES:,}"
            found[name] = Measure(None, absent=why)
            continue
        found[name] = _estimate(rounds, functools.partial(np.percentile, q=percent), pooled, seed)
    return found


def samples(rounds: Sequence[Sequence[float]]) -> Samples:
    """The single times, sorted; of very many as many quantiles as are kept."""
    pooled = np.sort(np.concatenate([np.asarray(times, float) for times in rounds])) if rounds else np.empty(0)
    return Samples(len(pooled), tuple(float(f"{value:.6g}") for value in thinned(pooled, MAX_SAMPLES)))


def thinned(ordered: Array, most: int) -> Array:
    """At most so many of sorted values at even distances, the first and the last among them."""
    if len(ordered) <= most:
        return ordered
    chosen: Array = ordered[np.round(np.linspace(0, len(ordered) - 1, most)).astype(int)]
    return chosen


def _estimate(
    rounds: Sequence[Sequence[float]], statistic: Callable[[Array], Any], pooled: Array, seed: int
) -> Measure:
    generator = np.random.default_rng(seed)
    kept = [thinned(np.sort(np.asarray(times, float)), _PER_ROUND) for times in rounds if len(times)]
    if len(kept) > 1:
        places = generator.integers(0, len(kept), (RESAMPLES, len(kept)))
        drawn = [float(statistic(np.concatenate([kept[i] for i in row]))) for row in places]
    else:
        drawn = [float(statistic(generator.choice(kept[0], len(kept[0])))) for _ in range(RESAMPLES)]
    low, high = _interval(np.array(drawn))
    value = float(statistic(pooled))
    # Thinning may move an interval by less than a sample's distance; the value itself is never outside.
    blocks = tuple(float(statistic(np.asarray(times, float))) for times in rounds if len(times))
    return Measure(value, min(low, value), max(high, value), blocks)


def _interval(drawn: Array) -> tuple[float, float]:
    low, high = np.percentile(drawn, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return float(low), float(high)
