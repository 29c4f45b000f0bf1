"""Calibration methods: which range of a tensor's numbers a fixed 8-bit scale covers; what lies beyond is clipped.

Covering everything is the usual choice: the rare large numbers of transformers carry much of what they know. Methods
that clip them need some weights kept in fp32 where min-max needs none (QA in tests/data: three or four of 16 groups).
They are for models whose outliers are noise.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from pinnace.arrays import Array
from pinnace.quantize.calibration import Activations
from pinnace.quantize.histogram import Histogram
from pinnace.quantize.ranges import LEVELS, MIDDLE, Range

MIN_MAX: Final = "min-max"
TAIL: Final = 5e-5  # share of the numbers that a percentile leaves out on either side
TRIED: Final = 96  # thresholds that entropy tries
NARROWEST: Final = 1 / 32  # of the largest magnitude
Bounds = tuple[float, float]


def min_max(seen: Activations) -> Bounds:
    """All that was observed."""
    return float(seen.low.min()), float(seen.high.max())


def moving_average(seen: Activations) -> Bounds:
    """The ends of each run, averaged with weights that fade for earlier runs: single outliers count little."""
    return seen.usual


def percentile(seen: Activations) -> Bounds:
    """All but the rarest numbers on either side."""
    counts, edges = _histogram(seen).counts, _histogram(seen).edges
    share = np.cumsum(counts) / max(1, counts.sum())
    first = int(np.searchsorted(share, TAIL, side="right"))
    last = int(np.searchsorted(share, 1 - TAIL, side="left"))
    low, high = min_max(seen)
    return max(low, float(edges[first])), min(high, float(edges[last + 1]))


def entropy(seen: Activations) -> Bounds:
    """The threshold whose 8-bit distribution diverges least from what was observed (Kullback-Leibler).

    Source: S. Migacz, 8-bit Inference with TensorRT, GTC 2017.
    """
    low, high = min_max(seen)
    peak = max(-low, high)
    if peak <= 0:
        return low, high
    tried = np.geomspace(NARROWEST * peak, peak, TRIED)
    losses = [_divergence(_histogram(seen), max(low, -t), min(high, t)) for t in tried]
    best = float(tried[int(np.argmin(losses))])
    return max(low, -best), min(high, best)


def _histogram(seen: Activations) -> Histogram:
    assert seen.histogram is not None  # asked for when the graph was observed
    return seen.histogram


METHODS: Final[Mapping[str, Callable[[Activations], Bounds]]] = types.MappingProxyType(
    {MIN_MAX: min_max, "moving-average": moving_average, "entropy": entropy, "percentile": percentile}
)
NEED_HISTOGRAMS: Final = ("entropy", "percentile")


def fixed_range(seen: Activations, method: str, *, signed: bool) -> Range:
    """The scale and zero point of a tensor.

    Args:
        seen: its activations.
        method: key of `METHODS`.
        signed: codes of -128 to 127 with zero at 0; `Range.zero` is then 128, as seen from unsigned codes.
    """
    low, high = METHODS[method](seen)
    low, high = min(low, 0.0), max(high, 0.0)  # zero must have a code
    if signed:
        scale, zero = max(-low, high) / (LEVELS // 2), MIDDLE
    else:
        scale = (high - low) / LEVELS
        zero = round(-low / scale) if scale else 0
    return Range(per_token=False, smooth=None, strength=0.0, scale=max(scale, 1e-12), zero=zero, error=float("nan"))


def _divergence(histogram: Histogram, low: float, high: float) -> float:
    """Divergence of the clipped and rounded distribution from the observed one, in nats."""
    edges = histogram.edges
    middles = (edges[:-1] + edges[1:]) / 2
    inside = (middles >= low) & (middles <= high)
    seen: Array = histogram.counts[inside].astype(np.float64)
    if len(seen) <= LEVELS or not seen.sum():
        return float("inf")
    clipped = seen.copy()
    clipped[0] += histogram.counts[middles < low].sum()
    clipped[-1] += histogram.counts[middles > high].sum()
    codes = np.floor((middles[inside] - low) * ((LEVELS + 1) / (high - low))).astype(int).clip(0, LEVELS)
    # A code's numbers spread evenly over those of its bins where anything was seen.
    totals, filled = np.bincount(codes, seen), np.bincount(codes, seen > 0)
    rounded = np.where(seen > 0, totals[codes] / np.maximum(filled[codes], 1), 0)
    p, q = clipped / clipped.sum(), rounded / max(rounded.sum(), 1.0)
    known = p > 0
    return float(np.sum(p[known] * np.log(p[known] / np.maximum(q[known], 1e-12))))
