"""Graph passes after lowering: drop what nothing reads, say everything once, and give tidy names."""

from __future__ import annotations

import re
from collections.abc import Mapping

import onnx_ir as ir
from onnx_ir.passes import common

from pinnace.export.graph import scope_of


def tidy(model: ir.Model) -> None:
    """Clean a lowered graph in place.

    1. Nodes and initializers that nothing reads go, and nodes that do nothing.
    2. Nodes that compute the same thing twice become one (a mask is prepared once, not once a layer).
    3. Every node and inner value is named after its module: ``/bert/encoder/layer.0/output/SkipLayerNormalization``.
    4. The tracer's notes (stack traces, source paths) and its names of sizes go.
    """
    _skip_identities(model.graph)
    common.RemoveUnusedNodesPass()(model)
    common.CommonSubexpressionEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)
    graph = model.graph
    graph.sort()
    _name_nodes(graph)
    _forget_the_tracer(model)


def _skip_identities(graph: ir.Graph) -> None:
    """Pass by Identity nodes, but for those that give one value a second name among the outputs."""
    for node in list(graph):
        if node.op_type == "Identity" and node.domain == "" and not node.outputs[0].is_graph_output():
            source = node.inputs[0]
            assert source is not None  # Identity has one input
            ir.convenience.replace_all_uses_with(node.outputs[0], source)
            graph.remove(node, safe=True)


def rename_sizes(graph: ir.Graph, names: Mapping[str, str]) -> None:
    """Give symbolic sizes the names that the task gives them, also inside products such as ``s0*s1``."""
    for node in graph:
        for value in node.outputs:
            if value.shape is not None:
                value.shape = ir.Shape([_renamed(size, names) for size in value.shape])


def _renamed(size: int | ir.SymbolicDim, names: Mapping[str, str]) -> int | str | None:
    if isinstance(size, int) or size.value is None:
        return size if isinstance(size, int) else None
    return re.sub(r"[A-Za-z_]\w*", lambda match: names.get(match[0], match[0]), size.value)


def _name_nodes(graph: ir.Graph) -> None:
    kept = {id(value) for value in (*graph.inputs, *graph.outputs)}
    seen: dict[str, int] = {}
    for node in graph:
        path = scope_of(node)
        # "bert.encoder.layer.0.output" -> "/bert/encoder/layer.0/output": an index stays with the list it counts.
        prefix = "/" + re.sub(r"\.(?!\d+(\.|$))", "/", path) if path else ""
        base = f"{prefix}/{node.op_type}"
        number = seen.get(base, 0)
        seen[base] = number + 1
        node.name = f"{base}_{number}" if number else base
        for index, value in enumerate(node.outputs):
            if id(value) not in kept:
                value.name = f"{node.name}_output_{index}"


def _forget_the_tracer(model: ir.Model) -> None:
    model.metadata_props.clear()
    model.doc_string = None
    model.graph.doc_string = None
    model.graph.metadata_props.clear()
    model.graph.name = "main"
    model.producer_name, model.producer_version = "pinnace", None
    model.functions.clear()
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.doc_string = None
        value.metadata_props.clear()
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.doc_string = None
            value.metadata_props.clear()
