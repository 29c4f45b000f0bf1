"""What int8 products give on CPUs that add pairs of products in 16 bits, and a proof that weights are safe there.

x86 without VNNI multiplies four activations by four weights with vpmaddubsw: two neighbouring products are added in 16
bits, and a sum beyond -32768..32767 is cut to it. Then vpmaddwd and vpaddd add in 32 bits, exactly. Neighbours are
inputs 2i and 2i + 1 in all of ONNX Runtime's kernels: the tests compare them bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pinnace.errors import UsageError

Integers = npt.NDArray[np.int32]
LOWEST: Final = -(1 << 15)
HIGHEST: Final = (1 << 15) - 1
LARGEST_ACTIVATION: Final = 255


def can_saturate(w: npt.NDArray[Any]) -> bool:
    """Whether some activations would saturate a 16-bit sum; False is a proof that none ever will.

    Args:
        w: int8 [K, N], K inputs.
    """
    return bool(_risky(_pairs(w)).any())


def exact_product(a: npt.NDArray[Any], w: npt.NDArray[Any]) -> Integers:
    """Multiply exactly.

    Args:
        a: uint8 [M, K].
        w: int8 [K, N].

    Returns:
        int32 [M, N].
    """
    _check(a, w)
    # Whole numbers far below 2 ** 53: float64 is exact, and much faster than numpy's integer product.
    return (a.astype(np.float64) @ w.astype(np.float64)).astype(np.int32)


def saturating_product(a: npt.NDArray[Any], w: npt.NDArray[Any]) -> Integers:
    """Multiply as a CPU without VNNI does, bit for bit.

    Args:
        a: uint8 [M, K].
        w: int8 [K, N].

    Returns:
        int32 [M, N].
    """
    product = exact_product(a, w)
    for columns, lost in _lost(a, w):
        product[:, columns] -= lost
    return product


def saturated_share(a: npt.NDArray[Any], w: npt.NDArray[Any]) -> float:
    """The share of 16-bit sums that saturate, of all M * ceil(K / 2) * N.

    Args:
        a: uint8 [M, K].
        w: int8 [K, N].
    """
    _check(a, w)
    sums = a.shape[0] * -(-a.shape[1] // 2) * w.shape[1]
    return sum(int(np.count_nonzero(lost)) for _, lost in _lost(a, w)) / sums if sums else 0.0


def _lost(a: npt.NDArray[Any], w: npt.NDArray[Any]) -> Iterator[tuple[npt.NDArray[np.int64], Integers]]:
    """For each pair of inputs that can saturate: its risky columns, and what their sums lose [M, columns]."""
    pairs, rows = _pairs(w), a.astype(np.int32)
    rows = np.pad(rows, [(0, 0), (0, rows.shape[1] % 2)])
    risky = _risky(pairs)
    for i in np.flatnonzero(risky.any(axis=1)):
        columns = np.flatnonzero(risky[i])
        sums = rows[:, 2 * i, None] * pairs[i, 0, columns] + rows[:, 2 * i + 1, None] * pairs[i, 1, columns]
        yield columns, sums - np.clip(sums, LOWEST, HIGHEST)


def _pairs(w: npt.NDArray[Any]) -> Integers:
    """Weights [ceil(K / 2), 2, N]; a missing last one is zero."""
    if w.ndim != 2 or w.dtype != np.int8:
        raise UsageError(f"weights are int8 [inputs, outputs], got {w.dtype} {list(w.shape)}")
    filled = np.pad(w.astype(np.int32), [(0, w.shape[0] % 2), (0, 0)])
    return filled.reshape(-1, 2, w.shape[1])


def _risky(pairs: Integers) -> npt.NDArray[np.bool_]:
    """Where the largest or the smallest sum that activations can make leaves 16 bits [ceil(K / 2), N].

    Activations are not negative, so weights of opposite signs never add up.
    """
    high = LARGEST_ACTIVATION * np.maximum(pairs, 0).sum(axis=1)
    low = LARGEST_ACTIVATION * np.minimum(pairs, 0).sum(axis=1)
    risky: npt.NDArray[np.bool_] = (high > HIGHEST) | (low < LOWEST)
    return risky


def _check(a: npt.NDArray[Any], w: npt.NDArray[Any]) -> None:
    if a.ndim != 2 or a.dtype != np.uint8:
        raise UsageError(f"activations are uint8 [rows, inputs], got {a.dtype} {list(a.shape)}")
    if w.ndim != 2 or w.dtype != np.int8 or w.shape[0] != a.shape[1]:
        raise UsageError(f"weights are int8 [{a.shape[1]} inputs, outputs], got {w.dtype} {list(w.shape)}")
