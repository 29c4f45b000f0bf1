"""How one group's activations become eight bits: one fixed scale, or one for each token; smoothed or not.

Each way is tried on a sample of real rows, with the weights rounded as they will be, and judged by the error of the
product. Smoothing (Xiao et al. 2022, https://arxiv.org/abs/2211.10438) divides each channel of the activations by a
number and multiplies the weights with it, which changes nothing in exact arithmetic and moves outliers where there is
room for them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from pinnace.arrays import Array
from pinnace.quantize.calibration import Activations, spread
from pinnace.quantize.rounding.nearest import channel_codes

STRENGTHS: Final = (0.0, 0.35, 0.5, 0.65, 0.8, 0.9)
# Share of the observed range that a fixed scale covers; what lies beyond is clipped.
COVERED: Final = (1.0, 0.9, 0.8, 0.7, 0.6)
MARGIN: Final = 1.05  # unseen data go a little further than what was observed
LEVELS: Final = 255
MIDDLE: Final = 128  # the code of zero where both sides are alike
# Codes of zero that are tried for one scale a token: what GELU gives lies nearly all on one side.
TOKEN_ZEROS: Final = (MIDDLE, 96, 64, 40, 24, 12)
TINY: Final = 1e-12  # a row of zeros has this scale, so that nothing is divided by zero
TRIAL_ROWS: Final = 256
TRIAL_OUTPUTS: Final = 512


@dataclasses.dataclass(frozen=True)
class Range:
    """How activations are quantized.

    Attributes:
        per_token: every row has the finest scale that reaches its ends; otherwise the scale is fixed.
        smooth: what each channel is divided by before, float32 ``(K,)``; None: nothing.
        strength: of the smoothing, 0 to 1.
        scale: of one step, where fixed.
        zero: the code of 0, 0 to 255: the same for all rows.
        error: squared error of the product on the sample, relative to the product's own square.
    """

    per_token: bool
    smooth: Array | None
    strength: float
    scale: float
    zero: int
    error: float


def choose_range(seen: Activations, weight: Array, *, per_token: bool, reduced: bool, smoothing: bool = True) -> Range:
    """Find the way with the least error.

    Args:
        seen: the group's activations.
        weight: of all its projections, float32 ``(N, K)``.
        per_token: one scale for each row, or a fixed one.
        reduced: how the weight will be rounded, see `rounding.channel_codes`.
        smoothing: whether activations may be smoothed.
    """
    return min(candidates(seen, weight, per_token, reduced, smoothing), key=lambda found: found.error)


def plain_tokens() -> Range:
    """One scale for each token and no smoothing: what needs no calibration."""
    return Range(per_token=True, smooth=None, strength=0.0, scale=0.0, zero=MIDDLE, error=float("nan"))


def candidates(seen: Activations, weight: Array, per_token: bool, reduced: bool, smoothing: bool) -> Iterator[Range]:
    """Yield every way that is tried, with its error."""
    rows = spread(seen.sample, TRIAL_ROWS)
    outputs = spread(weight, TRIAL_OUTPUTS)
    exact = rows @ outputs.T
    power = float(np.square(exact, dtype=np.float64).sum()) or 1.0
    for strength in STRENGTHS if smoothing else (0.0,):
        smooth = smoothing_factors(seen.peak, weight, strength)
        low, high = (seen.low, seen.high) if smooth is None else (seen.low / smooth, seen.high / smooth)
        x = rows if smooth is None else rows / smooth
        w = rounded_weight(outputs if smooth is None else outputs * smooth, reduced)
        tokens = ((0.0, zero) for zero in TOKEN_ZEROS)
        for scale, zero in tokens if per_token else _fixed_scales(float(low.min()), float(high.max())):
            codes = rounded_tokens(x, zero) if per_token else rounded_fixed(x, scale, zero)
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
    columns = np.maximum(np.maximum(weight.max(0), -weight.min(0)), 1e-5)  # no copy of a large weight
    factors = np.maximum(peak, floor) ** strength / columns ** (1 - strength)
    factors = factors / np.exp(np.log(factors).mean())
    return np.asarray(np.clip(factors, 1e-3, 1e3), np.float32)


def _fixed_scales(low: float, high: float) -> Iterator[tuple[float, int]]:
    """Scales and codes of zero: what is not covered is cut off on both sides, in proportion."""
    low, high = min(low, 0.0) * MARGIN, max(high, 0.0) * MARGIN
    for covered in COVERED:
        scale = max((high - low) * covered / LEVELS, 1e-12)
        yield scale, int(np.clip(round(-low * covered / scale), 0, LEVELS))


def rounded_fixed(x: Array, scale: float, zero: int) -> Array:
    """Numbers after a fixed quantization to unsigned eight bits."""
    codes = np.clip(np.rint(x / np.float32(scale)) + zero, 0, LEVELS) - zero
    return np.asarray(codes * np.float32(scale), np.float32)


def rounded_tokens(x: Array, zero: int = MIDDLE) -> Array:
    """Numbers after a quantization of each row by the finest step with which neither end leaves the codes."""
    above, below = token_shares(zero)
    step = np.maximum(x.max(-1, keepdims=True) * above, x.min(-1, keepdims=True) * below)
    step = np.maximum(step, np.float32(TINY))
    return np.asarray((np.clip(np.rint(x / step) + zero, 0, LEVELS) - zero) * step, np.float32)


def token_shares(zero: int) -> tuple[np.float32, np.float32]:
    """What a row's largest and smallest number are multiplied with; the larger product is the row's step."""
    return np.float32(1 / (LEVELS - zero)), np.float32(-1 / zero)


def rounded_weight(weight: Array, reduced: bool) -> Array:
    """Weights ``(N, K)`` after symmetric rounding, one scale for each output."""
    codes, steps = channel_codes(weight, reduced)
    return np.asarray(codes * steps[:, None], np.float32)


def joined(weights: Sequence[Array]) -> Array:
    """Weights ``(N, K)`` of several projections, below one another."""
    return weights[0] if len(weights) == 1 else np.concatenate(weights)
