"""Saturating sums: against the instructions done one at a time, and proofs against every activation that could be."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pinnace.errors import UsageError
from pinnace.quantize.saturation import can_saturate, exact_product, saturated_share, saturating_product


def by_hand(a: NDArray[Any], w: NDArray[Any]) -> tuple[NDArray[np.int64], float]:
    """vpmaddubsw, vpmaddwd and vpaddd, one sum at a time."""
    out, cut, sums = np.zeros((a.shape[0], w.shape[1]), np.int64), 0, 0
    for m, n in itertools.product(range(a.shape[0]), range(w.shape[1])):
        for k in range(0, a.shape[1], 2):
            products = [int(x) * int(y) for x, y in zip(a[m, k : k + 2], w[k : k + 2, n], strict=True)]
            kept = max(-32768, min(32767, sum(products)))
            cut, sums = cut + (kept != sum(products)), sums + 1
            out[m, n] += kept
    return out, cut / sums


@pytest.mark.parametrize("inputs", [32, 33, 1])
@pytest.mark.parametrize("limit", [127, 90, 64])
def test_products_are_those_of_the_instructions(inputs: int, limit: int) -> None:
    random = np.random.default_rng(limit)
    a = random.integers(0, 256, (6, inputs)).astype(np.uint8)
    w = random.integers(-limit, limit + 1, (inputs, 5)).astype(np.int8)
    a[0], w[:, 0], w[:, 1] = 255, limit, -limit
    expected, share = by_hand(a, w)
    np.testing.assert_array_equal(saturating_product(a, w), expected)
    assert saturated_share(a, w) == pytest.approx(share)
    np.testing.assert_array_equal(exact_product(a, w), a.astype(np.int64) @ w.astype(np.int64))
    assert can_saturate(w) is (limit > 64 and inputs > 1)
    assert (share > 0) is can_saturate(w)


def test_the_proof_knows_signs_and_neighbours() -> None:
    def column(*weights: int) -> NDArray[np.int8]:
        return np.array(weights, np.int8)[:, None]

    assert not can_saturate(column(64, 64)) and not can_saturate(column(127, 1)) and not can_saturate(column(-127, -1))
    assert can_saturate(column(64, 65)) and can_saturate(column(127, 2)) and can_saturate(column(-65, -64))
    assert not can_saturate(column(127, -128))  # opposite signs never add up
    assert not can_saturate(column(1, 127, 1, 127)) and can_saturate(column(0, 1, 127, 127))
    assert not can_saturate(column(0, 127, 127, 0))  # no neighbours


def test_the_proof_is_exact() -> None:
    """Every pair of weights near the border, against the largest activations that could be."""
    for first, second in itertools.product(range(-128, 128, 5), (-128, -127, -65, -64, -2, 0, 1, 2, 63, 64, 65, 127)):
        w = np.array([[first], [second]], np.int8)
        a = np.array(list(itertools.product((0, 1, 254, 255), repeat=2)), np.uint8)
        assert can_saturate(w) is bool((saturating_product(a, w) != exact_product(a, w)).any())


def test_a_provoked_saturation_is_wrong_by_a_lot() -> None:
    a, w = np.full((1, 64), 255, np.uint8), np.full((64, 1), 127, np.int8)
    assert exact_product(a, w)[0, 0] == 255 * 127 * 64
    assert saturating_product(a, w)[0, 0] == 32 * 32767  # about half of it
    assert saturated_share(a, w) == 1.0


def test_wrong_types_are_told() -> None:
    a, w = np.zeros((2, 4), np.uint8), np.zeros((4, 3), np.int8)
    with pytest.raises(UsageError, match="activations are uint8"):
        saturated_share(a.astype(np.int8), w)
    with pytest.raises(UsageError, match="4 inputs"):
        saturating_product(a, w[:3])
    with pytest.raises(UsageError, match="weights are int8"):
        can_saturate(w.astype(np.int32))
    assert saturated_share(a[:0], w) == 0.0
