"""Data-free rounding to blocks whose scales and zero points forgive outliers: half-quadratic splitting, as in HQQ.

Weights have heavy tails, and least squares bends a block's scale towards its outliers. Here the error counts with an
exponent below 1: a few large errors cost little, many small ones a lot. The problem is split as Badri and Shaji (2023)
do: an auxiliary error, found by shrinking, takes the outliers' part, and the rest is least squares in closed form. They
move the zero point alone, in fractions; ONNX Runtime's fast kernels have whole zero points, which hardly move, so
the scale is fitted too.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from pinnace.errors import UsageError
from pinnace.quantize.rounding.nearest import (
    SMALLEST_SCALE,
    Array,
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


def half_quadratic_blocks(
    w: Array, bits: int, block: int, *, symmetric: bool = False, norm: float = NORM, rounds: int = ROUNDS
) -> Blocks:
    """Round a weight in blocks along its input axis, minimising ``sum |error| ** norm`` in each block.

    Scales of least squares are the start, and of all rounds each block keeps its best.

    Args:
        w: [N, K], N output channels, any float type.
        bits: 8 or 4.
        block: inputs that share a scale.
        symmetric: zero points stay in the middle of the range.
        norm: exponent, more than 0 and at most 1.
        rounds: alternations of shrinking and fitting.
    """
    if not 0 < norm <= 1:
        raise UsageError(f"norm is {norm}; expected more than 0 and at most 1")
    start = block_codes(w, bits, block, symmetric=symmetric, search=True)
    middle, codes = 1 << (bits - 1), np.empty_like(start.codes)
    scales = start.scales.copy()
    zeros = np.full(scales.shape, middle, np.uint8) if start.zeros is None else start.zeros.copy()
    top, counted = np.float32(2 * middle - 1), in_blocks(np.ones(w.shape[1], np.float32), block)
    for rows in row_chunks((len(w), scales.shape[1] * block)):
        part = in_blocks(finite(w[rows]), block)
        grid = _Grid(scales[rows, :, None], zeros[rows, :, None].astype(np.float32))
        best = _best_grid(part, grid, top, None if symmetric else counted, norm, rounds)
        scales[rows], zeros[rows] = best.scales[..., 0], best.zeros[..., 0].astype(np.uint8)
        made = nearest(part, best.scales, -best.zeros, top - best.zeros) + best.zeros
        codes[rows] = made.reshape(len(made), -1)[:, : w.shape[1]].astype(np.uint8)
    return Blocks(codes, scales, None if symmetric else zeros, bits, block)


class _Grid(NamedTuple):
    """Scales and zeros [rows, blocks, 1] of blocks."""

    scales: Floats
    zeros: Floats


def _best_grid(part: Floats, grid: _Grid, top: np.float32, counted: Floats | None, norm: float, rounds: int) -> _Grid:
    """The grid of least error among all rounds, for ``part`` [rows, blocks, block]; zeros move where ``counted`` says
    which columns [blocks, block] are weights.

    A last block is filled up with zeros, which every grid has: they add no error.
    """
    best, least = grid, np.full_like(grid.scales, np.inf)
    for index in range(rounds):
        steps = nearest(part, grid.scales, -grid.zeros, top - grid.zeros)
        error: Floats = part - steps * grid.scales
        cost = (np.abs(error) ** norm).sum(axis=2, keepdims=True)
        better = cost < least
        least = np.where(better, cost, least)
        best = _Grid(*(np.where(better, new, old) for new, old in zip(grid, best, strict=True)))
        target = part - _shrunk(error / grid.scales, norm, np.float32(_CLOSENESS * _GROWTH**index)) * grid.scales
        grid = _refitted(target, steps, grid, top, counted)
    return best


def _shrunk(error: Floats, norm: float, closeness: np.float32) -> Floats:
    """The auxiliary error that balances its own norm and its distance to the error (generalised soft threshold)."""
    size = np.abs(error)
    shrunk: Floats = np.sign(error) * np.maximum(
        size - np.maximum(size, _TINY) ** (norm - 1) / np.float32(closeness), 0
    )
    return shrunk


def _refitted(target: Floats, steps: Floats, grid: _Grid, top: np.float32, counted: Floats | None) -> _Grid:
    """The grid of least squares for the target: first the whole zero, then the scale."""
    zeros = grid.zeros
    if counted is not None:
        moved = (steps - target / grid.scales).sum(axis=2, keepdims=True) / counted.sum(axis=1, keepdims=True)
        zeros = np.clip(np.rint(grid.zeros + moved), 0, top)
        steps = steps + (grid.zeros - zeros) * counted
    square = (steps * steps).sum(axis=2, keepdims=True)
    fitted = np.divide((target * steps).sum(axis=2, keepdims=True), square, out=grid.scales.copy(), where=square > 0)
    return _Grid(np.where(np.abs(fitted) > SMALLEST_SCALE, fitted, grid.scales), zeros)
