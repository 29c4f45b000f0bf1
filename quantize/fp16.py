"""fp16: every float of a lowered graph becomes half precision, but for islands that stay fp32."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from pinnace.arrays import Array
from pinnace.errors import CheckFailed
from pinnace.spec import is_cached

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
_SIZE_READERS: Final = frozenset({"Shape", "Size"})  # they read no numbers, so no Cast stands before them
_NO_FLOATS: Final = frozenset(
    {"Shape", "Size", "ArgMax", "NonZero", "Cast", "LessOrEqual", "Less", "Greater", "GreaterOrEqual", "Equal"}
    | {"And", "Or", "Not"}
)


def float_values(graph: ir.Graph) -> dict[int, ir.Value]:
    """Every fp32 value of a lowered graph by identity, inner ones too, whose types are not written down.

    Args:
        graph: inputs and initializers have types; a lowered graph casts to integers and booleans only.
    """
    found = {id(v): v for v in (*graph.inputs, *graph.initializers.values()) if v.dtype == FLOAT}
    for node in graph:
        if node.op_type not in _NO_FLOATS and any(id(value) in found for value in node.inputs):
            found |= {id(value): value for value in node.outputs if value.dtype in (FLOAT, None)}
    return found


def to_fp16(model: ir.Model, islands: Collection[str] = ()) -> bool:
    """Rewrite a lowered fp32 graph in place to compute in half precision.

    1. Weights are stored as fp16: constants are converted here, weights in files or unbound get the new type only,
       since who writes them converts them, a part at a time.
    2. Nodes named in ``islands`` compute in fp32; a Cast stands on each edge between an island and the rest, none
       between two nodes of islands.
    3. Graph inputs and outputs keep their types, so that every precision is called the same way; but a decoder's keys
       and values are fp16, or each step would convert the whole cache, and none could write into it in place.

    Args:
        model: a graph whose weights are unbound or in files.
        islands: names of nodes.

    Returns:
        whether anything was changed.
    """
    graph = model.graph
    floats = float_values(graph)
    wide: set[int] = set()  # values that stay fp32
    for value in graph.inputs:
        if id(value) in floats and is_cached(str(value.name)):
            value.type = ir.TensorType(HALF)
        elif id(value) in floats:
            wide.add(id(value))
    for value in graph.initializers.values():
        if id(value) in floats:
            _halve(value)
    casts: dict[tuple[int, ir.DataType], ir.Value] = {}
    for node in list(graph):
        is_island = node.name in islands
        for index, read in enumerate(node.inputs):
            if read is None or id(read) not in floats or node.op_type in _SIZE_READERS:
                continue
            if (id(read) in wide) != is_island:
                node.replace_input_with(index, _cast(graph, node, read, FLOAT if is_island else HALF, casts))
        for made in node.outputs:
            if id(made) in floats:
                made.type = ir.TensorType(FLOAT if is_island else HALF)
                if is_island:
                    wide.add(id(made))
    for index, value in enumerate(graph.outputs):
        wanted = HALF if is_cached(str(value.name)) else FLOAT
        if id(value) in floats and (id(value) in wide) != (wanted == FLOAT):
            graph.outputs[index] = _given_as(graph, value, wanted)
    return bool(floats)


def halved(name: str, part: Array) -> npt.NDArray[np.float16]:
    """Round numbers of a weight to fp16.

    Raises:
        CheckFailed: a finite number is beyond fp16's range.
    """
    with np.errstate(over="ignore"):
        out = part.astype("<f2")
    if not np.array_equal(np.isfinite(out), np.isfinite(part)):
        raise CheckFailed(
            f"weight {name!r} reaches {float(np.abs(part[np.isfinite(part)]).max()):.3g}, beyond fp16's 65504; "
            "keep --precision fp32"
        )
    return out


def _halve(value: ir.Value) -> None:
    value.type = ir.TensorType(HALF)
    if value.const_value is not None and not isinstance(value.const_value, ir.ExternalTensor):
        value.const_value = ir.tensor(halved(str(value.name), value.const_value.numpy()), name=value.name)


def _cast(
    graph: ir.Graph,
    before: ir.Node,
    value: ir.Value,
    wanted: ir.DataType,
    casts: dict[tuple[int, ir.DataType], ir.Value],
) -> ir.Value:
    """The value in the wanted type; one Cast serves all its readers."""
    key = (id(value), wanted)
    if key not in casts:
        node = ir.node("Cast", [value], attributes={"to": wanted}, name=f"/casts/{value.name}_{wanted.name.lower()}")
        node.outputs[0].name = f"{node.name}_output_0"
        node.outputs[0].type, node.outputs[0].shape = ir.TensorType(wanted), value.shape
        graph.insert_before(before, node)
        casts[key] = node.outputs[0]
    return casts[key]


def _given_as(graph: ir.Graph, value: ir.Value, wanted: ir.DataType) -> ir.Value:
    """A graph output's value cast to the type that callers get, under the output's own name."""
    name = value.name
    value.name = f"{name}_inner"
    node = ir.node("Cast", [value], attributes={"to": wanted}, name=f"/casts/{name}")
    result = node.outputs[0]
    result.name, result.type, result.shape = name, ir.TensorType(wanted), value.shape
    graph.append(node)
    return result
