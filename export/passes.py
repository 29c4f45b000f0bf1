"""Graph passes after lowering: drop what nothing reads, say everything once, and give tidy names."""

from __future__ import annotations

import re

import onnx_ir as ir
from onnx_ir.passes import common

from pinnace.export.graph import LEFT_OUT, MODULE


def tidy(model: ir.Model) -> None:
    """Clean a lowered graph in place.

    1. Nodes and initializers that nothing reads go, and nodes that do nothing.
    2. Nodes that compute the same thing twice become one (a mask is prepared once, not once a layer).
    3. Every node and inner value is named after its module: ``/bert/encoder/layer.0/output/SkipLayerNormalization``.
    4. The translation's notes go.
    """
    _skip_identities(model.graph)
    common.RemoveUnusedNodesPass()(model)
    common.CommonSubexpressionEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)
    graph = model.graph
    graph.sort()
    _name_nodes(graph)
    model.producer_name = "pinnace"
    for node in graph:
        node.metadata_props.clear()


def _skip_identities(graph: ir.Graph) -> None:
    """Pass by Identity nodes, but for those that give one value a second name among the outputs."""
    for node in list(graph):
        if node.op_type == "Identity" and node.domain == "" and not node.outputs[0].is_graph_output():
            source = node.inputs[0]
            assert source is not None  # Identity has one input
            ir.convenience.replace_all_uses_with(node.outputs[0], source)
            graph.remove(node, safe=True)


def _name_nodes(graph: ir.Graph) -> None:
    kept = {id(value) for value in (*graph.inputs, *graph.outputs)}
    seen: dict[str, int] = {}
    for node in graph:
        path = node.metadata_props.get(MODULE, "")
        # "bert.encoder.layer.0.output" -> "/bert/encoder/layer.0/output": an index stays with the list it counts.
        prefix = "/" + re.sub(r"\.(?!\d+(\.|$))", "/", path) if path else ""
        base = f"{prefix}/{node.op_type}"
        number = seen.get(base, 0)
        seen[base] = number + 1
        node.name = f"{base}_{number}" if number else base
        for index, value in enumerate(node.outputs):
            if id(value) not in kept and value.name != LEFT_OUT:
                value.name = f"{node.name}_output_{index}"
