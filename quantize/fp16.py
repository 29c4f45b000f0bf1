"""fp16: every float of a lowered graph becomes half precision, but for islands that stay fp32."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16


def to_fp16(model: ir.Model, islands: Collection[str] = ()) -> bool:
    """Rewrite a lowered fp32 graph in place to compute in half precision.

    1. Weights are stored as fp16; small constants are converted.
    2. Nodes whose module lies in ``islands`` (``/bert/encoder/layer.3/output``, say) compute in fp32; a Cast stands on
       each edge between an island and the rest, none between two nodes of islands.
    3. Graph inputs and outputs keep their types, so that every precision is called the same way.

    Args:
        model: a tidied graph with unbound weights.
        islands: prefixes of node names.

    Returns:
        whether anything was changed.
    """
    graph = model.graph
    wide = {id(value) for value in graph.inputs if value.dtype == FLOAT}  # values that stay fp32
    floats = set(wide)
    for value in graph.initializers.values():
        if value.dtype == FLOAT:
            floats.add(id(value))
            _halve(value)
    casts: dict[tuple[int, ir.DataType], ir.Value] = {}
    for node in list(graph):
        is_island = any(node.name is not None and f"{node.name}/".startswith(f"{prefix}/") for prefix in islands)
        for index, value in enumerate(node.inputs):
            if value is not None and id(value) in floats and (id(value) in wide) != is_island:
                wanted = FLOAT if is_island else HALF
                node.replace_input_with(index, _cast(graph, node, value, wanted, casts))
        if _gives_floats(node, floats, casts):
            for value in node.outputs:
                if value.dtype in (FLOAT, None) and not _is_integer_output(node):
                    floats.add(id(value))
                    if is_island:
                        wide.add(id(value))
                    value.type = ir.TensorType(FLOAT if is_island else HALF)
    for index, value in enumerate(graph.outputs):
        if id(value) in floats and id(value) not in wide:
            graph.outputs[index] = _widened(graph, value)
    return bool(floats)


_INTEGER_RESULTS = frozenset({"Shape", "Size", "ArgMax", "NonZero"})
_BOOL_RESULTS = frozenset({"LessOrEqual", "Less", "Greater", "GreaterOrEqual", "Equal", "And", "Or", "Not"})


def _is_integer_output(node: ir.Node) -> bool:
    return node.op_type in _INTEGER_RESULTS | _BOOL_RESULTS or node.op_type == "Cast"


def _gives_floats(node: ir.Node, floats: set[int], casts: dict[tuple[int, ir.DataType], ir.Value]) -> bool:
    made = {id(value) for value in casts.values()}
    return any(value is not None and (id(value) in floats or id(value) in made) for value in node.inputs)


def _halve(value: ir.Value) -> None:
    value.type = ir.TensorType(HALF)
    if value.const_value is not None:
        array = value.const_value.numpy().astype(np.float16)
        value.const_value = ir.tensor(array, name=value.name)


def _cast(
    graph: ir.Graph, before: ir.Node, value: ir.Value, wanted: ir.DataType, casts: dict[tuple[int, ir.DataType], ir.Value]
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


def _widened(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """A graph output's value cast back to fp32, under the output's own name."""
    name = value.name
    value.name = f"{name}_fp16"
    node = ir.node("Cast", [value], attributes={"to": FLOAT}, name=f"/casts/{name}")
    result = node.outputs[0]
    result.name, result.type, result.shape = name, ir.TensorType(FLOAT), value.shape
    graph.append(node)
    return result
