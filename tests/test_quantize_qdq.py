"""Static int8 between QuantizeLinear pairs: standard operators, fused on the CPU, near fp32; calibration methods."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from pinnace.errors import UsageError
from pinnace.export.builder import export
from pinnace.quantize import quantize
from pinnace.quantize.calibration import Activations, observe
from pinnace.quantize.examples.source import read_examples
from pinnace.quantize.histogram import Histogram
from pinnace.quantize.judging.evaluate import feeds
from pinnace.quantize.judging.metrics import cosines
from pinnace.quantize.observed import Observed
from pinnace.quantize.projections import find_groups
from pinnace.quantize.recipe import load_graph
from pinnace.quantize.schemes import SCHEMES
from pinnace.quantize.thresholds import METHODS, TAIL, fixed_range
from pinnace.quantize.variant import write_variant
from pinnace.runtime.bundles.bundle import Bundle
from pinnace.runtime.engine.ort import plain_session
from pinnace.runtime.machine.cpu import read_cpu
from tests.conftest import DATA
from tests.quantized_bundles import some
from tests.saturating_sums import can_saturate

NER = "bert-glossary-ner"
GROUPS, PROJECTIONS = 8, 12  # of two layers; the head is too narrow
RANDOM = np.random.default_rng(3)


def seen(numbers: Any, usual: tuple[float, float] = (0.0, 0.0)) -> Activations:
    rows = np.asarray(numbers, np.float32).reshape(-1, 1)
    histogram = Histogram()
    histogram.add(rows)
    return Activations(rows.min(0), rows.max(0), rows.mean(0), len(rows), rows, usual=usual, histogram=histogram)


def written(source: Path, folder: Path, scheme: str, method: str = "min-max") -> Path:
    """The graph of a variant, calibrated on a few texts and not judged."""
    shutil.copytree(source, folder)
    bundle = Bundle.open(folder)
    examples = some(read_examples(DATA / "ner_dev.json", bundle.manifest.task), 16)
    model = load_graph(bundle.graph_path("fp32"))
    recipe = SCHEMES[scheme].recipe(model.graph, reduced=True, calibration=method)
    values = {group.name: group.everywhere for group in find_groups(model.graph)}
    assert recipe.calibrated == values.keys() and len(values) == GROUPS
    inputs = list(feeds(folder, examples))
    found = observe(model, folder, values, inputs, histograms=recipe.histograms)
    made = write_variant(bundle, folder, "int8", scheme, recipe, Observed(found), read_cpu())
    return folder / made.variant.graph


def rows_of(folder: Path) -> list[dict[str, Any]]:
    examples = read_examples(DATA / "ner_dev.json", "token-classification")
    return list(feeds(folder, examples))[-12:]  # texts that did not calibrate


@pytest.mark.parametrize("scheme", ["int8-qdq", "int8-qdq-signed"])
def test_products_stand_between_pairs(bundle_of: Callable[[str], Path], tmp_path: Path, scheme: str) -> None:
    path = written(bundle_of(NER), tmp_path / "bundle", scheme)
    graph = onnx.load(path).graph
    makers = {name: node for node in graph.node for name in node.output}
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    products = [node for node in graph.node if node.op_type == "MatMul"]
    assert len(products) == PROJECTIONS
    for node in products:
        activations, weight = (makers[name] for name in node.input)
        assert (activations.op_type, weight.op_type) == ("DequantizeLinear", "DequantizeLinear")
        assert makers[activations.input[0]].op_type == "QuantizeLinear"
        codes, steps = (stored[name] for name in weight.input)
        assert codes.dtype == np.int8 and not can_saturate(codes)
        assert steps.shape == (codes.shape[1],) and weight.attribute[0].i == 1
        zero = stored[activations.input[2]]
        assert zero.dtype == (np.int8 if "signed" in scheme else np.uint8)
        if "signed" in scheme:
            assert zero == 0


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_a_usable_variant(bundle_of: Callable[[str], Path], tmp_path: Path, method: str) -> None:
    path = written(bundle_of(NER), tmp_path / "bundle", "int8-qdq", method)
    texts = rows_of(bundle_of(NER))
    reference, session = plain_session(path.with_name("model.onnx")), plain_session(path)
    near = []
    for inputs in texts:
        want, got = (each.run(None, inputs)[0][0] for each in (reference, session))
        near += cosines(got, want).tolist()
    assert np.mean(near) > (0.999 if method in ("min-max", "moving-average") else 0.95)
    assert np.mean(near) < 1 - 1e-9  # something was rounded


def test_a_row_does_not_depend_on_its_batch(bundle_of: Callable[[str], Path], tmp_path: Path) -> None:
    session = plain_session(written(bundle_of(NER), tmp_path / "bundle", "int8-qdq"))
    ids = RANDOM.integers(5, 5000, (3, 11))
    ids[1:] = 7  # quite other rows
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    together = session.run(None, inputs)[0][0]
    alone = session.run(None, {name: array[:1] for name, array in inputs.items()})[0][0]
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_onnx_runtime_computes_in_integers(bundle_of: Callable[[str], Path], tmp_path: Path) -> None:
    path = written(bundle_of(NER), tmp_path / "bundle", "int8-qdq")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimized.onnx"), 3
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    nodes = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx", load_external_data=False).graph.node]
    assert nodes.count("MatMulIntegerToFloat") == PROJECTIONS
    assert "DequantizeLinear" not in nodes


def test_the_standard_target_stays_standard(tmp_path: Path) -> None:
    export(DATA / NER, task="ner", output=tmp_path / "plain", target="onnx", validate=False)
    model = onnx.load(written(tmp_path / "plain", tmp_path / "bundle", "int8-qdq"), load_external_data=False)
    assert {node.domain for node in model.graph.node} == {""}
    assert {(entry.domain, entry.version) for entry in model.opset_import} == {("", 23)}


def test_it_passes_its_gate_and_is_described(bundle_of: Callable[[str], Path], tmp_path: Path) -> None:
    options: dict[str, Any] = {"data": DATA / "ner_dev.json", "output": tmp_path / "out", "threads": 1}
    report = quantize(str(bundle_of(NER)), scheme="int8-qdq", calibration="moving-average", **options)
    assert report.chosen is not None and not report.chosen.miss
    bundle = Bundle.open(tmp_path / "out")
    assert bundle.variant("int8").scheme == "int8-qdq"
    sizes = [sum(bundle.manifest.files[n].bytes for n in bundle.variant(p).weights) for p in ("int8", "fp32")]
    assert sizes[0] < 0.28 * sizes[1]
    assert report.chosen.candidate.recipe.to_dict()["calibration"] == "moving-average"


def test_a_method_is_refused_where_none_is_used(bundle_of: Callable[[str], Path], tmp_path: Path) -> None:
    source = str(bundle_of(NER))
    options: dict[str, Any] = {"output": tmp_path / "out", "data": DATA / "ner_dev.json"}
    with pytest.raises(UsageError, match=r"unknown method of calibration 'entropi'"):
        quantize(source, scheme="int8-qdq", calibration="entropi", **options)
    with pytest.raises(UsageError, match=r"--calibration is for the schemes int8-qdq, int8-qdq-signed"):
        quantize(source, scheme="int8-weights", calibration="entropy", **options)
    assert not (tmp_path / "out").exists()


def test_a_histogram_forgets_the_order_of_its_data() -> None:
    numbers = RANDOM.standard_normal(50_000) * np.geomspace(1e-6, 300, 50_000)
    rising, falling = Histogram(), Histogram()
    for part in np.split(numbers, 25):
        rising.add(part)
    for part in np.split(numbers[::-1], 10):
        falling.add(part)
    expected, _ = np.histogram(numbers, rising.edges)
    assert rising.limit == falling.limit == 2.0 ** np.ceil(np.log2(np.abs(numbers).max()))
    assert (rising.counts == expected).all() and (falling.counts == expected).all()


def test_a_histogram_takes_zeros_and_powers_of_two() -> None:
    histogram = Histogram()
    for numbers in (np.zeros(3), np.array([1.0]), np.array([-1.0, 2.0]), np.array([])):
        histogram.add(numbers)
    assert histogram.counts.sum() == 6
    assert histogram.limit == 4.0


def test_methods_differ_in_what_they_cut_off() -> None:
    body = np.random.default_rng(5).standard_normal(200_000)
    found = {name: METHODS[name](seen([*body, 60.0], (-3.0, 5.0))) for name in METHODS}
    assert found["min-max"] == pytest.approx((body.min(), 60.0), rel=1e-6)
    assert found["moving-average"] == (-3.0, 5.0)
    low, high = np.quantile(body, [TAIL, 1 - TAIL])
    assert found["percentile"] == pytest.approx((low, high), abs=0.05)
    assert 2.5 < found["entropy"][1] < 12


@pytest.mark.parametrize("name", METHODS)
def test_ranges_without_outliers_are_kept(name: str) -> None:
    numbers = RANDOM.uniform(-1, 3, 100_000)
    assert METHODS[name](seen(numbers, (-1.0, 3.0))) == pytest.approx((-1, 3), abs=0.02)


def test_zero_has_a_code() -> None:
    unsigned = fixed_range(seen([2.0, 10.2]), "min-max", signed=False)
    assert unsigned.zero == 0 and unsigned.scale == pytest.approx(10.2 / 255)
    unsigned = fixed_range(seen([-1.0, 3.0]), "min-max", signed=False)
    assert unsigned.zero == 64 and unsigned.scale == pytest.approx(4 / 255)
    signed = fixed_range(seen([-1.0, 3.0]), "min-max", signed=True)
    assert signed.zero == 128 and signed.scale == pytest.approx(3 / 127)
    assert fixed_range(seen([0.0, 0.0]), "entropy", signed=False).scale > 0


def test_the_average_of_the_ends_fades(bundle_of: Callable[[str], Path]) -> None:
    folder = bundle_of(NER)
    runs = rows_of(folder)[:3]

    def first_group(inputs: list[dict[str, Any]]) -> Activations:
        model = load_graph(folder / "model.onnx")
        return observe(model, folder, {"x": find_groups(model.graph)[0].activations}, inputs)["x"]

    each = [first_group([inputs]) for inputs in runs]
    ends = [np.array([found.low.min(), found.high.max()]) for found in each]
    together = first_group(runs)
    assert together.usual == pytest.approx(0.95**2 * ends[0] + 0.05 * 0.95 * ends[1] + 0.05 * ends[2], rel=1e-5)
    assert together.histogram is None
