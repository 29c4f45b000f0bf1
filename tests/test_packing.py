"""Packed weights in ONNX Runtime's own kernels: products and rows are those of the blocks that were packed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pinnace.errors import UsageError
from pinnace.quantize.rounding.nearest import BITS, BLOCK_SIZES, block_codes, channel_codes
from pinnace.quantize.rounding.packing import (
    Operands,
    matmul_operands,
    packed,
    row_operands,
    shares_bytes,
)
from pinnace.runtime.engine.ort import plain_session
from tests.packed_blocks import blocks_of, dequantize, gather_operands, integer_operands, unpacked
from tests.tiny_bundle import external

Array = NDArray[Any]
TYPES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
N, K = 40, 272


def weight(rows: int = N, columns: int = K) -> Array:
    return (np.random.default_rng(0).standard_t(4, (rows, columns)) * 0.05).astype(np.float32)


def inputs(kind: str, rows: int = 9, columns: int = K) -> Array:
    """Random activations, or like what follows a QK-norm: unit scale, few directions, some channels far larger."""
    random = np.random.default_rng(1)
    x = random.standard_normal((rows, columns))
    if kind == "qk-norm":
        x = random.standard_normal((rows, 8)) @ random.standard_normal((8, columns)) + 0.1 * x
        x *= np.where(np.arange(columns) % 37 == 5, 12.0, 1.0)
        x /= np.sqrt((x**2).mean(axis=1, keepdims=True))
    return x.astype(np.float32)


def graph(
    nodes: Sequence[onnx.NodeProto], feeds: Mapping[str, Array], initializers: Sequence[TensorProto]
) -> onnx.ModelProto:
    made = helper.make_graph(
        list(nodes),
        "main",
        [helper.make_tensor_value_info(name, TYPES[str(v.dtype)], list(v.shape)) for name, v in feeds.items()],
        [helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None) for node in nodes if not node.name],
        list(initializers),
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(made, opset_imports=opsets, ir_version=10)


def run(folder: Path, nodes: Sequence[onnx.NodeProto], feeds: Mapping[str, Array], **tensors: Array) -> list[Array]:
    stored = [numpy_helper.from_array(value, name) for name, value in tensors.items()]
    onnx.save(graph(nodes, feeds, stored), folder / "packed.onnx")
    made: list[Array] = plain_session(folder / "packed.onnx").run(None, dict(feeds))
    return made


def tensors_of(operands: Operands) -> dict[str, Array]:
    return {"data": operands.data, "scales": operands.scales}


def node_of(kind: str, names: Sequence[str], output: str, operands: Operands) -> onnx.NodeProto:
    attributes: dict[str, Any] = dict(operands.attributes)
    return helper.make_node(kind, names, [output], domain="com.microsoft", **attributes)


def product(folder: Path, operands: Operands, x: Array) -> Array:
    stored = tensors_of(operands)
    node = node_of("MatMulNBits", ["x", *stored], "y", operands)
    return run(folder, [node], {"x": x}, **stored)[0]


def looked_up(folder: Path, operands: Operands, ids: Array) -> Array:
    data, *rest = stored = tensors_of(operands)
    node = node_of("GatherBlockQuantized", [data, "ids", *rest], "y", operands)
    return run(folder, [node], {"ids": ids}, **stored)[0]


def apart(got: Array, expected: Array) -> float:
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


def rounded_activations(x: Array, block: int) -> Array:
    """Activations as level 4 has them: int8 with one scale for each row and block."""
    filled = np.pad(x, [(0, 0), (0, -x.shape[1] % block)]).reshape(len(x), -1, block)
    scales = np.abs(filled).max(axis=2, keepdims=True) / 127
    rounded: Array = np.rint(filled / scales) * scales
    return rounded.reshape(len(x), -1)[:, : x.shape[1]]


@pytest.mark.parametrize("search", [False, True])  # a search leaves negative scales
@pytest.mark.parametrize("block", BLOCK_SIZES)
@pytest.mark.parametrize("bits", BITS)
def test_products_are_those_of_the_blocks(tmp_path: Path, bits: int, block: int, search: bool) -> None:
    blocks = block_codes(weight(), bits, block, search=search)
    assert not search or (blocks.scales < 0).any()
    for kind in ("random", "qk-norm"):
        x = inputs(kind)
        expected = x @ dequantize(blocks).T
        assert apart(product(tmp_path, matmul_operands(blocks, 0), x), expected) < 1e-4
        fast = product(tmp_path, matmul_operands(blocks), x)
        # All that level 4 adds is its rounding of activations (ties may go either way), which is small.
        assert apart(fast, rounded_activations(x, block) @ dequantize(blocks).T) < 1e-3
        assert apart(fast, expected) < (0.012 if kind == "random" else 0.03)
        # A row alone is the row in a batch.
        np.testing.assert_allclose(product(tmp_path, matmul_operands(blocks), x[:1]), fast[:1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("block", BLOCK_SIZES)
@pytest.mark.parametrize("bits", BITS)
def test_rows_are_those_of_the_blocks(tmp_path: Path, bits: int, block: int) -> None:
    blocks = block_codes(weight(), bits, block, search=True)
    ids = np.array([[0, 7, N - 1], [7, 7, 1]], np.int64)
    np.testing.assert_array_equal(looked_up(tmp_path, gather_operands(blocks), ids), dequantize(blocks)[ids])


@pytest.mark.parametrize("bits", BITS)
def test_a_tied_weight_is_stored_once(tmp_path: Path, bits: int) -> None:
    """Two initializers of different shapes on one range of the file: an embedding and the head that it is tied to."""
    blocks = block_codes(weight(N, 256), bits, 64)
    rows, matrix = gather_operands(blocks), matmul_operands(blocks, 0)
    assert shares_bytes(blocks.codes.shape[1], blocks.block) and rows.data.tobytes() == matrix.data.tobytes()
    stored = tensors_of(rows)
    places, content = {}, b""
    for name, value in stored.items():
        places[name] = {"location": "packed.bin", "offset": str(len(content)), "length": str(value.nbytes)}
        content += value.tobytes()
    (tmp_path / "packed.bin").write_bytes(content)
    kinds = {name: TensorProto.FLOAT if name == "scales" else TensorProto.UINT8 for name in stored}
    tied = [external(name, value.shape, places[name], kinds[name]) for name, value in stored.items()]
    tied.append(external("matrix", matrix.data.shape, places["data"], TensorProto.UINT8))
    data, *rest = stored
    nodes = [
        node_of("GatherBlockQuantized", [data, "ids", *rest], "rows", rows),
        node_of("MatMulNBits", ["x", "matrix", *rest], "y", matrix),
    ]
    feeds = {"ids": np.array([3, 0, 9], np.int64), "x": inputs("random", columns=256)}
    onnx.save(graph(nodes, feeds, tied), tmp_path / "tied.onnx")
    got_rows, got = plain_session(tmp_path / "tied.onnx").run(None, feeds)
    np.testing.assert_array_equal(got_rows, dequantize(blocks)[feeds["ids"]])
    assert apart(got, feeds["x"] @ dequantize(blocks).T) < 1e-4


def test_a_ragged_weight_has_two_layouts() -> None:
    blocks = block_codes(weight(), 4, 128)
    assert not shares_bytes(blocks.codes.shape[1], blocks.block)
    assert matmul_operands(blocks).data.shape == (N, 3, 64) and gather_operands(blocks).data.shape == (N, K // 2)


@pytest.mark.parametrize("bits", BITS)
def test_packing_loses_nothing(bits: int) -> None:
    blocks = block_codes(weight(), bits, 64)
    for operands in (matmul_operands(blocks), gather_operands(blocks)):
        back = blocks_of(operands, K)
        np.testing.assert_array_equal(back.codes, blocks.codes)
        np.testing.assert_array_equal(back.scales, blocks.scales)
    whole = blocks.scales.nbytes + operands.data.nbytes
    assert whole < weight().nbytes * (bits / 32 + 0.025)


def test_four_bits_fill_bytes_from_below() -> None:
    codes = np.array([[1, 2, 3], [15, 0, 7]], np.uint8)
    np.testing.assert_array_equal(packed(codes, 4), [[0x21, 0x03], [0x0F, 0x07]])
    np.testing.assert_array_equal(unpacked(packed(codes, 4), 4, 3), codes)
    with pytest.raises(UsageError, match="even number of columns, got 3"):
        gather_operands(block_codes(weight(2, 3), 4, 16))


def test_integer_products(tmp_path: Path) -> None:
    codes, scales = integer_operands(*channel_codes(weight(), True))
    assert codes.shape == (K, N) and codes.flags.c_contiguous
    x = inputs("random")
    node = helper.make_node("DynamicQuantizeMatMul", ["x", "codes", "scales"], ["y"], domain="com.microsoft")
    got = run(tmp_path, [node], {"x": x}, codes=codes, scales=scales)[0]
    low, high = min(x.min(), 0), max(x.max(), 0)
    step = (high - low) / np.float32(255)
    zero = np.rint(-low / step)
    activations = (np.clip(np.rint(x / step) + zero, 0, 255) - zero) * step
    assert apart(got, activations @ (codes * scales)) < 1e-4


def test_gathered_int8_rows(tmp_path: Path) -> None:
    codes, scales = row_operands(*channel_codes(weight(), False))
    nodes = [
        helper.make_node("Gather", ["codes", "ids"], ["c"], "codes"),
        helper.make_node("Gather", ["scales", "ids"], ["s"], "scales"),
        helper.make_node("Cast", ["c"], ["f"], "floats", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["f", "s"], ["y"]),
    ]
    ids = np.array([[5, 0], [39, 5]], np.int64)
    got = run(tmp_path, nodes, {"ids": ids}, codes=codes, scales=scales)[0]
    np.testing.assert_array_equal(got, (codes * scales)[ids])
