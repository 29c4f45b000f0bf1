"""Graphs from strangers: the reader agrees with the onnx package, and whatever is unsafe is refused by name."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pinnace.errors import BundleError
from pinnace.runtime.bundles.bundle import Bundle
from pinnace.runtime.bundles.hygiene import check_graph, check_weights
from pinnace.runtime.bundles.onnx_graph import DTYPES
from pinnace.runtime.bundles.onnx_reader import read_graph
from tests.tiny_bundle import external, make_bundle


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def rich_model() -> onnx.ModelProto:
    """Subgraphs, a local function, sparse and inline tensors, attributes of each kind, metadata."""
    value = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, "n", 3])
    branch = helper.make_graph(
        [
            helper.make_node(
                "Constant", [], ["y"], "inner", value=numpy_helper.from_array(np.ones((1, 2, 3), np.float32))
            )
        ],
        "branch",
        [],
        [value],
    )
    nodes = [
        helper.make_node("If", ["c"], ["y"], "choose", then_branch=branch, else_branch=branch),
        helper.make_node("Twice", ["y"], ["z"], "/call", domain="pinnace"),
        helper.make_node("LRN", ["z"], ["w"], "lrn", size=-3, alpha=0.5, axes=[1, -2, 3], mode="same", names=["a"]),
    ]
    function = helper.make_function(
        "pinnace",
        "Twice",
        ["a"],
        ["b"],
        [helper.make_node("Add", ["a", "a"], ["b"], "add")],
        [helper.make_opsetid("", 21)],
    )
    sparse = helper.make_sparse_tensor(
        helper.make_tensor("s", TensorProto.FLOAT, [1], [2.0]),
        helper.make_tensor("i", TensorProto.INT64, [1], [0]),
        [5],
    )
    graph = helper.make_graph(
        nodes,
        "main",
        [helper.make_tensor_value_info("c", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("w", TensorProto.FLOAT, [None, "n", 3])],
        [numpy_helper.from_array(np.arange(6, dtype=np.int64), "raw"), helper.make_tensor("list", 1, [2], [1.0, 2.0])],
        sparse_initializer=[sparse],
        doc_string="a graph",
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("pinnace", 1)]
    model = helper.make_model(graph, functions=[function], ir_version=10, opset_imports=opsets, producer_name="test")
    model.metadata_props.add(key="kind", value="tiny")
    return model


def test_the_reader_agrees_with_onnx(tmp_path: Path) -> None:
    path = tmp_path / "rich.onnx"
    path.write_bytes(rich_model().SerializeToString())
    read, want = read_graph(path), onnx.load(path)
    assert (read.ir_version, read.opsets) == (want.ir_version, {o.domain: o.version for o in want.opset_import})
    assert read.metadata == {"kind": "tiny"}
    assert {"a graph", "tiny", "test"} <= set(read.notes)
    assert [v.shape for v in read.graph.outputs] == [("", "n", 3)]
    assert (read.graph.inputs[0].name, read.graph.inputs[0].dtype, read.graph.inputs[0].shape) == ("c", "bool", ())
    for node, proto in zip(read.graph.nodes, want.graph.node, strict=True):
        assert (node.op_type, node.domain, node.name) == (proto.op_type, proto.domain, proto.name)
        assert (node.inputs, node.outputs) == (tuple(proto.input), tuple(proto.output))
    assert read.graph.nodes[2].attributes == {"size": -3, "alpha": 0.5, "axes": (1, -2, 3), "mode": "same"}
    assert [node.name for node in read.nodes()] == ["choose", "inner", "inner", "/call", "lrn", "add"]
    tensors = {tensor.name: tensor for tensor in read.tensors()}
    assert (tensors["raw"].dims, DTYPES[tensors["raw"].dtype][0], tensors["raw"].inline_bytes) == ((6,), "int64", 48)
    assert tensors["list"].inline_bytes == 8
    assert {"s", "i", ""} <= set(tensors)
    assert check_graph(tmp_path, "rich.onnx").functions[0].name == "Twice"


def test_types_are_those_of_onnx() -> None:
    names = {number: name.lower() for name, number in TensorProto.DataType.items()}
    for number, (name, bits) in DTYPES.items():
        assert names[number] == {"float32": "float", "float64": "double"}.get(name, name)
        digits = re.search(r"\d+", name)
        assert bits == int(digits[0] if digits else 8)


def test_any_bytes_give_an_error_or_a_graph(tmp_path: Path) -> None:
    whole = rich_model().SerializeToString()
    generator = random.Random(7)
    path = tmp_path / "fuzz.onnx"
    refused = 0
    for _ in range(600):
        content = bytearray(whole)
        for _ in range(generator.randint(1, 6)):
            content[generator.randrange(len(content))] = generator.randrange(256)
        path.write_bytes(content[: generator.choice([len(content), generator.randrange(1, len(content))])])
        try:
            check_graph(tmp_path, "fuzz.onnx")
        except BundleError as error:
            refused += 1
            assert "fuzz.onnx" in str(error)
    assert refused > 200


@pytest.mark.parametrize("content", [b"", b"\x00", b"\xff" * 40, b"not a graph at all", b"\x3a\xff\xff\xff\xff\x0f"])
def test_garbage(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.onnx").write_bytes(content)
    with pytest.raises(BundleError, match=r"x\.onnx"):
        read_graph(tmp_path / "x.onnx")


def test_deep_nesting_is_refused(tmp_path: Path) -> None:
    def frame(number: int, content: bytes) -> bytes:
        size, length = len(content), b""
        while size > 127:
            length += bytes([size & 127 | 128])
            size >>= 7
        return bytes([number << 3 | 2]) + length + bytes([size]) + content

    graph = b""
    for _ in range(3000):  # graph > node > attribute > graph
        graph = frame(1, frame(5, frame(6, graph)))
    (tmp_path / "deep.onnx").write_bytes(frame(7, graph))
    with pytest.raises(BundleError, match="nested more than 32"):
        read_graph(tmp_path / "deep.onnx")


def test_two_graphs_in_one_file(tmp_path: Path) -> None:
    content = rich_model().SerializeToString()
    (tmp_path / "two.onnx").write_bytes(content + content)
    with pytest.raises(BundleError, match="two graphs"):
        read_graph(tmp_path / "two.onnx")


def redirect(key: str, value: str | None) -> Callable[[onnx.ModelProto], None]:
    """Change one entry of the first weight's place, or drop it."""

    def change(model: onnx.ModelProto) -> None:
        entries = model.graph.initializer[0].external_data
        kept = {entry.key: entry.value for entry in entries}
        del entries[:]
        kept[key] = value or ""
        for name, word in kept.items():
            if value is not None or name != key:
                entries.add(key=name, value=word)

    return change


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [
        ("location", "../secret", "plain file name"),
        ("location", "sub/../../secret", "plain file name"),
        ("location", "sub/secret", "plain file name"),
        ("location", "/etc/hostname", "plain file name"),
        ("location", "..", "plain file name"),
        ("location", "a\\b", "plain file name"),
        ("location", "", "plain file name"),
        ("location", "*/_ORT_MEM_ADDR_/*", "plain file name"),
        ("location", "stranger.bin", "does not list"),
        ("offset", "-8", "offset"),
        ("offset", "1e3", "offset"),
        ("offset", "99999999999999999999", "offset"),
        ("offset", "480", "cut off"),
        ("length", "0", "need"),
        ("length", "172", "need"),
        ("length", None, "length"),
        ("__class__", "x", "form that readers disagree"),
    ],
)
def test_external_data_that_leaves_its_file(tmp_path: Path, key: str, value: str | None, word: str) -> None:
    (tmp_path / "secret").write_bytes(bytes(4096))
    make_bundle(tmp_path / "b", change_graph=redirect(key, value), golden=False)
    with pytest.raises(BundleError, match=r"tensor '\w+'.*" + word):
        Bundle.open(tmp_path / "b")


def link(target: Path, path: Path) -> None:
    path.symlink_to(target)


@pytest.mark.parametrize("make", [link, os.link])
def test_linked_weights(tmp_path: Path, make: Callable[[Path, Path], None]) -> None:
    folder = make_bundle(tmp_path / "b")
    (folder / "model.safetensors").rename(tmp_path / "outside")
    make(tmp_path / "outside", folder / "model.safetensors")
    with pytest.raises(BundleError, match=r"model\.safetensors .*link"):
        check_graph(folder, "model.onnx")


def add_node(node: onnx.NodeProto) -> Callable[[onnx.ModelProto], None]:
    return lambda model: model.graph.node.append(node)


def inside_a_branch(model: onnx.ModelProto) -> None:
    hidden = helper.make_graph([helper.make_node("Run", [], ["r"], "hidden", domain="evil")], "g", [], [])
    model.graph.node.append(helper.make_node("If", ["c"], ["o"], "if", then_branch=hidden, else_branch=hidden))


def inside_a_function(model: onnx.ModelProto) -> None:
    node = helper.make_node("Run", ["a"], ["b"], "hidden", domain="evil")
    model.functions.append(helper.make_function("pinnace", "F", ["a"], ["b"], [node], []))


def recursive(model: onnx.ModelProto) -> None:
    for name, other in (("F", "G"), ("G", "F")):
        node = helper.make_node(other, ["a"], ["b"], domain="pinnace")
        model.functions.append(helper.make_function("pinnace", name, ["a"], ["b"], [node], []))


def big_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("big", TensorProto.FLOAT, [1 << 31, 1 << 31]))


def big_tensor(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(TensorProto(name="big", data_type=1, dims=[1 << 31, 1 << 31]))


def empty_tensor(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(TensorProto(name="hollow", data_type=1, dims=[1 << 20]))


def short_raw(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(TensorProto(name="short", data_type=1, dims=[4], raw_data=b"1234"))


def strange_type(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(TensorProto(name="odd", data_type=99, dims=[1], raw_data=b"1234"))


def negative(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(TensorProto(name="minus", data_type=1, dims=[-1], raw_data=b"1234"))


def traced(model: onnx.ModelProto) -> None:
    model.graph.node[0].metadata_props.add(key="stack", value='File "/home/someone/model.py", line 3, in forward')


def documented(model: onnx.ModelProto) -> None:
    model.graph.node[0].doc_string = "made in /home/someone/project"


def hidden_in_an_attribute(model: onnx.ModelProto) -> None:
    tensor = external("inner", [2], {"location": "/etc/passwd", "offset": "0", "length": "8"})
    model.graph.node.append(helper.make_node("Constant", [], ["k"], "k", value=tensor))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (add_node(helper.make_node("Run", [], ["r"], "evil", domain="my.custom")), r"my\.custom::Run"),
        (add_node(helper.make_node("Scaler", ["w"], ["r"], "ml", domain="ai.onnx.ml")), r"ai\.onnx\.ml::Scaler"),
        (add_node(helper.make_node("EPContext", [], ["r"], "ep", domain="com.microsoft")), "EPContext"),
        (inside_a_branch, "evil::Run"),
        (inside_a_function, "evil::Run"),
        (recursive, "calls itself"),
        (big_input, "'big' has the impossible shape"),
        (big_tensor, "'big' has the impossible shape"),
        (empty_tensor, "'hollow' of shape"),
        (short_raw, "'short' of type float32"),
        (strange_type, "'odd' has the unknown type 99"),
        (negative, "'minus' has the impossible shape"),
        (hidden_in_an_attribute, "'inner' lies in '/etc/passwd'"),
        (traced, "text of the building machine"),
        (documented, "text of the building machine"),
    ],
)
def test_unsafe_or_untidy_graphs(tmp_path: Path, change: Callable[[onnx.ModelProto], None], word: str) -> None:
    make_bundle(tmp_path / "b", change_graph=change, golden=False)
    with pytest.raises(BundleError, match=word):
        Bundle.open(tmp_path / "b")


def test_a_damaged_weights_file_is_named(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "b")
    assert check_weights(folder / "model.safetensors") == 3
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"more")
    with pytest.raises(BundleError, match=r"model\.safetensors has 4 bytes that belong to no tensor"):
        check_weights(folder / "model.safetensors")
