"""Error-compensating rounding: what one input's rounding breaks, the inputs that are rounded later make good.

The output error of a weight row is ``e H e^T`` for its error e and the Gram matrix H of calibration inputs. With
``H = M D M^T``, M unit upper triangular, it is the sum over inputs k of ``D_k (e_k + sum of e_j M_jk, j < k)^2``, so
each weight is rounded after adding what the earlier errors ask of it. This gives what GPTQ (Frantar et al., 2022)
computes with a Cholesky factor of the inverse, in the form of LDLQ (Chee et al., 2023), which needs no inverse.
"""

from __future__ import annotations

import functools
from typing import Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from pinnace.arrays import Array
from pinnace.errors import NumericalError, UsageError
from pinnace.quantize.rounding.nearest import (
    FULL_LIMIT,
    Blocks,
    Codes,
    Floats,
    block_codes,
    channel_codes,
    finite,
    fit_pairs,
    row_chunks,
)

DAMPING: Final = 0.01
LIMIT_BYTES: Final = 256 << 20
_PIECE: Final = 256  # pieces are multiples of it, so that no block of weights lies in two
_STEP: Final = 128  # columns between two products that carry errors over to the rest
_TRIES: Final = 6  # dampings, each ten times the one before
_ROWS: Final = 1 << 22  # numbers of a weight worked on at a time


# Of one piece: its columns, the order to round them in, and M of the ordered piece.
Piece: TypeAlias = tuple[slice, npt.NDArray[np.intp], Floats]


class Hessian:
    """The Gram matrix of a projection's inputs, gathered from calibration data: half of the error's second derivative.

    Where the whole matrix would need more than ``limit`` bytes, only its diagonal pieces are kept: inputs of different
    pieces then do not make up for each other.
    """

    def __init__(self, width: int, limit: int = LIMIT_BYTES) -> None:
        """Begin with no data.

        Args:
            width: K, the projection's inputs.
            limit: bytes that the fp32 matrix may take; rounding needs as many again, and three times one piece for a
                moment.
        """
        largest = max(_PIECE, limit // (4 * width) // _PIECE * _PIECE)
        count = -(-width // largest)
        size = -(-width // count // _PIECE) * _PIECE if count > 1 else width
        self.width, self.rows = width, 0
        self.slices = tuple(slice(start, min(start + size, width)) for start in range(0, width, size))
        self._sums = [np.zeros((s.stop - s.start,) * 2, np.float32) for s in self.slices]
        self._divisors: Floats | None = None

    @property
    def whole(self) -> bool:
        """Whether the matrix is kept whole rather than in diagonal pieces."""
        return len(self.slices) == 1

    @property
    def importance(self) -> Floats:
        """Mean square of each input, fp32 [K]."""
        diagonal: Floats = np.concatenate([np.diagonal(part) for part in self._sums])
        if self._divisors is not None:
            diagonal = diagonal / (self._divisors * self._divisors)
        return diagonal / np.float32(max(self.rows, 1))

    def add(self, x: Array) -> None:
        """Take in calibration inputs.

        Args:
            x: [..., K], any float type; every row counts, so leave padding out.

        Raises:
            NumericalError: an input is NaN or infinite.
        """
        if x.shape[-1] != self.width:
            raise UsageError(f"calibration inputs have {x.shape[-1]} columns, expected {self.width}")
        rows = np.ascontiguousarray(x, np.float32).reshape(-1, self.width)
        if not np.isfinite(rows).all():
            raise NumericalError("a calibration input is NaN or infinite; the fp32 model must run cleanly on the data")
        self.rows += len(rows)
        for part, columns in zip(self._sums, self.slices, strict=True):
            part += rows[:, columns].T @ rows[:, columns]

    def divided(self, divisors: Floats | None) -> Hessian:
        """The Hessian of the same inputs, each divided by a number; nothing may be added to either afterwards.

        The matrix is shared and divided where it is read: all groups wait for their turn at once, and copies of their
        matrices would need as much memory again.

        Args:
            divisors: fp32 [K]; None leaves the inputs as they are.
        """
        if divisors is None:
            return self
        made = Hessian.__new__(Hessian)
        made.width, made.rows, made.slices = self.width, self.rows, self.slices
        made._sums = self._sums
        made._divisors = divisors if self._divisors is None else self._divisors * divisors
        return made

    def factors(self, damping: float = DAMPING) -> tuple[Piece, ...]:
        """For each piece: its columns, the order to round them in, and M of the ordered piece, fp32.

        Inputs of much energy come first, while many others can still make up for them.

        Args:
            damping: share of the mean diagonal that is added to it. Inputs that were always zero, and inputs that are
                sums of others, would otherwise have no factor.
        """
        return _factors(self, self.rows, damping)


@functools.lru_cache(maxsize=1)  # the projections of one group come one after another
def _factors(hessian: Hessian, rows: int, damping: float) -> tuple[Piece, ...]:
    """`Hessian.factors`; its ``rows`` tell whether more was added since."""
    found = []
    importance = hessian.importance
    for part, columns in zip(hessian._sums, hessian.slices, strict=True):
        order = np.argsort(-importance[columns], kind="stable")
        ordered = part[np.ix_(order, order)]
        if hessian._divisors is not None:
            each = hessian._divisors[columns][order]
            ordered /= np.outer(each, each)
        found.append((columns, order, _unit_upper(ordered, damping)))
    return tuple(found)


def compensated_channels(
    w: Array, hessian: Hessian, reduced: bool, *, search: bool = True, damping: float = DAMPING
) -> tuple[Codes, Floats]:
    """Round a weight to symmetric int8 with one scale for each output channel, making good as it goes.

    Args:
        w: [N, K], N output channels, any float type.
        hessian: of the projection's inputs.
        reduced: see `rounding.channel_codes`.
        search: look for scales of least error, weighed by the inputs' mean squares.
        damping: see `Hessian.factors`.

    Returns:
        codes int8 [N, K] and scales fp32 [N].
    """
    importance = _importance(w, hessian, search)
    _, scales = channel_codes(w, reduced, search=search, importance=importance)
    codes = np.empty(w.shape, np.int8)
    grid = _Grid(scales[:, None], w.shape[1], 0, -FULL_LIMIT, FULL_LIMIT)
    _compensate(w, hessian, damping, grid, codes)
    for rows in row_chunks(w.shape) if reduced else ():
        fit_pairs(codes[rows])
    return codes, scales


def compensated_blocks(
    w: Array,
    hessian: Hessian,
    bits: int,
    block: int,
    *,
    search: bool = True,
    damping: float = DAMPING,
) -> Blocks:
    """Round a weight in blocks along its input axis, making good as it goes; scales are fixed beforehand.

    Args:
        w: [N, K], N output channels, any float type.
        hessian: of the projection's inputs.
        bits: 8 or 4.
        block: inputs that share a scale.
        search: look for scales of least error, weighed by the inputs' mean squares.
        damping: see `Hessian.factors`.
    """
    importance = _importance(w, hessian, search)
    start = block_codes(w, bits, block, search=search, importance=importance)
    middle, codes = 1 << (bits - 1), np.empty(w.shape, np.uint8)
    _compensate(w, hessian, damping, _Grid(start.scales, block, middle, 0, 2 * middle - 1), codes)
    return Blocks(codes, start.scales, bits, block)


class _Grid(NamedTuple):
    """The values that codes stand for: ``(code - zero) * scales``, one scale [N, G] for ``width`` inputs."""

    scales: Floats
    width: int
    zero: int
    low: int
    high: int


def _compensate(w: Array, hessian: Hessian, damping: float, grid: _Grid, codes: Array) -> None:
    """Fill ``codes`` [N, K]."""
    for columns, order, unit in hessian.factors(damping):
        places = columns.start + order
        for rows in row_chunks((len(w), len(order)), _ROWS):
            # Inputs are rows here, so that each step reads and writes memory in one run.
            wanted = np.ascontiguousarray(finite(w[rows])[:, places].T)
            scales = np.ascontiguousarray(grid.scales[rows].T)
            made = _rounded(wanted, unit, scales, places // grid.width, grid)
            codes[rows, places] = made.T


def _rounded(wanted: Floats, unit: Floats, scales: Floats, groups: npt.NDArray[np.intp], grid: _Grid) -> Floats:
    """Codes [P, n] of ordered weights [P, n], with the unit upper triangular factor [P, P] of their inputs."""
    codes, errors = np.empty_like(wanted), np.zeros_like(wanted)
    for start in range(0, len(wanted), _STEP):
        stop = min(start + _STEP, len(wanted))
        targets = wanted[start:stop] + unit[:start, start:stop].T @ errors[:start]
        inner = unit[start:stop, start:stop]
        for j in range(stop - start):
            k, group = start + j, groups[start + j]
            target = targets[j] + inner[:j, j] @ errors[start:k]
            code = np.rint(target / scales[group]) + grid.zero
            np.clip(code, grid.low, grid.high, out=codes[k])
            errors[k] = wanted[k] - (codes[k] - grid.zero) * scales[group]
    return codes


def _unit_upper(matrix: Floats, damping: float) -> Floats:
    """M of ``matrix = M D M^T``, damped until it is positive definite."""
    diagonal = np.diagonal(matrix).astype(np.float64)
    step = damping * (float(diagonal.mean()) or 1.0)
    for _ in range(_TRIES):
        damped = matrix.copy()
        damped[np.diag_indices(len(damped))] += np.float32(step)
        try:
            return _factor(damped)
        except np.linalg.LinAlgError:
            step *= 10
    raise NumericalError("the Gram matrix of calibration inputs has no factor, however damped: its numbers overflow")


def _factor(matrix: Floats) -> Floats:
    """Turn a positive definite matrix into M, in place and from the last block to the first.

    Nearly all the work is matrix products: LAPACK's own factorization waits for its threads on a busy machine.
    """
    for stop in range(len(matrix), 0, -_PIECE):
        last = slice(max(0, stop - _PIECE), stop)
        first = slice(0, last.start)
        # The Cholesky factor of a matrix read backwards is, read backwards again, upper triangular.
        upper = np.linalg.cholesky(matrix[last, last][::-1, ::-1].astype(np.float64))[::-1, ::-1]
        beside = matrix[first, last] @ np.linalg.inv(upper).T.astype(np.float32)
        matrix[first, first] -= beside @ beside.T
        pivots = np.diagonal(upper)
        matrix[last, last], matrix[first, last], matrix[last, first] = upper / pivots, beside / pivots, 0
    return matrix


def _importance(w: Array, hessian: Hessian, search: bool) -> Floats | None:
    if w.ndim != 2 or w.shape[1] != hessian.width:
        raise UsageError(f"a weight with {hessian.width} inputs is expected, got shape {w.shape}")
    return hessian.importance if search else None
