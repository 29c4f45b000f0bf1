"""Rounding of weights: every scheme against its definition and against round-to-nearest, with and without data."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pinnace.errors import NumericalError, UsageError
from pinnace.quantize.rounding import gptq
from pinnace.quantize.rounding import nearest as rounding
from pinnace.quantize.rounding.gptq import Hessian, compensated_blocks, compensated_channels
from pinnace.quantize.rounding.half_quadratic import half_quadratic_blocks
from pinnace.quantize.rounding.nearest import BITS, BLOCK_SIZES, Blocks, block_codes, channel_codes
from tests.packed_blocks import dequantize
from tests.saturating_sums import can_saturate

Floats = NDArray[np.float32]
N, K = 48, 300  # 300 is a multiple of no block


def weight(rows: int = N, columns: int = K, seed: int = 0) -> Floats:
    """Heavy tails, as real weights have them."""
    return (np.random.default_rng(seed).standard_t(4, (rows, columns)) * 0.05).astype(np.float32)


def correlated(rows: int, columns: int, seed: int = 1) -> Floats:
    """Inputs that share a few directions and differ in size, as activations do."""
    random = np.random.default_rng(seed)
    mixed = random.standard_normal((rows, 24)) @ np.random.default_rng(99).standard_normal((24, columns))
    sizes = np.exp(np.random.default_rng(98).standard_normal(columns))
    return ((mixed + random.standard_normal((rows, columns))) * sizes).astype(np.float32)


def lost(w: Floats, rounded: Floats, x: Floats) -> float:
    """Relative error of the outputs."""
    return float(np.linalg.norm(x @ (w - rounded).T) / np.linalg.norm(x @ w.T))


def plain(w: Floats, bits: int, block: int) -> Floats:
    """Round to nearest by its definition, a block at a time."""
    out, top = np.empty_like(w), 2**bits - 1
    for row, made in zip(w.astype(np.float64), out, strict=True):
        for start in range(0, len(row), block):
            part = row[start : start + block]
            zero = 2 ** (bits - 1)
            scale = np.abs(part).max() / (zero - 1)
            made[start : start + block] = (np.clip(np.rint(part / scale) + zero, 0, top) - zero) * scale
    return out


@pytest.mark.parametrize("block", BLOCK_SIZES)
@pytest.mark.parametrize("bits", BITS)
def test_blocks_are_what_their_definition_says(bits: int, block: int) -> None:
    w = weight()
    blocks = block_codes(w, bits, block)
    assert blocks.codes.shape == w.shape and blocks.codes.max() < 2**bits
    assert blocks.scales.shape == (N, -(-K // block))
    made = dequantize(blocks)
    # fp32 and fp64 differ where a weight lies half-way between two codes.
    assert np.mean(~np.isclose(made, plain(w, bits, block), rtol=1e-5, atol=1e-6)) < 1e-3
    steps = np.repeat(blocks.scales, block, axis=1)[:, :K]
    assert (np.abs(made - w) <= 0.501 * steps).all()


@pytest.mark.parametrize("reduced", [True, False])
def test_channels_are_what_their_definition_says(reduced: bool) -> None:
    w = weight()
    codes, scales = channel_codes(w, reduced)
    pairs = np.stack([w[:, ::2], w[:, 1::2]], axis=2)
    together = np.maximum(np.maximum(pairs, 0).sum(2), np.maximum(-pairs, 0).sum(2))
    widest = together if reduced else np.abs(w)
    np.testing.assert_allclose(scales, widest.max(axis=1) / 127, rtol=1e-6)
    assert (np.abs(codes * scales[:, None] - w) <= 0.5001 * scales[:, None]).all()
    assert can_saturate(codes.T) is not reduced
    assert np.abs(codes).max() <= 127 and (reduced or (np.abs(codes).max(axis=1) == 127).all())
    assert 1 < (scales / channel_codes(w, False)[1]).max() < 2 or not reduced  # always finer than codes up to 64


def test_reduced_range_never_saturates() -> None:
    w = weight(64, 256)
    w[:, :2] = np.abs(w).max() * 3  # neighbours as large as can be
    for codes in (channel_codes(w, True)[0], channel_codes(w, True, search=True)[0]):
        assert (codes[:, :2].astype(int).sum(1) == rounding.PAIR_LIMIT).all()
        assert not can_saturate(codes.T)
    odd = channel_codes(w[:, :-1], True)[0]
    assert not can_saturate(odd.T)
    assert can_saturate(channel_codes(w, False)[0].T)


def test_pairs_give_back_what_they_have_too_much() -> None:
    codes = np.array([[100, 60, 5, 127, -90, -70, 127, -127, 7]], np.int8)
    rounding.fit_pairs(codes)
    assert codes.tolist() == [[68, 60, 5, 123, -58, -70, 127, -127, 7]]


@pytest.mark.parametrize("bits", BITS)
def test_the_search_loses_in_no_block(bits: int) -> None:
    w, block = weight(), 64
    sizes = np.exp(np.random.default_rng(3).standard_normal(K)).astype(np.float32)
    for importance in (None, sizes):
        weigh = np.ones(K, np.float32) if importance is None else importance
        errors = [
            rounding.in_blocks((dequantize(made) - w) ** 2 * weigh, block).sum(axis=2)
            for made in (
                block_codes(w, bits, block),
                block_codes(w, bits, block, search=True, importance=importance),
            )
        ]
        assert (errors[1] <= errors[0] * (1 + 1e-5)).all()
        assert errors[1].sum() < (0.97 if bits == 4 else 0.999) * errors[0].sum()


def test_the_search_knows_what_is_important() -> None:
    w = weight()
    importance = np.where(np.arange(K) % 10 == 0, 100.0, 0.01).astype(np.float32)
    for codes, scales in (channel_codes(w, True, search=True), channel_codes(w, True)):
        found, fitted = channel_codes(w, True, search=True, importance=importance)
        error = [((c * s[:, None] - w) ** 2 * importance).sum() for c, s in ((codes, scales), (found, fitted))]
        assert error[1] < 0.95 * error[0]


def test_half_quadratic_forgives_outliers() -> None:
    w = weight(64, 512)
    made = [half_quadratic_blocks(w, 4, 64), block_codes(w, 4, 64, search=True), block_codes(w, 4, 64)]
    costs = [(np.abs(dequantize(blocks) - w) ** 0.7).sum() for blocks in made]
    assert costs[0] < 0.99 * costs[1] < costs[2]
    # Few inputs are large at once: what counts for them is the bulk of weights, and it beats rounding to nearest.
    x = np.random.default_rng(2).standard_normal((256, 512)).astype(np.float32)
    assert lost(w, dequantize(made[0]), x) < 0.99 * lost(w, dequantize(made[2]), x)
    with pytest.raises(UsageError, match="norm"):
        half_quadratic_blocks(w, 4, 64, norm=1.5)


def gathered(x: Floats, **options: Any) -> Hessian:
    hessian = Hessian(x.shape[1], **options)
    for part in np.array_split(x, 3):
        hessian.add(part)
    return hessian


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("block", [32, 128])
def test_compensation_beats_rounding_to_nearest(bits: int, block: int) -> None:
    w, x, unseen = weight(), correlated(600, K), correlated(600, K, seed=2)
    hessian = gathered(x)
    made = compensated_blocks(w, hessian, bits, block)
    nearest = block_codes(w, bits, block)
    searched = block_codes(w, bits, block, search=True, importance=hessian.importance)
    assert made.codes.max() < 2**bits and made.scales.tobytes() == searched.scales.tobytes()
    for inputs in (x, unseen):
        assert lost(w, dequantize(made), inputs) < 0.75 * lost(w, dequantize(searched), inputs)
        assert lost(w, dequantize(made), inputs) < 0.65 * lost(w, dequantize(nearest), inputs)


@pytest.mark.parametrize("reduced", [True, False])
def test_compensated_channels(reduced: bool) -> None:
    w, unseen = weight(), correlated(600, K, seed=2)
    codes, scales = compensated_channels(w, gathered(correlated(600, K)), reduced)
    nearest, steps = channel_codes(w, reduced)
    assert lost(w, codes * scales[:, None], unseen) < 0.65 * lost(w, nearest * steps[:, None], unseen)
    assert np.abs(codes.astype(int)).max() <= 127 and can_saturate(codes.T) is not reduced


def test_without_correlation_compensation_is_rounding() -> None:
    w = weight()
    hessian = Hessian(K)
    hessian.add(np.eye(K, dtype=np.float32))
    made = compensated_blocks(w, hessian, 4, 32, search=False)
    assert (made.codes == block_codes(w, 4, 32).codes).all()


def test_compensation_is_the_textbook_recursion() -> None:
    """Against GPTQ as its paper has it: one column at a time, with the inverse of what is left."""
    w, x = weight(5, 40), correlated(200, 40)
    made = compensated_blocks(w, gathered(x), 4, 16, search=False, damping=0.01)
    gram = (x.T @ x).astype(np.float64)
    order = np.argsort(-np.diagonal(x.T @ x), kind="stable")
    gram += 0.01 * np.diagonal(gram).mean() * np.eye(40)
    left, grid = w.astype(np.float64), block_codes(w, 4, 16)
    expected = np.empty(w.shape, np.uint8)
    for done, column in enumerate(order):
        rest = order[done:]
        inverse = np.linalg.inv(gram[np.ix_(rest, rest)])
        scale = grid.scales[:, column // 16]
        expected[:, column] = np.clip(np.rint(left[:, column] / scale) + 8, 0, 15)
        error = left[:, column] - (expected[:, column] - 8.0) * scale
        left[:, rest] -= error[:, None] * inverse[0] / inverse[0, 0]
    assert np.mean(made.codes != expected) < 0.02


def test_projections_of_one_group_share_the_factor(monkeypatch: pytest.MonkeyPatch) -> None:
    made, factor = [], gptq._factor

    def counted(matrix: Floats) -> Floats:
        made.append(matrix.shape)
        return factor(matrix)

    monkeypatch.setattr(gptq, "_factor", counted)
    hessian = gathered(correlated(200, K))
    first = compensated_blocks(weight(), hessian, 4, 32)
    compensated_blocks(weight(8), hessian, 4, 32)
    compensated_channels(weight(), hessian, True)
    assert len(made) == 1
    hessian.add(correlated(200, K, seed=5))  # what is known by then is used
    assert (compensated_blocks(weight(), hessian, 4, 32).codes != first.codes).any() and len(made) == 2


def test_a_divided_hessian_is_that_of_divided_inputs_without_a_copy() -> None:
    x, divisors = correlated(256, K), np.exp(np.random.default_rng(7).standard_normal(K)).astype(np.float32)
    hessian, expected = Hessian(K, limit=4 * K * 256), Hessian(K, limit=4 * K * 256)  # two pieces
    hessian.add(x)
    expected.add(x / divisors)
    divided = hessian.divided(divisors)
    assert not divided.whole and all(map(np.shares_memory, divided._sums, hessian._sums))
    np.testing.assert_allclose(divided.importance, expected.importance, rtol=1e-5)
    for (columns, order, unit), (wanted, wanted_order, wanted_unit) in zip(
        divided.factors(), expected.factors(), strict=True
    ):
        assert columns == wanted and (order == wanted_order).all()
        np.testing.assert_allclose(unit, wanted_unit, rtol=1e-2, atol=1e-3)
    assert hessian.divided(None) is hessian


def test_dead_and_doubled_inputs_survive() -> None:
    w, x = weight(), correlated(40, K)  # fewer rows than inputs: the matrix is singular
    x[:, 10:20], x[:, 30] = 0, x[:, 31]
    hessian = gathered(x)
    made = dequantize(compensated_blocks(w, hessian, 4, 32))
    assert np.isfinite(made).all()
    assert lost(w, made, x) < 0.5 * lost(w, dequantize(block_codes(w, 4, 32)), x)
    # What calibration never saw is still rounded to something near.
    assert np.abs(made - w)[:, 10:20].max() < np.abs(w).max()
    empty = dequantize(compensated_blocks(w, Hessian(K), 4, 32, search=False))
    np.testing.assert_array_equal(empty, dequantize(block_codes(w, 4, 32)))


def test_a_hessian_too_large_is_kept_in_pieces() -> None:
    x, w = correlated(900, 700), weight(24, 700)
    whole, pieces = gathered(x), gathered(x, limit=4 * 700 * 300)
    assert whole.whole and not pieces.whole
    assert [s.stop - s.start for s in pieces.slices] == [256, 256, 188]
    np.testing.assert_allclose(pieces.importance, (x**2).mean(axis=0), rtol=1e-4)
    losses = [lost(w, dequantize(compensated_blocks(w, hessian, 4, 64)), x) for hessian in (whole, pieces)]
    assert losses[0] < losses[1] < 0.8 * lost(w, dequantize(block_codes(w, 4, 64)), x)


def test_rows_do_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    w = weight()
    whole = [block_codes(w, 4, 32, search=True), half_quadratic_blocks(w, 4, 32)]
    channels = channel_codes(w, False, search=True)
    monkeypatch.setattr(rounding.row_chunks, "__defaults__", (7 * K,))
    for one, other in zip(whole, [block_codes(w, 4, 32, search=True), half_quadratic_blocks(w, 4, 32)], strict=True):
        np.testing.assert_array_equal(one.codes, other.codes)
        np.testing.assert_array_equal(one.scales, other.scales)
    np.testing.assert_array_equal(channels[0], channel_codes(w, False, search=True)[0])


def test_memory_stays_near_one_tensor(tmp_path: Any) -> None:
    stored = np.lib.format.open_memmap(tmp_path / "w.npy", "w+", np.float16, (4096, 4096))
    stored[:] = weight(64, 4096).repeat(64, axis=0)
    tracemalloc.start()
    blocks = block_codes(stored, 4, 64)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert blocks.codes.nbytes == 1 << 24
    assert peak < 4 * stored.size  # codes and temporary arrays together less than the weight in fp32


@pytest.mark.parametrize(
    "w",
    [
        np.zeros((3, 40), np.float32),
        np.full((3, 40), 1e-40, np.float32),
        np.full((3, 40), 1e30, np.float32),
        np.array([[0.0] * 39 + [1e-20]], np.float32),
        weight(3, 1),
        np.ones((0, 40), np.float32),
        weight(3, 40).astype(np.float16),
    ],
    ids=["zero", "denormal", "huge", "lonely", "narrow", "empty", "half"],
)
def test_strange_weights(w: NDArray[Any]) -> None:
    for made in (block_codes(w, 4, 32), block_codes(w, 8, 16, search=True), half_quadratic_blocks(w, 4, 32)):
        back = dequantize(made)
        assert back.shape == w.shape and np.isfinite(back).all() and np.isfinite(made.scales).all()
        assert np.abs(back - w).max(initial=0) <= 0.2 * np.abs(w).max(initial=0) + 1e-30
    codes, scales = channel_codes(w, False, search=True)
    assert np.isfinite(scales).all() and (scales > 0).all() and codes.shape == w.shape


def test_what_cannot_be_rounded_is_told() -> None:
    bad = weight()
    bad[3, 4] = np.nan
    for round_it in (lambda: channel_codes(bad, True), lambda: block_codes(bad, 4, 32)):
        with pytest.raises(NumericalError, match="NaN or infinite"):
            round_it()
    with pytest.raises(UsageError, match="no kernel has blocks of 48 inputs; expected one of 16, 32, "):
        block_codes(weight(), 4, 48)
    with pytest.raises(UsageError, match="number of bits '3'"):
        block_codes(weight(), 3, 32)
    with pytest.raises(UsageError, match="2 dimensions"):
        channel_codes(weight()[0], True)
    with pytest.raises(UsageError, match=r"each of 300 inputs, got shape \(48,\)"):
        block_codes(weight(), 4, 32, search=True, importance=np.ones(N, np.float32))
    with pytest.raises(NumericalError, match="importance"):
        channel_codes(weight(), True, search=True, importance=np.full(K, -1, np.float32))
    hessian = Hessian(K)
    with pytest.raises(UsageError, match="5 columns, expected 300"):
        hessian.add(np.ones((4, 5), np.float32))
    with pytest.raises(NumericalError, match="calibration input"):
        hessian.add(np.full((2, K), np.inf, np.float32))
    with pytest.raises(UsageError, match="300 inputs is expected"):
        compensated_channels(weight(N, 40), hessian, True)


def test_blocks_may_have_negative_scales() -> None:
    blocks = Blocks(np.array([[0, 15, 8]], np.uint8), np.array([[-2.0]], np.float32), 4, 16)
    np.testing.assert_array_equal(dequantize(blocks), [[16.0, -14.0, 0.0]])
