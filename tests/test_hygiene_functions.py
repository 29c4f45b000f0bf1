"""Functions that a graph defines: endless ones are refused, and what their attributes hold by default is looked at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from pinnace.errors import BundleError
from pinnace.runtime.bundles.bundle import Bundle
from pinnace.runtime.bundles.onnx_reader import read_graph
from tests.tiny_bundle import external, make_bundle


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def unfolding(model: onnx.ModelProto) -> None:
    """Functions that call the next one twice, the last of which comes first: 2^30 nodes."""
    for i in reversed(range(30)):
        names = [f"F{i + 1}"] * 2 if i < 29 else ["Abs"]
        nodes = [helper.make_node(name, ["a"], ["b"], domain="pinnace" if i < 29 else "") for name in names]
        model.functions.append(helper.make_function("pinnace", f"F{i}", ["a"], ["b"], nodes, []))


def called_often(model: onnx.ModelProto) -> None:
    nodes = [helper.make_node("Abs", ["a"], ["b"])] * 1000
    model.functions.append(helper.make_function("pinnace", "F", ["a"], ["b"], nodes, []))
    model.graph.node.extend([helper.make_node("F", ["w"], ["f"], domain="pinnace")] * 1000)


def deep_calls(model: onnx.ModelProto) -> None:
    for i in reversed(range(100)):
        node = helper.make_node(f"F{i + 1}" if i < 99 else "Abs", ["a"], ["b"], domain="pinnace" if i < 99 else "")
        model.functions.append(helper.make_function("pinnace", f"F{i}", ["a"], ["b"], [node], []))


def graph_to_a_function(model: onnx.ModelProto) -> None:
    """A function may use a graph that it is given twice, and be called in that graph again."""
    model.functions.append(helper.make_function("pinnace", "F", ["a"], ["b"], [], [], attributes=["g"]))
    given = helper.make_graph([helper.make_node("Abs", ["w"], ["r"])], "g", [], [])
    model.graph.node.append(helper.make_node("F", ["w"], ["f"], domain="pinnace", g=given))


def add_default(model: onnx.ModelProto, value: TensorProto | onnx.GraphProto) -> None:
    """Give a function an attribute with a default value."""
    function = helper.make_function("pinnace", "F", [], ["b"], [], [])
    function.attribute_proto.append(helper.make_attribute("value", value))
    model.functions.append(function)


def default_graph(model: onnx.ModelProto) -> None:
    add_default(model, helper.make_graph([helper.make_node("Abs", ["w"], ["r"])], "g", [], []))


def default_graph_with_an_operator(model: onnx.ModelProto) -> None:
    add_default(model, helper.make_graph([helper.make_node("Run", [], ["r"], domain="evil")], "g", [], []))


def default_tensor(model: onnx.ModelProto) -> None:
    add_default(model, external("inner", [2], {"location": "stranger.bin", "offset": "0", "length": "8"}))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (unfolding, "the function pinnace::F10 becomes more than 1,000,000 nodes"),
        (called_often, "the graph becomes more than 1,000,000 nodes"),
        (deep_calls, "64 calls in one another"),
        (graph_to_a_function, "pinnace::F takes a graph as an attribute"),
        (default_graph, "pinnace::F takes a graph as an attribute"),
        (default_graph_with_an_operator, "evil::Run"),
        (default_tensor, r"'inner' lies in 'stranger\.bin', which the manifest does not list"),
    ],
)
def test_functions_that_are_refused(tmp_path: Path, change: Callable[[onnx.ModelProto], None], word: str) -> None:
    make_bundle(tmp_path / "b", change_graph=change, golden=False)
    with pytest.raises(BundleError, match=word):
        Bundle.open(tmp_path / "b")


def test_functions_of_many_nodes_are_taken(tmp_path: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        for i in reversed(range(10)):
            name, domain = (f"F{i + 1}", "pinnace") if i < 9 else ("Abs", "")
            nodes = [helper.make_node(name, ["a"], ["b"], domain=domain)] * 2
            model.functions.append(helper.make_function("pinnace", f"F{i}", ["a"], ["b"], nodes, []))

    Bundle.open(make_bundle(tmp_path / "b", change_graph=change, golden=False))


def test_default_values_are_read(tmp_path: Path) -> None:
    inner = helper.make_tensor("in a graph", TensorProto.FLOAT, [1], [2.0])
    model = helper.make_model(helper.make_graph([], "main", [], []))
    add_default(model, helper.make_tensor("alone", TensorProto.FLOAT, [1], [1.0]))
    add_default(model, helper.make_graph([helper.make_node("Abs", ["a"], ["b"], "inside")], "g", [], [], [inner]))
    onnx.save(model, tmp_path / "x.onnx")
    read = read_graph(tmp_path / "x.onnx")
    assert [tensor.name for tensor in read.tensors()] == ["alone", "in a graph"]
    assert [node.name for node in read.nodes()] == ["inside"]
