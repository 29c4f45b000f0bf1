"""Turn a traced program into a graph: semantic operators stay one node each, the few plain operators get a row each."""

from __future__ import annotations

import json
import operator
import re
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import onnx_ir as ir
import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from pinnace.export.graph import MODULE, SEMANTIC_DOMAIN, Constants
from pinnace.spec import TensorSpec

WRAPPER: Final = "model"  # attribute under which the traced module keeps the model
_TYPES: Final[Mapping[torch.dtype, ir.DataType]] = types.MappingProxyType(
    {
        torch.float32: ir.DataType.FLOAT,
        torch.float16: ir.DataType.FLOAT16,
        torch.bfloat16: ir.DataType.BFLOAT16,
        torch.int64: ir.DataType.INT64,
        torch.bool: ir.DataType.BOOL,
    }
)


def translate(
    program: ExportedProgram, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], opset: int
) -> ir.Model:
    """Build the graph of a program.

    Args:
        program: what `torch.export` gave for a module that keeps the model as ``model``.
        inputs: names and shapes of the program's tensors, in order.
        outputs: names and shapes of its results.
        opset: version of the standard operators that plain operators are written in.

    Returns:
        a model whose initializers are named as the reference's ``state_dict`` and hold no data.

    Raises:
        NotImplementedError: the reference uses an operator that has no row here; write it as a semantic operator.
    """
    return _Translation(program, inputs, opset).finish(outputs)


class _Translation:
    """A program half translated: ``values`` maps each of its nodes to a value, or a list of them, of the graph."""

    def __init__(self, program: ExportedProgram, inputs: Sequence[TensorSpec], opset: int) -> None:
        self.program = program
        self.graph = ir.Graph([], [], nodes=[], opset_imports={"": opset, SEMANTIC_DOMAIN: 1}, name="main")
        self.constant = Constants(self.graph).get
        self.values: dict[fx.Node, Any] = {}
        self.sizes: dict[str, str] = {}
        self.current: fx.Node | None = None
        self._take_inputs(inputs)

    def _take_inputs(self, inputs: Sequence[TensorSpec]) -> None:
        placeholders = {node.name: node for node in self.program.graph.nodes if node.op == "placeholder"}
        given = iter(inputs)
        for spec in self.program.graph_signature.input_specs:
            node = placeholders[spec.arg.name]
            fake = node.meta["val"]
            if spec.kind == InputKind.USER_INPUT:
                tensor = next(given)
                symbols = zip(fake.shape, tensor.shape, strict=True)
                self.sizes |= {str(size): axis for size, axis in symbols if isinstance(axis, str)}
                value = ir.Value(name=tensor.name, shape=ir.Shape(tensor.shape), type=_tensor_type(fake))
                self.graph.inputs.append(value)
            else:
                name = str(spec.target).removeprefix(f"{WRAPPER}.")
                value = ir.Value(name=name, shape=ir.Shape(list(fake.shape)), type=_tensor_type(fake))
                self.graph.initializers[name] = value
            self.values[node] = value

    def finish(self, outputs: Sequence[TensorSpec]) -> ir.Model:
        needed = _needed(self.program.graph)
        for node in self.program.graph.nodes:
            if node.op == "call_function" and node in needed:
                self.current = node
                self.values[node] = self._translated(node)
        (results,) = self.program.graph.output_node().args
        for spec, node in zip(outputs, _list(results), strict=True):
            value = self.values[node]
            value.name, value.shape = spec.name, ir.Shape(spec.shape)
            self.graph.outputs.append(value)
        return ir.Model(self.graph, ir_version=IR_VERSION)

    def _translated(self, node: fx.Node) -> Any:
        if node.target is operator.getitem:
            source, index = node.args
            return self.values[_node(source)][index]
        if node.target is torch.ops.pinnace.semantic.default:
            return self._semantic(node)
        row = _ROWS.get(str(node.target))
        if row is None:
            raise NotImplementedError(f"the reference uses {node.target}, which has no row in export/translate.py")
        return row(self, *node.args)

    def _semantic(self, node: fx.Node) -> Sequence[ir.Value]:
        given, op, attributes, *_ = node.args
        inputs = [None if each is None else self.values[_node(each)] for each in _list(given)]
        return self._emit(str(op), inputs, SEMANTIC_DOMAIN, json.loads(str(attributes)), node.meta["val"])

    def op(self, op_type: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        """Emit the standard node that gives the current node's result."""
        assert self.current is not None  # set for the time of a row
        return self._emit(op_type, inputs, "", attributes, [self.current.meta.get("val")])[0]

    def size_op(self, op_type: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        """Emit a standard node that computes sizes, a list of int64."""
        value = self._emit(op_type, inputs, "", attributes, [None])[0]
        value.type = ir.TensorType(ir.DataType.INT64)
        return value

    def _emit(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        domain: str,
        attributes: Mapping[str, Any],
        fakes: Sequence[Any],
    ) -> Sequence[ir.Value]:
        made = ir.node(op_type, inputs, attributes=attributes, domain=domain, num_outputs=len(fakes))
        assert self.current is not None
        made.metadata_props[MODULE] = _module_of(self.current)
        for value, fake in zip(made.outputs, fakes, strict=True):
            if isinstance(fake, torch.Tensor):
                value.type, value.shape = _tensor_type(fake), ir.Shape([self._size(size) for size in fake.shape])
        self.graph.append(made)
        return made.outputs

    def _size(self, size: int | torch.SymInt) -> int | str:
        """A size by the name that the task gives it, also inside products such as ``s0*s1``."""
        if isinstance(size, int):
            return size
        return re.sub(r"[A-Za-z_]\w*", lambda match: self.sizes.get(match[0], match[0]), str(size))

    def shape(self, sizes: Sequence[Any]) -> ir.Value:
        """A list of sizes, each a number or a node of the program, as one tensor."""
        if all(isinstance(size, int) for size in sizes):
            return self.constant(list(sizes))
        return self.size_op("Concat", *(self.number(size) for size in sizes), axis=0)

    def number(self, size: Any) -> ir.Value:
        """A size as a tensor of one element."""
        return self.constant([size]) if isinstance(size, int) else self.values[size]

    def value(self, node: Any) -> ir.Value:
        """The value that a node of the program became."""
        found: ir.Value = self.values[node]
        return found


IR_VERSION: Final = 10
TranslationRow = Callable[..., Any]


def _select(t: _Translation, x: fx.Node, axis: int, index: int) -> ir.Value:
    return t.op("Gather", t.value(x), t.constant(index), axis=axis)


def _expand(t: _Translation, x: fx.Node, sizes: Sequence[Any]) -> ir.Value:
    # -1 keeps an axis; for Expand that is 1.
    return t.op("Expand", t.value(x), t.shape([1 if size == -1 else size for size in sizes]))


def _flatten(t: _Translation, x: fx.Node, first: int, last: int) -> ir.Value:
    before = t.size_op("Shape", t.value(x), start=0, end=first)
    after = t.size_op("Shape", t.value(x), start=last + 1)
    return t.op("Reshape", t.value(x), t.size_op("Concat", before, t.constant([-1]), after, axis=0))


def _zeros_like(t: _Translation, x: fx.Node) -> ir.Value:
    # Without a value attribute ConstantOfShape gives fp32.
    zero = ir.tensor([0], dtype=t.value(x).dtype)
    return t.op("ConstantOfShape", t.size_op("Shape", t.value(x)), value=zero)


_ROWS: Final[Mapping[str, TranslationRow]] = types.MappingProxyType(
    {
        "aten.clone.default": lambda t, x: t.op("Identity", t.value(x)),
        "aten.dropout.default": lambda t, x, *_: t.value(x),
        "aten.embedding.default": lambda t, table, ids, *_: t.op("Gather", t.value(table), t.value(ids)),
        "aten.expand.default": _expand,
        "aten.flatten.using_ints": _flatten,
        "aten.gather.default": lambda t, x, axis, index: t.op("GatherElements", t.value(x), t.value(index), axis=axis),
        "aten.reshape.default": lambda t, x, sizes: t.op("Reshape", t.value(x), t.shape(sizes)),
        "aten.select.int": _select,
        "aten.sym_size.int": lambda t, x, axis: t.size_op("Shape", t.value(x), start=axis, end=axis + 1),
        "aten.unsqueeze.default": lambda t, x, axis: t.op("Unsqueeze", t.value(x), t.constant([axis])),
        "aten.zeros_like.default": _zeros_like,
    }
)


def _needed(graph: fx.Graph) -> set[fx.Node]:
    """Nodes that the outputs depend on.

    Not among them are the tracer's own assertions about sizes, and the sizes that a semantic node is told of.
    """
    found: set[fx.Node] = set()
    waiting = list(graph.output_node().all_input_nodes)
    while waiting:
        node = waiting.pop()
        if node in found:
            continue
        found.add(node)
        if node.target is torch.ops.pinnace.semantic.default:
            waiting.extend(each for each in _list(node.args[0]) if isinstance(each, fx.Node))
        else:
            waiting.extend(node.all_input_nodes)
    return found


def _list(argument: Any) -> Sequence[Any]:
    assert isinstance(argument, Sequence)
    return argument


def _node(argument: Any) -> fx.Node:
    assert isinstance(argument, fx.Node)
    return argument


def _tensor_type(fake: torch.Tensor) -> ir.TensorType:
    return ir.TensorType(_TYPES[fake.dtype])


def _module_of(node: fx.Node) -> str:
    """Dotted path of the innermost module, such as ``bert.encoder.layer.0.output``."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    path = str(stack[-1][0]) if stack else ""
    return path.removeprefix(WRAPPER).removeprefix(".")
