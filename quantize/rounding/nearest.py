"""Round weights to int8 per output channel or to 8- or 4-bit blocks, with a search for the scale of least error."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pinnace.errors import NumericalError, UsageError, unknown_word
from pinnace.quantize.rounding.saturation import HIGHEST, LARGEST_ACTIVATION

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Codes = npt.NDArray[np.int8]

BITS: Final = (8, 4)
BLOCK_SIZES: Final = (16, 32, 64, 128, 256)
FULL_LIMIT: Final = 127
# Where a CPU adds two neighbours' products in 16 bits, 255 * (64 + 64) is the most that fits: codes of one sign may
# add up to 128, and a small one leaves its room to a large neighbour.
PAIR_LIMIT: Final = HIGHEST // LARGEST_ACTIVATION
# Shares of the largest magnitude that the search tries: what is clipped pays with finer steps for all the rest.
CHANNEL_RATIOS: Final = tuple(np.linspace(1.0, 0.5, 21).tolist())
BLOCK_RATIOS: Final = tuple(np.linspace(1.0, 0.6, 17).tolist())
_CHUNK: Final = 1 << 20  # elements worked on at a time; some ten arrays of this size live at once
SMALLEST_SCALE: Final = 1e-30  # below it a scale would be a denormal number, which ONNX Runtime may flush to zero


@dataclasses.dataclass(frozen=True)
class Blocks:
    """A weight in blocks along its input axis: ``w = (codes - zeros) * scales``, one scale and zero per block.

    Attributes:
        codes: uint8 [N, K], values below ``2 ** bits``.
        scales: fp32 [N, ceil(K / block)]; a scale may be negative.
        zeros: uint8 [N, ceil(K / block)], or None where every zero point is ``2 ** (bits - 1)``.
        bits: 8 or 4.
        block: inputs that share a scale; the last block may be shorter.
    """

    codes: Bytes
    scales: Floats
    zeros: Bytes | None
    bits: int
    block: int

    @property
    def symmetric(self) -> bool:
        """Whether every zero point is the middle of the range."""
        return self.zeros is None


def channel_codes(
    w: Array, reduced: bool, *, search: bool = False, importance: Array | None = None
) -> tuple[Codes, Floats]:
    """Round a weight to symmetric int8 with one scale for each output channel.

    Args:
        w: [N, K], N output channels, any float type; may be a memory map.
        reduced: neighbouring codes of one sign add up to at most `PAIR_LIMIT`, for CPUs without a 4-way int8 dot
            product. Steps are then as wide as the largest such pair asks, where a limit of 64 for each code by itself
            would always double them.
        search: look for the scale of least squared error rather than the largest magnitude's.
        importance: fp32 [K], mean square of each input on calibration data; weighs the search's errors.

    Returns:
        codes int8 [N, K] and scales fp32 [N]; ``w`` is about ``codes * scales[:, None]``.

    Raises:
        NumericalError: a weight is NaN or infinite.
        UsageError: a shape does not fit.
    """
    weigh = _importance(w, importance)
    codes, scales = np.empty(w.shape, np.int8), np.empty(len(w), np.float32)
    for rows in row_chunks(w.shape):
        part = finite(w[rows])
        widest = pair_sums(part) if reduced else np.abs(part)
        scales[rows] = _steps(widest.max(axis=1, initial=0.0), FULL_LIMIT)
        codes[rows] = rounded = _channel_nearest(part, scales[rows], reduced)
        if search:
            best = _gain(part, rounded, weigh)
            for ratio in CHANNEL_RATIOS:
                tried = _channel_nearest(part, scales[rows] * np.float32(ratio), reduced)
                _keep_better(part, tried, weigh, best, rounded)
            fitted = best.fitted(scales[rows])
            codes[rows], scales[rows] = _channel_nearest(part, fitted, reduced), fitted
    return codes, scales


def pair_sums(part: Floats) -> Floats:
    """Sums of neighbouring numbers of one sign, as magnitudes: [N, K] gives [N, ceil(K / 2)]."""
    pairs = in_blocks(part, 2)
    sums: Floats = np.maximum(np.maximum(pairs, 0).sum(axis=2), np.maximum(-pairs, 0).sum(axis=2))
    return sums


def fit_pairs(codes: Array) -> None:
    """Take from neighbouring codes [N, K] of one sign, in place, what they are beyond `PAIR_LIMIT` together."""
    even = codes.shape[1] // 2 * 2
    pairs = codes[:, :even].reshape(len(codes), -1, 2)
    for sign in (1, -1):
        sizes = np.maximum(sign * pairs.astype(np.int16), 0)
        rows, places = np.nonzero(sizes.sum(axis=2) > PAIR_LIMIT)
        larger = sizes[rows, places].argmax(axis=1)
        beyond = sizes[rows, places].sum(axis=1) - PAIR_LIMIT
        codes[rows, 2 * places + larger] -= (sign * beyond).astype(codes.dtype)


def _channel_nearest(part: Floats, scales: Floats, reduced: bool) -> Floats:
    codes = nearest(part, scales[:, None], -FULL_LIMIT, FULL_LIMIT)
    if reduced:
        fit_pairs(codes)
    return codes


def block_codes(
    w: Array,
    bits: int,
    block: int,
    *,
    symmetric: bool = True,
    search: bool = False,
    importance: Array | None = None,
) -> Blocks:
    """Round a weight in blocks along its input axis.

    Args:
        w: [N, K], N output channels, any float type; may be a memory map.
        bits: 8 or 4.
        block: 16, 32, 64, 128 or 256 inputs that share a scale.
        symmetric: every zero point is the middle of the range; otherwise each block has its own.
        search: look for the scale of least squared error in each block.
        importance: fp32 [K], mean square of each input on calibration data; weighs the search's errors.

    Raises:
        NumericalError: a weight is NaN or infinite.
        UsageError: bits, block or a shape that does not fit.
    """
    check_layout(bits, block)
    (n, k), count = w.shape, -(-w.shape[1] // block)
    weigh = _importance(w, importance)
    weigh = in_blocks(np.ones(k, np.float32) if weigh is None else weigh, block)
    codes = np.empty((n, k), np.uint8)
    scales, zeros = np.empty((n, count), np.float32), np.empty((n, count), np.uint8)
    for rows in row_chunks((n, count * block)):
        part = in_blocks(finite(w[rows]), block)
        made, scales[rows], zeros[rows] = _block_part(part, bits, symmetric, weigh if search else None)
        codes[rows] = made.reshape(len(made), -1)[:, :k]
    return Blocks(codes, scales, None if symmetric else zeros, bits, block)


def dequantize(blocks: Blocks) -> Floats:
    """Return the weight that the blocks stand for, fp32 [N, K]."""
    n, k = blocks.codes.shape
    out = np.empty((n, k), np.float32)
    for rows in row_chunks((n, k)):
        codes = in_blocks(blocks.codes[rows].astype(np.float32), blocks.block)
        middle = np.float32(1 << (blocks.bits - 1))
        codes -= middle if blocks.zeros is None else blocks.zeros[rows, :, None].astype(np.float32)
        codes *= blocks.scales[rows, :, None]
        out[rows] = codes.reshape(len(codes), -1)[:, :k]
    return out


def row_chunks(shape: tuple[int, ...], elements: int = _CHUNK) -> Iterator[slice]:
    """Yield slices of rows of about ``elements`` numbers, so that temporary arrays stay far below one tensor."""
    step = max(1, elements // max(1, shape[1]))
    for start in range(0, shape[0], step):
        yield slice(start, start + step)


def in_blocks(values: Floats, block: int) -> Floats:
    """Return ``[..., K]`` as ``[..., ceil(K / block), block]``, filled up with zeros."""
    short = -values.shape[-1] % block
    if short:
        values = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, short)])
    return values.reshape(*values.shape[:-1], -1, block)


def finite(part: Array) -> Floats:
    """Return weights as fp32.

    Raises:
        NumericalError: a weight is NaN or infinite.
    """
    part = np.asarray(part, np.float32)
    if not np.isfinite(part).all():
        raise NumericalError(
            "a weight is NaN or infinite and cannot be rounded.\n  Check the checkpoint: pinnace verify BUNDLE"
        )
    return part


def check_layout(bits: int, block: int) -> None:
    """Refuse bits and block sizes that no kernel has.

    Raises:
        UsageError: it lists what there is.
    """
    if bits not in BITS:
        raise unknown_word("number of bits", str(bits), map(str, BITS))
    if block not in BLOCK_SIZES:
        raise unknown_word("block size", str(block), map(str, BLOCK_SIZES))


class _Best:
    """The best codes' statistics so far: a scale fitted to codes q leaves ``sum w^2 - wq^2 / qq`` as its error."""

    def __init__(self, wq: npt.NDArray[np.float64], qq: npt.NDArray[np.float64]) -> None:
        self.wq, self.qq = wq, qq

    @property
    def explained(self) -> npt.NDArray[np.float64]:
        return np.divide(self.wq**2, self.qq, out=np.zeros_like(self.wq), where=self.qq > 0)

    def fitted(self, otherwise: Array) -> Floats:
        """The scales of least squared error for the codes, ``otherwise`` where all codes are zero."""
        good = (self.qq > 0) & (self.wq != 0)
        fitted = np.divide(self.wq, self.qq, out=otherwise.astype(np.float64), where=good)
        return np.where(np.abs(fitted) < SMALLEST_SCALE, otherwise, fitted).astype(np.float32)


def _gain(part: Floats, codes: Floats, weigh: Floats | None) -> _Best:
    weighed = codes if weigh is None else codes * weigh
    return _Best(
        np.einsum("...k,...k->...", part, weighed, dtype=np.float64),
        np.einsum("...k,...k->...", codes, weighed, dtype=np.float64),
    )


def _keep_better(part: Floats, tried: Floats, weigh: Floats | None, best: _Best, kept: Floats) -> Array:
    """Put the tried codes in place wherever they explain more of the weight; return where."""
    gain = _gain(part, tried, weigh)
    better: Array = gain.explained > best.explained
    kept[better], best.wq[better], best.qq[better] = tried[better], gain.wq[better], gain.qq[better]
    return better


def _block_part(part: Floats, bits: int, symmetric: bool, weigh: Floats | None) -> tuple[Bytes, Floats, Bytes]:
    """Codes, scales and zeros of ``part`` [rows, blocks, block]; a search where ``weigh`` is given."""
    top, middle = (1 << bits) - 1, 1 << (bits - 1)
    low, high = np.minimum(part.min(axis=2), 0), np.maximum(part.max(axis=2), 0)
    starts = [_symmetric(low, high, middle)] if symmetric else [_asymmetric(low, high, top)]
    if weigh is not None:
        # With 2 ** bits codes around the middle one side reaches a step further; a negative scale swaps the sides.
        starts = [
            start
            for ratio in BLOCK_RATIOS
            for start in (
                [_symmetric(low * ratio, high * ratio, middle), _mirrored(low * ratio, high * ratio, middle)]
                if symmetric
                else [_asymmetric(low * ratio, high * ratio, top)]
            )
        ]
    scales, zeros = starts[0]
    kept = nearest(part, scales[..., None], -zeros[..., None], top - zeros[..., None])
    if weigh is not None:
        best = _gain(part, kept, weigh)
        for tried_scales, tried_zeros in starts[1:]:
            tried = nearest(part, tried_scales[..., None], -tried_zeros[..., None], top - tried_zeros[..., None])
            better = _keep_better(part, tried, weigh, best, kept)
            scales[better], zeros[better] = tried_scales[better], tried_zeros[better]
        scales = best.fitted(scales)
        kept = nearest(part, scales[..., None], -zeros[..., None], top - zeros[..., None])
    return (kept + zeros[..., None]).astype(np.uint8), scales, zeros.astype(np.uint8)


def _symmetric(low: Floats, high: Floats, middle: int) -> tuple[Floats, Floats]:
    scales = _steps(np.maximum(-low, high), middle - 1)
    return scales, np.full(scales.shape, middle, np.float32)


def _mirrored(low: Floats, high: Floats, middle: int) -> tuple[Floats, Floats]:
    """The larger side gets the code that the other side lacks."""
    scales = _steps(np.maximum(-low, high), middle)
    return np.where(high > -low, -scales, scales), np.full(scales.shape, middle, np.float32)


def _asymmetric(low: Floats, high: Floats, top: int) -> tuple[Floats, Floats]:
    scales = _steps(high - low, top)
    return scales, np.clip(np.rint(-low / scales), 0, top)


def _steps(span: Floats, count: int) -> Floats:
    """Scales that spread a span over a number of steps; 1 where there is nothing to spread."""
    scales = (span / np.float32(count)).astype(np.float32)
    return np.where(scales < SMALLEST_SCALE, np.float32(1), scales)


def nearest(part: Floats, scales: Floats, low: Any, high: Any) -> Floats:
    """Round to whole steps and clip; ``low`` and ``high`` broadcast."""
    codes: Floats = np.rint(part / scales)
    np.clip(codes, low, high, out=codes)
    return codes


def _importance(w: Array, importance: Array | None) -> Floats | None:
    if w.ndim != 2:
        raise UsageError(f"a weight to round has 2 dimensions (outputs, inputs), got shape {w.shape}")
    if importance is None:
        return None
    weigh = np.asarray(importance, np.float32)
    if weigh.shape != (w.shape[1],):
        raise UsageError(f"importance has one number for each of {w.shape[1]} inputs, got shape {weigh.shape}")
    if not (np.isfinite(weigh).all() and (weigh >= 0).all()):
        raise NumericalError("importance is NaN, infinite or negative; expected mean squares of calibration inputs")
    # An input that is always zero on calibration data still gets a little say: other data may have it.
    return weigh + np.float32(1e-6) * (weigh.mean() if weigh.any() else 1)
