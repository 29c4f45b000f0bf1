"""Round weights to int8 per output channel or to 8- or 4-bit blocks, with a search for the scale of least error."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pinnace.arrays import Array
from pinnace.errors import NumericalError, UsageError, unknown_word

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Codes = npt.NDArray[np.int8]

BITS: Final = (8, 4)
BLOCK_SIZES: Final = (16, 32, 64, 128, 256)
FULL_LIMIT: Final = 127
# x86 without VNNI adds the products of two neighbouring inputs in 16 bits, and cuts a sum beyond 32767 off. Activations
# reach 255: codes of one sign may add up to 128, and a small one leaves its room to a large neighbour.
PAIR_LIMIT: Final = 32767 // 255
# Shares of the largest magnitude that the search tries: what is clipped pays with finer steps for all the rest.
CHANNEL_RATIOS: Final = tuple(np.linspace(1.0, 0.5, 21).tolist())
BLOCK_RATIOS: Final = tuple(np.linspace(1.0, 0.6, 17).tolist())
_CHUNK: Final = 1 << 20  # elements worked on at a time; some ten arrays of this size live at once
SMALLEST_SCALE: Final = 1e-30  # below it a scale would be a denormal number, which ONNX Runtime may flush to zero


@dataclasses.dataclass(frozen=True)
class Blocks:
    """A weight in blocks along its input axis: ``w = (codes - 2 ** (bits - 1)) * scales``, one scale per block.

    Attributes:
        codes: uint8 [N, K], values below ``2 ** bits``.
        scales: fp32 [N, ceil(K / block)]; a scale may be negative.
        bits: 8 or 4.
        block: inputs that share a scale; the last block may be shorter.
    """

    codes: Bytes
    scales: Floats
    bits: int
    block: int


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
    search: bool = False,
    importance: Array | None = None,
) -> Blocks:
    """Round a weight in blocks along its input axis.

    Args:
        w: [N, K], N output channels, any float type; may be a memory map.
        bits: 8 or 4.
        block: 16, 32, 64, 128 or 256 inputs that share a scale.
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
    codes, scales = np.empty((n, k), np.uint8), np.empty((n, count), np.float32)
    for rows in row_chunks((n, count * block)):
        part = in_blocks(finite(w[rows]), block)
        made, scales[rows] = _block_part(part, bits, weigh if search else None)
        codes[rows] = made.reshape(len(made), -1)[:, :k]
    return Blocks(codes, scales, bits, block)


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
        sizes = ", ".join(map(str, BLOCK_SIZES))
        raise UsageError(f"no kernel has blocks of {block} inputs; expected one of {sizes}")


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


def _block_part(part: Floats, bits: int, weigh: Floats | None) -> tuple[Bytes, Floats]:
    """Codes and scales of ``part`` [rows, blocks, block]; a search where ``weigh`` is given."""
    middle = 1 << (bits - 1)
    low, high = -middle, middle - 1
    most, least = np.maximum(part.max(axis=2), 0), np.minimum(part.min(axis=2), 0)
    scales = _steps(np.maximum(-least, most), middle - 1)
    kept = nearest(part, scales[..., None], low, high)
    if weigh is not None:
        best = _gain(part, kept, weigh)
        for ratio in BLOCK_RATIOS:
            span = np.maximum(-least * ratio, most * ratio)
            # With 2 ** bits codes around the middle one side reaches a step further; a negative scale swaps the sides.
            mirrored = _steps(span, middle)
            for tried_scales in (_steps(span, middle - 1), np.where(most > -least, -mirrored, mirrored)):
                tried = nearest(part, tried_scales[..., None], low, high)
                better = _keep_better(part, tried, weigh, best, kept)
                scales[better] = tried_scales[better]
        scales = best.fitted(scales)
        kept = nearest(part, scales[..., None], low, high)
    return (kept + middle).astype(np.uint8), scales


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
