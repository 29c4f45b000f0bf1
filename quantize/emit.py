"""Put nodes into a lowered graph where others stood, named after the module that they belong to."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from pinnace.arrays import Array
from pinnace.quantize.projections import FUSED, Group
from pinnace.quantize.tensors import TensorPlan, read_weight

NORMS: Final = frozenset({"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"})


class Emitter:
    """Makes nodes of one group and puts them before the group's first node."""

    def __init__(self, graph: ir.Graph, before: ir.Node) -> None:
        self._graph = graph
        self._before = before
        self._prefix = str(before.name).rpartition("/")[0]
        self._taken = {str(node.name) for node in graph}

    def op(self, op_type: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any) -> ir.Value:
        """Insert a node with one output and return it."""
        given = list(inputs)
        while given and given[-1] is None:
            given.pop()
        base = name = f"{self._prefix}/{op_type}"
        number = 0
        while name in self._taken:
            number += 1
            name = f"{base}_{number}"
        self._taken.add(name)
        node = ir.node(op_type, given, attributes=attributes, domain=domain, name=name)
        node.outputs[0].name = f"{name}_output_0"
        self._graph.insert_before(self._before, node)
        return node.outputs[0]

    def smooth(self, plan: TensorPlan, group: Group, factors: Array) -> ir.Value:
        """The activations divided by factors ``(K,)``: in the norm before them, or by a product of their own.

        A norm takes the factors into its weights where nothing but the group reads it.
        """
        norm = group.activations.producer()
        readers = {id(use.node) for use in group.activations.uses()}
        alone = readers == {id(member.node) for member in group.members} and not group.activations.is_graph_output()
        weights = [] if norm is None else [value for value in norm.inputs[1:] if value is not None]
        if norm is not None and norm.op_type in NORMS and alone and all(v.is_initializer() for v in weights):
            for index, stored in enumerate(weights, 1):
                divided = np.asarray(read_weight(stored) / factors, np.float32)
                norm.replace_input_with(index, plan.constant(f"{stored.name}_smoothed", divided))
            return group.activations
        inverse = plan.constant(f"{group.name}_smoothing", np.asarray(1 / factors, np.float32))
        return self.op("Mul", group.activations, inverse)

    @staticmethod
    def replace(old: ir.Value, new: ir.Value) -> None:
        """Let all that read ``old`` read ``new``, under the old one's name; `sweep` then takes out what made it."""
        new.type, new.shape = old.type, old.shape
        new.name, old.name = old.name, f"{old.name}_replaced"
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)


def sweep(model: ir.Model) -> None:
    """Take out nodes and initializers that nothing reads, and declare the domains that are used."""
    common.RemoveUnusedNodesPass()(model)
    if any(node.domain == FUSED for node in model.graph):
        model.opset_imports[FUSED] = 1
