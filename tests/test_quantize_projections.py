"""Every weight that can be quantized is found, in every head and both targets; patterns choose among them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from safetensors.numpy import load_file

import pinnace.export
from pinnace.errors import UsageError
from pinnace.quantize import projections
from pinnace.quantize.projections import find_groups, find_projections, find_tables
from pinnace.quantize.recipe import load_graph, selected
from tests.conftest import DATA, TASKS
from tests.generation_bundles import MakeBundle, decoder_of

__all__ = ["decoder_of"]
__all__ = ["all_sizes", "decoder_of"]

BundleOf = Callable[[str], Path]
QA = "bert-glossary-qa"


@pytest.fixture
def all_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny checkpoints are 16 wide."""
    monkeypatch.setattr(projections, "MIN_WIDTH", 16)


def matrices(checkpoint: Path) -> dict[str, Any]:
    """Weights of two dimensions in a checkpoint's files."""
    tensors: dict[str, Any] = {}
    for path in checkpoint.glob("*.safetensors"):
        tensors |= load_file(path)
    return {name: array for name, array in tensors.items() if array.ndim == 2}


def named(graph: ir.Graph) -> tuple[set[str], set[str]]:
    return {found.name for found in find_projections(graph)}, {table.name for table in find_tables(graph)}


@pytest.mark.usefixtures("all_sizes")
@pytest.mark.parametrize("name", [name for name in TASKS if name.startswith("tiny-")])
def test_every_head_s_projections_are_found(bundle_of: BundleOf, name: str) -> None:
    """All matrices of the checkpoint, pooler and head included, are projections or tables; else they are small."""
    check(load_graph(bundle_of(name) / "model.onnx").graph, DATA / name)


@pytest.mark.usefixtures("all_sizes")
@pytest.mark.parametrize("name", ["tiny-embed", "tiny-pretraining", "tiny-classify"])
def test_the_standard_target_s_are_found(tmp_path: Path, name: str) -> None:
    pinnace.export.export(str(DATA / name), task=TASKS[name], output=tmp_path / "b", validate=False, target="onnx")
    check(load_graph(tmp_path / "b" / "model.onnx").graph, DATA / name)


def check(graph: ir.Graph, checkpoint: Path) -> None:
    products, tables = named(graph)
    found = products | tables
    config = json.loads((checkpoint / "config.json").read_text())
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    stored = {name: array for name, array in matrices(checkpoint).items() if min(array.shape) >= 16}
    # A graph holds a tied weight once, under one of its names; learnt positions are cut, not looked up.
    missing = {name for name in stored if name not in found and "position_embeddings" not in name}
    tied = {"bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"}
    assert missing <= tied and (not missing or tied & found)
    assert len([name for name in products if ".layer." in name]) == 6 * layers
    groups = find_groups(graph)
    assert sum(len(group.members) == 3 for group in groups) == layers  # query, key and value read the same
    assert all(len({id(m.activations) for m in group.members}) == 1 for group in groups)
    assert all(p.inputs in (hidden, config["intermediate_size"]) for p in find_projections(graph))
    for product in find_projections(graph):  # every one has a bias, beside the node or fused into the next
        readers = {use.node.op_type for use in product.result.uses()}
        assert product.bias is not None or readers & {"BiasGelu", "SkipLayerNormalization", "Attention"}, product.name


@pytest.mark.parametrize("name", ["apertus-ort", "apertus-onnx"])
def test_a_decoder_s_are_found(decoder_of: MakeBundle, name: str) -> None:
    graph = load_graph(decoder_of(name) / "model.onnx").graph
    products, tables = named(graph)
    assert tables == {"model.embed_tokens.weight"}
    assert products | tables == set(matrices(DATA / "apertus-glossary"))
    head = next(group for group in find_groups(graph) if group.name == "lm_head.weight")
    assert head.everywhere is not head.activations  # calibration sees all positions, not the last alone


def test_small_heads_stay_as_they_are(bundle_of: BundleOf) -> None:
    products, tables = named(load_graph(bundle_of(QA) / "model.onnx").graph)
    assert tables == {"bert.embeddings.word_embeddings.weight"}
    assert "qa_outputs.weight" not in products and len(products) == 24


def test_a_gemm_is_a_projection_with_its_bias() -> None:
    random = np.random.default_rng(0)
    for attributes, found in (({"transB": 1}, 1), ({"transB": 1, "alpha": 0.5}, 0), ({"transB": 1, "transA": 1}, 0)):
        x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(("rows", 48)))
        w, b = (
            ir.Value(name=n, const_value=ir.tensor(random.standard_normal(s).astype(np.float32), name=n),
                     type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(s))
            for n, s in (("w", (40, 48)), ("b", (40,)))
        )  # fmt: skip
        node = ir.node("Gemm", [x, w, b], attributes=attributes, name="/gemm")
        graph = ir.Graph([x], node.outputs, nodes=[node], initializers=[w, b], opset_imports={"": 21}, name="g")
        products = list(find_projections(graph))
        assert len(products) == found
        if products:
            assert (products[0].bias, products[0].inputs, products[0].outputs) == (b, 48, 40)


def test_patterns_choose_and_must_fit() -> None:
    names = {"a.query.weight", "a.key.weight", "b.query.weight", "table"}
    assert selected(names, ["a.*"], []) == {"b.query.weight", "table"}
    assert selected(names, ["table"], ["*query*", "table"]) == {"a.query.weight", "b.query.weight"}
    with pytest.raises(UsageError, match=r"the pattern 'c.\*' matches no weight; there are 4, such as a.key"):
        selected(names, ["c.*"], [])
