"""How one group's activations become eight bits: one fixed scale, or one for each token; smoothed or not.

Each way is tried on a sample of real rows, with the weights rounded as they will be, and judged by the error of the
product. Smoothing (Xiao et al. 2022, https://arxiv.org/abs/2211.10438) divides each channel of the activations by a
number and multiplies the weights with it, which changes nothing in exact arithmetic and moves outliers where there is
room for them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pinnace.quantize.calibration import Activations

Array = npt.NDArray[Any]
STRENGTHS: Final = (0.0, 0.35, 0.5, 0.65, 0.8, 0.9)
# Share of the observed range that a fixed scale covers; what lies beyond is clipped.
COVERED: Final = (1.0, 0.9, 0.8, 0.7, 0.6)
MARGIN: Final = 1.05  # unseen data go a little further than what was observed
LEVELS: Final = 255
TRIAL_ROWS: Final = 256
TRIAL_OUTPUTS: Final = 512


@dataclasses.dataclass(frozen=True)
class Range:
    """How activations are quantized.

    Attributes:
        per_token: every row is divided by its largest magnitude; otherwise scale and zero point are fixed.
        smooth: what each channel is divided by before, float32 ``(K,)``; None: nothing.
        strength: of the smoothing, 0 to 1.
        scale: of one step, where fixed.
        zero: the code of 0, 0 to 255.
        error: squared error of the product on the sample, relative to the product's own square.
    """

    per_token: bool
    smooth: Array | None
    strength: float
    scale: float
    zero: int
    error: float


def choose_range(seen: Activations, weight: Array, *, per_token: bool, largest: int, smoothing: bool = True) -> Range:
    """Find the way with the least error.

    Args:
        seen: the group's activations.
        weight: of all its projections, float32 ``(N, K)``.
        per_token: one scale for each row, or a fixed one.
        largest: magnitude of the largest weight code, 127 or 64.
        smoothing: whether activations may be smoothed.
    """
    return min(candidates(seen, weight, per_token, largest, smoothing), key=lambda found: found.error)


def plain_tokens() -> Range:
    """One scale for each token and no smoothing: what needs no calibration."""
    return Range(per_token=True, smooth=None, strength=0.0, scale=0.0, zero=0, error=float("nan"))


def candidates(seen: Activations, weight: Array, per_token: bool, largest: int, smoothing: bool) -> Iterator[Range]:
    """Yield every way that is tried, with its error."""
    rows = _some(seen.sample, TRIAL_ROWS)
    outputs = _some(weight, TRIAL_OUTPUTS)
    exact = rows @ outputs.T
    power = float(np.square(exact, dtype=np.float64).sum()) or 1.0
    for strength in STRENGTHS if smoothing else (0.0,):
        smooth = smoothing_factors(seen.peak, weight, strength)
        low, high = (seen.low, seen.high) if smooth is None else (seen.low / smooth, seen.high / smooth)
        x = rows if smooth is None else rows / smooth
        w = rounded_weight(outputs if smooth is None else outputs * smooth, largest)
        for scale, zero in ((0.0, 128),) if per_token else _fixed_scales(float(low.min()), float(high.max())):
            codes = rounded_tokens(x) if per_token else rounded_fixed(x, scale, zero)
            error = float(np.square(codes @ w.T - exact, dtype=np.float64).sum()) / power
            yield Range(per_token, smooth, strength, scale, zero, error)


def smoothing_factors(peak: Array, weight: Array, strength: float) -> Array | None:
    """What each channel is divided by: ``peak ** strength / weight_peak ** (1 - strength)``; None for strength 0.

    Args:
        peak: largest magnitude of each channel ``(K,)``.
        weight: float32 ``(N, K)``.
        strength: 0 leaves the activations alone, 1 makes all channels equally wide.
    """
    if strength == 0:
        return None
    floor = max(float(peak.max()), 1e-8) * 1e-4
    columns = np.maximum(np.abs(weight).max(0), 1e-5)
    factors = np.maximum(peak, floor) ** strength / columns ** (1 - strength)
    factors = factors / np.exp(np.log(factors).mean())
    return np.asarray(np.clip(factors, 1e-3, 1e3), np.float32)


def _fixed_scales(low: float, high: float) -> Iterator[tuple[float, int]]:
    low, high = min(low, 0.0) * MARGIN, max(high, 0.0) * MARGIN
    for covered in COVERED:
        width = (high - low) * covered
        scale = max(width / LEVELS, 1e-12)
        # The shorter side is kept whole as long as it can be: cutting it costs most and saves least.
        below = min(-low, max(width - high * covered, -low * covered))
        yield scale, int(np.clip(round(below / scale), 0, LEVELS))


def rounded_fixed(x: Array, scale: float, zero: int) -> Array:
    """Numbers after a fixed quantization to unsigned eight bits."""
    codes = np.clip(np.rint(x / np.float32(scale)) + zero, 0, LEVELS) - zero
    return np.asarray(codes * np.float32(scale), np.float32)


def rounded_tokens(x: Array) -> Array:
    """Numbers after a quantization of each row by its largest magnitude."""
    step = np.maximum(np.abs(x).max(-1, keepdims=True), 1e-12) / np.float32(127)
    return np.asarray(np.clip(np.rint(x / step), -128, 127) * step, np.float32)


def rounded_weight(weight: Array, largest: int) -> Array:
    """Weights ``(N, K)`` after symmetric rounding, one scale for each output."""
    step = np.maximum(np.abs(weight).max(-1, keepdims=True), 1e-12) / np.float32(largest)
    return np.asarray(np.rint(weight / step) * step, np.float32)


def _some(rows: Array, most: int) -> Array:
    places = np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int)
    return np.asarray(rows[places])


def joined(weights: Sequence[Array]) -> Array:
    """Weights ``(N, K)`` of several projections, below one another."""
    return weights[0] if len(weights) == 1 else np.concatenate(weights)
