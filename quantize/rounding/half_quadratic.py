"""Data-free rounding to blocks whose scales forgive outliers: half-quadratic splitting, as in HQQ.

Weights have heavy tails, and least squares bends a block's scale towards its outliers. Here the error counts with an
exponent below 1: a few large errors cost little, many small ones a lot. The problem is split as Badri and Shaji (2023)
do: an auxiliary error, found by shrinking, takes the outliers' part, and the rest is least squares in closed form. They
move the zero point alone, in fractions; ONNX Runtime's fast kernels have whole ones, which hardly move, so that here
the scale is fitted and zero stays in the middle.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from pinnace.arrays import Array
from pinnace.errors import UsageError
from pinnace.quantize.rounding.nearest import (
    SMALLEST_SCALE,
    Blocks,
    Floats,
    block_codes,
    finite,
    in_blocks,
    nearest,
    row_chunks,
)

NORM: Final = 0.7
ROUNDS: Final = 20
# How closely the auxiliary error follows the error, in steps of the grid: closer in each round.
_CLOSENESS: Final = 10.0
_GROWTH: Final = 1.01
_TINY: Final = 1e-6


def half_quadratic_blocks(w: Array, bits: int, block: int, *, norm: float = NORM, rounds: int = ROUNDS) -> Blocks:
    """Round a weight in blocks along its input axis, minimising ``sum |error| ** norm`` in each block.

    Scales of least squares are the start, and of all rounds each block keeps its best.

    Args:
        w: [N, K], N output channels, any float type.
        bits: 8 or 4.
        block: inputs that share a scale.
        norm: exponent, more than 0 and at most 1.
        rounds: alternations of shrinking and fitting.
    """
    if not 0 < norm <= 1:
        raise UsageError(f"norm is {norm}; expected more than 0 and at most 1")
    start = block_codes(w, bits, block, search=True)
    middle, codes, scales = 1 << (bits - 1), np.empty_like(start.codes), start.scales.copy()
    for rows in row_chunks((len(w), scales.shape[1] * block)):
        part = in_blocks(finite(w[rows]), block)
        best = _best_scales(part, scales[rows, :, None], middle, norm, rounds)
        scales[rows] = best[..., 0]
        made = nearest(part, best, -middle, middle - 1) + middle
        codes[rows] = made.reshape(len(made), -1)[:, : w.shape[1]].astype(np.uint8)
    return Blocks(codes, scales, bits, block)


def _best_scales(part: Floats, scales: Floats, middle: int, norm: float, rounds: int) -> Floats:
    """The scales [rows, blocks, 1] of least error among all rounds, for ``part`` [rows, blocks, block].

    A last block is filled up with zeros, which every scale has: they add no error.
    """
    best, least = scales, np.full_like(scales, np.inf)
    for index in range(rounds):
        steps = nearest(part, scales, -middle, middle - 1)
        error: Floats = part - steps * scales
        cost = (np.abs(error) ** norm).sum(axis=2, keepdims=True)
        better = cost < least
        best, least = np.where(better, scales, best), np.where(better, cost, least)
        target = part - _shrunk(error / scales, norm, np.float32(_CLOSENESS * _GROWTH**index)) * scales
        scales = _refitted(target, steps, scales)
    return best


def _shrunk(error: Floats, norm: float, closeness: np.float32) -> Floats:
    """The auxiliary error that balances its own norm and its distance to the error (generalised soft threshold)."""
    size = np.abs(error)
    shrunk: Floats = np.sign(error) * np.maximum(
        size - np.maximum(size, _TINY) ** (norm - 1) / np.float32(closeness), 0
    )
    return shrunk


def _refitted(target: Floats, steps: Floats, scales: Floats) -> Floats:
    """The scales of least squares for the target."""
    square = (steps * steps).sum(axis=2, keepdims=True)
    fitted = np.divide((target * steps).sum(axis=2, keepdims=True), square, out=scales.copy(), where=square > 0)
    return np.where(np.abs(fitted) > SMALLEST_SCALE, fitted, scales)
