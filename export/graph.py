"""Lowering: replace every semantic node by the operators that a table gives for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import onnx_ir as ir

SEMANTIC_DOMAIN: Final = "pinnace"
MODULE: Final = "module"  # key of a node's note: the dotted path of the module it came from
Row = Callable[["Emitter"], Sequence[ir.Value]]


class Emitter:
    """Collects the nodes that replace one semantic node; a lowering row talks to nothing else.

    Attributes:
        node: the semantic node.
        opset: version of the standard operators that the graph will use.
    """

    def __init__(self, node: ir.Node, opset: int, constants: Constants) -> None:
        self.node, self.opset = node, opset
        self.nodes: list[ir.Node] = []
        self.constant = constants.get

    def input(self, index: int) -> ir.Value | None:
        """The semantic node's input at ``index``, None where it was left out."""
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    def needed(self, index: int) -> ir.Value:
        """Like `input`, for one that the semantic operator always has."""
        value = self.input(index)
        assert value is not None, (self.node.op_type, index)  # models/ops.py always gives it
        return value

    def attribute(self, name: str) -> Any:
        """Value of an attribute of the semantic node."""
        return self.node.attributes[name].value

    def output_is_read(self, index: int) -> bool:
        """Whether anything reads the semantic node's output at ``index``."""
        value = self.node.outputs[index]
        return bool(value.uses()) or value.is_graph_output()

    def op(self, op_type: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any) -> ir.Value:
        """Emit a node with one output."""
        return self.ops(op_type, *inputs, domain=domain, outputs=1, **attributes)[0]

    def ops(
        self, op_type: str, *inputs: ir.Value | None, domain: str = "", outputs: int, **attributes: Any
    ) -> Sequence[ir.Value]:
        """Emit a node with several outputs; trailing inputs that are None are left out."""
        given = list(inputs)
        while given and given[-1] is None:
            given.pop()
        node = ir.node(op_type, given, attributes=attributes, domain=domain, num_outputs=outputs)
        self.nodes.append(node)
        return node.outputs


class Constants:
    """Small constants of a graph, each stored once as an initializer."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph

    def get(self, data: Sequence[int] | Sequence[float] | int | float, dtype: str = "int64") -> ir.Value:
        """An initializer with this content; the same content gives the same value."""
        array = np.asarray(data, dtype=dtype)
        label = "_".join(str(x).replace("-", "m") for x in array.ravel().tolist())
        name = f"constant_{dtype}_{array.ndim}d_{label}"
        if name not in self._graph.initializers:
            tensor = ir.tensor(array, name=name)
            kind, shape = ir.TensorType(tensor.dtype), ir.Shape(array.shape)
            value = ir.Value(name=name, type=kind, shape=shape, const_value=tensor)
            self._graph.register_initializer(value)
        return self._graph.initializers[name]


def lower(model: ir.Model, rows: Mapping[str, Row], opset: int) -> None:
    """Replace every semantic node of the graph, in place, by what its row emits.

    Args:
        model: a traced model; afterwards it holds target operators only.
        rows: semantic operator -> row.
        opset: version of the standard operators to use.
    """
    graph = model.graph
    constants = Constants(graph)
    for node in list(graph):
        if node.domain != SEMANTIC_DOMAIN:
            continue
        emitter = Emitter(node, opset, constants)
        values = rows[node.op_type](emitter)
        for new in emitter.nodes:
            new.metadata_props.update(node.metadata_props)
        kept = list(zip(node.outputs, values, strict=False))
        for old, new_value in kept:
            new_value.type = old.type if new_value.type is None else new_value.type
            new_value.shape = old.shape if new_value.shape is None else new_value.shape
        ir.convenience.replace_nodes_and_values(
            graph, node, [node], emitter.nodes, [old for old, _ in kept], [new_value for _, new_value in kept]
        )
    model.opset_imports.clear()
    for node in graph:
        model.opset_imports[node.domain] = opset if node.domain == "" else 1
    model.opset_imports[""] = opset
