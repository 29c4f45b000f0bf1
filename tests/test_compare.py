"""The measure of two results, and the gates that judge it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pinnace.compare import GATES, Difference, Gate, difference

TIGHT = Gate(max_abs=1e-4, min_cosine=0.9999, min_top1=1.0)


def test_equal_results() -> None:
    array = np.random.default_rng(0).standard_normal((2, 3, 5)).astype(np.float32)
    found = difference(array, array.copy())
    assert (found.max_abs, found.scale, found.rows, found.top1_kept) == (0.0, float(np.abs(array).max()), 6, 6)
    assert found.cosine == pytest.approx(1.0)
    assert found.miss(TIGHT) == ""


def test_the_largest_gap_and_the_worst_row_count() -> None:
    want = np.array([[1.0, 0.0], [3.0, 4.0]])
    got = np.array([[1.0, 0.0], [4.0, 3.0]])
    found = difference(got, want)
    assert found.max_abs == 1.0
    assert found.scale == 4.0
    assert found.cosine == pytest.approx(24 / 25)
    assert (found.rows, found.top1_kept) == (2, 1)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_a_number_that_is_none_never_passes(bad: float, side: int) -> None:
    arrays = [np.ones((2, 3)), np.ones((2, 3))]
    arrays[side][1, 2] = bad
    found = difference(arrays[0], arrays[1])
    for gate in GATES.values():
        assert "NaN or infinity" in found.miss(gate)


def test_infinities_at_the_same_place_do_not_agree() -> None:
    both = np.array([[np.inf, 1.0]])
    assert difference(both, both).miss(TIGHT)


@pytest.mark.parametrize("shape", [(3, 2), (2,), (2, 3, 1), ()])
def test_another_shape_never_passes(shape: tuple[int, ...]) -> None:
    assert difference(np.zeros(shape), np.zeros((2, 3))).miss(GATES["fp16"])


def test_nothing_to_compare() -> None:
    found = difference(np.zeros((0, 4)), np.zeros((0, 4)))
    assert found == Difference(0.0, 0.0, 1.0, 0, 0)
    assert found.miss(TIGHT) == ""


def test_single_numbers() -> None:
    assert difference(np.array(2.0), np.array(2.0)).miss(TIGHT) == ""
    assert "largest difference" in difference(np.array(2.0), np.array(2.1)).miss(TIGHT)


def test_rows_of_zeros_agree_with_zeros_alone() -> None:
    zeros, ones = np.zeros((1, 3)), np.ones((1, 3))
    loose = Gate(max_abs=None, min_cosine=0.9, min_top1=0.0)
    assert difference(zeros, zeros).miss(loose) == ""
    assert "cosine" in difference(zeros, ones).miss(loose)
    assert "cosine" in difference(ones, zeros).miss(loose)


def test_noise_has_no_direction() -> None:
    assert difference(np.array([[1e-8, -1e-8]]), np.array([[-1e-8, 1e-8]])).miss(TIGHT) == ""


def test_one_entry_is_judged_by_its_difference() -> None:
    near, far = np.array([[0.0003], [5.0]]), np.array([[-0.0002], [5.0]])
    assert difference(near, far).miss(GATES["fp16"]) == ""
    assert "largest difference" in difference(np.array([[1.0]]), np.array([[2.0]])).miss(GATES["fp16"])


def test_a_wrong_scale_is_seen() -> None:
    want = np.random.default_rng(0).standard_normal((4, 8))
    found = difference(want * 1.2, want)
    assert found.cosine == pytest.approx(1.0)
    assert "largest difference" in found.miss(GATES["fp16"])


@pytest.mark.parametrize(
    ("got", "kept"), [([1.0, 1.0, 0.0], 1), ([1.0, 1.0 + 1e-9, 0.0], 1), ([0.9, 1.0, 0.0], 1), ([0.0, 0.9, 1.0], 0)]
)
def test_ties_of_the_reference_count_as_kept(got: list[float], kept: int) -> None:
    assert difference(np.array([got]), np.array([[1.0, 1.0, 0.0]])).top1_kept == kept


def test_how_close_a_tie_is_depends_on_the_precision() -> None:
    want, got = np.array([[1000.0, 999.5]]), np.array([[999.0, 999.5]])
    assert difference(got, want).top1_kept == 0
    assert difference(got, want, GATES["fp16"].tie).top1_kept == 1
    assert difference(np.array([[0.0, 1.0]]), np.array([[1.0, 0.9]]), GATES["fp16"].tie).top1_kept == 0


def test_the_bound_grows_with_numbers_above_one_only() -> None:
    gate = Gate(max_abs=0.01, min_cosine=0.0, min_top1=0.0)
    assert difference(np.array([100.9]), np.array([100.0])).miss(gate) == ""
    assert difference(np.array([101.1]), np.array([100.0])).miss(gate)
    assert difference(np.array([0.009]), np.array([0.001])).miss(gate) == ""
    assert difference(np.array([0.012]), np.array([0.001])).miss(gate)


def test_merged_differences_keep_the_worse_of_both() -> None:
    merged = Difference(0.1, 5.0, 0.99, 10, 9).merge(Difference(0.2, 3.0, 0.98, 4, 4))
    assert merged == Difference(0.2, 5.0, 0.98, 14, 13)


def test_a_share_of_rows() -> None:
    gate = Gate(max_abs=None, min_cosine=0.0, min_top1=0.995)
    assert Difference(0.0, 1.0, 1.0, 200, 199).miss(gate) == ""
    assert "198 of 200" in Difference(0.0, 1.0, 1.0, 200, 198).miss(gate)


def test_the_gates_are_those_of_the_contract() -> None:
    assert GATES["fp32"].max_abs == 1e-4
    assert (GATES["fp16"].min_cosine, GATES["fp16"].min_top1) == (0.999, 0.995)


def test_half_precision_is_measured_without_overflow() -> None:
    large = np.full((1, 4), 60000, np.float16)
    assert difference(large, -large).max_abs == 120000
