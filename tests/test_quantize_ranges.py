"""Calibration and ranges: what is observed is what ran, and the range that is chosen loses least."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from pinnace.errors import InputError, NumericalError
from pinnace.quantize.calibration import SAMPLE_ROWS, Activations, _Observer, observe
from pinnace.quantize.histogram import Histogram
from pinnace.quantize.observed import Observed
from pinnace.quantize.projections import find_groups
from pinnace.quantize.ranges import (
    TRIAL_ROWS,
    candidates,
    choose_range,
    plain_tokens,
    rounded_fixed,
    rounded_tokens,
    rounded_weight,
    smoothing_factors,
)
from pinnace.quantize.recipe import load_graph
from tests.generation_bundles import MakeBundle, decoder_of
from tests.quantize_graphs import encoder_feed, random_ids

__all__ = ["decoder_of"]

BundleOf = Callable[[str], Path]
QA = "bert-glossary-qa"
NAME = "bert.encoder.layer.2.intermediate.dense.weight"


def seen(rows: Any) -> Activations:
    rows = np.asarray(rows, np.float32)
    return Activations(rows.min(0), rows.max(0), rows.mean(0, dtype=np.float64), len(rows), rows)


def wide(rows: int = 400, width: int = 64, outlier: float = 30.0) -> Any:
    """Activations of which one channel is much wider than the others, as in every transformer."""
    x = np.random.default_rng(0).standard_normal((rows, width)).astype(np.float32)
    x[:, 5] *= outlier
    return x


def weight(outputs: int = 96, width: int = 64) -> Any:
    return np.random.default_rng(1).standard_normal((outputs, width)).astype(np.float32)


def test_fixed_codes_are_those_of_quantize_linear() -> None:
    x = np.linspace(-3, 5, 999, dtype=np.float32)
    got = rounded_fixed(x, 0.02, 100)
    assert got.min() == pytest.approx(-2.0) and got.max() == pytest.approx(155 * 0.02)
    inside = (x > -2) & (x < 3.1)
    assert np.abs(got - x)[inside].max() <= 0.01 + 1e-6


def test_rows_and_weights_keep_their_peak_and_zeros() -> None:
    x = np.array([[0, 0, 0], [1, -2, 0.5], [1e-20, 0, 0]], np.float32)
    got = rounded_tokens(x)
    assert (got[0] == 0).all() and np.isfinite(got).all() and got[1, 1] == pytest.approx(-2)
    rounded = rounded_weight(weight(), False)
    assert (np.abs(rounded).max(1) == pytest.approx(np.abs(weight()).max(1))) and len(np.unique(rounded[0])) <= 255


def test_one_sided_rows_have_nearly_all_codes() -> None:
    """What GELU gives reaches down to -0.17 only: with the zero in the middle half of the codes would stand idle."""
    normal = np.random.default_rng(0).standard_normal((200, 64)).astype(np.float32) * 3
    x = np.maximum(normal, normal * 0.02)
    exact = np.square(rounded_tokens(x) - x).sum()
    assert np.square(rounded_tokens(x, 12) - x).sum() < 0.4 * exact
    assert choose_range(seen(x), weight()[:, :64], per_token=True, reduced=True, smoothing=False).zero < 64
    for zero in (12, 128):  # neither end is cut off
        assert np.abs(rounded_tokens(x, zero) - x).max() < 0.51 * np.abs(x).max() / zero


@pytest.mark.parametrize("strength", [0.35, 0.5, 0.9])
def test_smoothing_moves_outliers_and_keeps_the_product(strength: float) -> None:
    x, w = wide(), weight()
    factors = smoothing_factors(np.abs(x).max(0), w, strength)
    assert factors is not None and factors.dtype == np.float32 and (factors > 0).all()
    assert np.exp(np.log(factors).mean()) == pytest.approx(1, rel=0.01)
    np.testing.assert_allclose((x / factors) @ (w * factors).T, x @ w.T, rtol=2e-4, atol=2e-3)
    spread = np.abs(x / factors).max(0)
    assert spread.max() / np.median(spread) < np.abs(x).max(0).max() / np.median(np.abs(x).max(0))
    assert smoothing_factors(np.abs(x).max(0), w, 0.0) is None


def test_smoothing_survives_channels_that_are_never_used() -> None:
    x, w = wide(), weight()
    x[:, 3] = 0
    w[:, 4] = 0
    factors = smoothing_factors(np.abs(x).max(0), w, 0.8)
    assert factors is not None and np.isfinite(factors).all() and factors.min() >= 1e-3 and factors.max() <= 1e3


@pytest.mark.parametrize("per_token", [True, False])
def test_the_choice_has_the_least_error_and_smooths_outliers(per_token: bool) -> None:
    x, w = wide(), weight()
    tried = list(candidates(seen(x), w, per_token, reduced=True, smoothing=True))
    best = choose_range(seen(x), w, per_token=per_token, reduced=True)
    assert best.error == min(found.error for found in tried) and best.per_token is per_token
    assert best.strength > 0 and best.smooth is not None
    plain = choose_range(seen(x), w, per_token=per_token, reduced=True, smoothing=False)
    assert plain.smooth is None and best.error < 0.5 * plain.error

    def error(rows: Any) -> float:
        """That of the product, worked out anew."""
        divided = rows / best.smooth
        codes = rounded_tokens(divided, best.zero) if per_token else rounded_fixed(divided, best.scale, best.zero)
        got, exact = codes @ rounded_weight(w * best.smooth, True).T, rows @ w.T
        return float(np.square(got - exact).sum() / np.square(exact).sum())

    tried_rows = x[np.linspace(0, len(x) - 1, TRIAL_ROWS).astype(int)]
    assert error(tried_rows) == pytest.approx(best.error, rel=1e-4)
    # Of all rows: a fixed range cuts off what those that were tried did not show.
    assert 0.5 * best.error < error(x) < (2 if per_token else 2.5) * best.error


def test_a_fixed_range_covers_what_was_seen_and_fits_a_byte() -> None:
    for shift in (-40.0, 0.0, 40.0):
        x = wide(outlier=1.0) + np.float32(shift)
        found = choose_range(seen(x), weight(), per_token=False, reduced=False, smoothing=False)
        assert 0 <= found.zero <= 255 and found.scale > 0
        low, high = (0 - found.zero) * found.scale, (255 - found.zero) * found.scale
        assert low <= 0 <= high  # zero has a code, so that padding and zeros stay what they are
        assert low <= 0.75 * min(x.min(), 0) and high >= 0.55 * max(x.max(), 0)


def test_activations_of_nothing_but_zeros() -> None:
    x = np.zeros((300, 64), np.float32)
    for per_token in (True, False):
        found = choose_range(seen(x), weight(), per_token=per_token, reduced=True)
        assert np.isfinite(found.error) and found.scale >= 0
        assert per_token or found.scale > 0


def group_of(model: ir.Model, name: str = NAME) -> Any:
    return next(group for group in find_groups(model.graph) if group.name == name)


def test_what_is_observed_is_what_ran(bundle_of: BundleOf) -> None:
    """Lowest, highest, mean and count are of the real rows alone; the graph and its folder stay as they were."""
    bundle = bundle_of(QA)
    model = load_graph(bundle / "model.onnx")
    outputs = list(model.graph.outputs)
    values = {NAME: group_of(model).everywhere}
    ids = random_ids(1, 2, 30, 7541)
    whole = [encoder_feed(ids[0]), encoder_feed(ids[1, :18])]
    mask = [[1] * 30, [1] * 18 + [0] * 12]
    padded = [encoder_feed(np.where(mask, ids, 3), mask)]
    a, b = (observe(model, bundle, values, feeds, hessians=True)[NAME] for feeds in (whole, padded))
    assert list(model.graph.outputs) == outputs
    assert not list(bundle.glob(f"*{os.getpid()}*"))
    assert a.count == b.count == 48
    for name in ("low", "high", "mean", "peak"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), atol=1e-4)
    np.testing.assert_allclose(a.sample.min(0), a.low)
    assert len(a.sample) == 48 and (a.peak >= np.abs(a.mean)).all()


def test_the_sample_is_bounded_and_spread(bundle_of: BundleOf) -> None:
    bundle = bundle_of(QA)
    model = load_graph(bundle / "model.onnx")
    feeds = [encoder_feed(random_ids(seed, 2, 200, 7541)) for seed in range(7)]
    found = observe(model, bundle, {NAME: group_of(model).everywhere}, feeds)[NAME]
    assert found.count == 2800 and 1000 < len(found.sample) <= SAMPLE_ROWS
    assert (found.sample >= found.low - 1e-6).all() and (found.sample <= found.high + 1e-6).all()


@pytest.mark.parametrize("runs", [1, 384, 1500, 3000])
def test_the_sample_reaches_from_the_first_run_to_the_last(runs: int) -> None:
    observer = _Observer(max(1, -(-SAMPLE_ROWS // runs)), None)
    for run in range(runs):
        observer.see(np.full((20, 4), run, np.float32))
    sample = observer.result("x").sample[:, 0]
    assert (sample[0], sample[-1]) == (0, runs - 1) and len(sample) <= SAMPLE_ROWS
    assert np.diff(sample).max(initial=0) <= max(1, 1 + runs // SAMPLE_ROWS)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_not_observed(bad: float) -> None:
    for histogram in (None, Histogram()):
        rows = np.ones((4, 3), np.float32)
        rows[2, 1] = bad
        with pytest.raises(NumericalError, match="a calibration input is NaN or infinite"):
            _Observer(8, None, histogram).see(rows)


def test_corrections_hold_no_second_copy_of_a_weight() -> None:
    stored, x = np.ones((16384, 1024), np.float32), wide(300, 1024)
    values = {"w": stored, "b": np.zeros(len(stored), np.float32)}
    w, b = (
        ir.Value(name=name, const_value=ir.tensor(numbers, name=name), shape=ir.Shape(numbers.shape),
                 type=ir.TensorType(ir.DataType.FLOAT))
        for name, numbers in values.items()
    )  # fmt: skip
    given = ir.Value(name="x", shape=ir.Shape(["rows", 1024]), type=ir.TensorType(ir.DataType.FLOAT))
    node = ir.node("Gemm", [given, w, b], attributes={"transB": 1})
    graph = ir.Graph([given], node.outputs, nodes=[node], initializers=[w, b], opset_imports={"": 20})
    (group,) = find_groups(graph)
    found = Observed({group.name: seen(x)})
    how = found.range_of(group, per_token=False, reduced=True, smoothing=True)
    tracemalloc.start()
    found.corrections(group, how, reduced=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < stored.nbytes


def test_a_decoder_s_head_is_seen_at_every_position(decoder_of: MakeBundle) -> None:
    bundle = decoder_of("apertus-ort")
    model = load_graph(bundle / "model.onnx")
    group = group_of(model, "lm_head.weight")
    ids = random_ids(6, 1, 50, 6144)
    past = {f"past_key_values.{i}.{k}": np.zeros((1, 2, 0, 32), np.float32) for i in range(4) for k in ("key", "value")}
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(50)[None], **past}
    assert observe(model, bundle, {"head": group.everywhere}, [feed])["head"].count == 50


def test_no_data_is_an_error(bundle_of: BundleOf) -> None:
    model = load_graph(bundle_of(QA) / "model.onnx")
    with pytest.raises(InputError, match="there is no calibration data"):
        observe(model, bundle_of(QA), {}, [])


def test_corrections_restore_the_mean(bundle_of: BundleOf) -> None:
    """What a fixed scale cuts off, the bias gives back: the mean of the product over the sample is fp32's."""
    bundle = bundle_of(QA)
    model = load_graph(bundle / "model.onnx")
    group = group_of(model)
    feeds = [encoder_feed(random_ids(seed, 2, 100, 7541)) for seed in range(3)]
    found = Observed(observe(model, bundle, {NAME: group.everywhere}, feeds))
    how = found.range_of(group, per_token=False, reduced=True, smoothing=True)
    assert found.range_of(group, per_token=False, reduced=True, smoothing=True) is how  # worked out once
    from pinnace.quantize.int8 import stored_weight

    w, x = stored_weight(group.members[0]), found.activations[NAME].sample
    divided = x if how.smooth is None else x / how.smooth
    rounded = rounded_weight(w if how.smooth is None else w * how.smooth, True)
    got = (rounded_fixed(divided, how.scale, how.zero) @ rounded.T).mean(0, dtype=np.float64)
    correction = found.corrections(group, how, reduced=True)[NAME]
    exact = (x @ w.T).mean(0, dtype=np.float64)
    assert np.abs(got + correction - exact).max() < 1e-3 < np.abs(got - exact).max()
    few = Observed({NAME: seen(x[:100])})
    assert few.corrections(group, how, reduced=True) == {}


def test_without_calibration_there_are_token_scales_and_nothing_else(bundle_of: BundleOf) -> None:
    group = group_of(load_graph(bundle_of(QA) / "model.onnx"))
    found = Observed({}).range_of(group, per_token=True, reduced=True, smoothing=False)
    assert found == plain_tokens() or (found.per_token and found.smooth is None and np.isnan(found.error))
    assert Observed({}).corrections(group, found, reduced=True) == {}
