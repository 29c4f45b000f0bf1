"""Lowering: replace every semantic node by the operators that a table gives for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

SEMANTIC_DOMAIN: Final = "pinnace"
LEFT_OUT: Final = ""  # name of an optional output that is not wanted
MODULE: Final = "module"  # key of a node's note: the dotted path of the module it came from
Row = Callable[["Emitter"], Sequence[ir.Value]]
Reader = Callable[[str], npt.NDArray[np.float64]]  # gives a small weight's numbers by its name
FunctionBuilder = Callable[[int], ir.Function]
T = TypeVar("T")


class Emitter:
    """Collects the nodes that replace one semantic node; a lowering row talks to nothing else.

    Attributes:
        node: the semantic node.
        opset: version of the standard operators that the graph will use.
    """

    def __init__(self, node: ir.Node, opset: int, constants: Constants, work: _Work) -> None:
        self.node, self.opset = node, opset
        self.nodes: list[ir.Node] = []
        self.constant = constants.get
        self._work = work

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

    def read(self, index: int) -> float:
        """The one number of the weight at ``index``, which thereby becomes a constant of the graph."""
        name = str(self.needed(index).name)
        self._work.folded.add(name)
        return float(self._work.reader(name).item())

    def call(
        self, builder: FunctionBuilder, *inputs: ir.Value, outputs: int = 1, **attributes: Any
    ) -> Sequence[ir.Value]:
        """Emit a call of a function that the graph carries, with the function's own attributes."""
        if builder not in self._work.functions:
            self._work.functions[builder] = builder(self.opset)
        function = self._work.functions[builder]
        return self.ops(function.name, *inputs, domain=function.domain, outputs=outputs, **attributes)

    def once(self, what: str, of: ir.Value, build: Callable[[], T]) -> T:
        """What ``build`` gives, built by the first row of the graph that asks for it: all layers share one mask."""
        key = (what, id(of))
        if key not in self._work.shared:
            self._work.shared[key] = build()
        found: T = self._work.shared[key]
        return found

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


@dataclasses.dataclass
class _Work:
    """What the rows share: a reader of small weights, the names that were read, functions, and what is built once."""

    reader: Reader
    folded: set[str] = dataclasses.field(default_factory=set)
    functions: dict[FunctionBuilder, ir.Function] = dataclasses.field(default_factory=dict)
    shared: dict[tuple[str, int], Any] = dataclasses.field(default_factory=dict)


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


def lower(model: ir.Model, rows: Mapping[str, Row], opset: int, reader: Reader) -> frozenset[str]:
    """Replace every semantic node of the graph, in place, by what its row emits.

    Args:
        model: a traced model; afterwards it holds target operators, and calls of the functions that it carries.
        rows: semantic operator -> row.
        opset: version of the standard operators to use.
        reader: gives the numbers of a weight that a row makes a constant of.

    Returns:
        names of those weights; nothing in the graph reads them any more.
    """
    graph = model.graph
    constants = Constants(graph)
    work = _Work(reader)
    for node in list(graph):
        if node.domain != SEMANTIC_DOMAIN:
            continue
        emitter = Emitter(node, opset, constants, work)
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
    for function in work.functions.values():
        model.functions[function.identifier()] = function
    return frozenset(work.folded)
