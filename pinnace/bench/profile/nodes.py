"""From a node of the optimised graph back to the semantic model: its layer, its part of the layer, its operator."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Final

from pinnace.runtime.bundles.onnx_graph import GraphModel, GraphNode
from pinnace.runtime.checks.inspect_bundle import TOP, layer_of, split_layer

_Found = tuple[GraphNode | None, list[GraphNode]]  # the origin, and where to look on without it

OUTSIDE: Final = "outside the model"
BESIDE: Final = "beside the layers"
HEAD: Final = "head"
ATTENTION: Final = "attention"
MLP: Final = "MLP"
NORMS: Final = "norms and residuals"
OTHER: Final = "other"

_NORM_OPERATORS: Final = frozenset(
    {
        "LayerNormalization", "SkipLayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization",
        "SkipSimplifiedLayerNormalization",
    }
)  # fmt: skip
_SUMS: Final = frozenset({"Add", "Sum"})
# What a node's path inside its layer says -> the part of the layer; the first that is found counts.
_PART_PATHS: Final[tuple[tuple[re.Pattern[str], str], ...]] = (
    (re.compile(r"/(q_norm|k_norm)/"), ATTENTION),
    (re.compile(r"/(self_attn|attention|crossattention)/"), ATTENTION),
    (re.compile(r"/(mlp|intermediate|output|feed_forward)/"), MLP),
)
_OWN_NORMS: Final = _PART_PATHS[0][0]


class NodeMap:
    """Which semantic node each node of the optimised graph came from.

    ONNX Runtime folds, fuses and inlines nodes before it runs them. A node came from, whichever is found first:

    1. the node of its name in the bundle's graph;
    2. the node that gave one of its outputs there: a fused node gives what the last of its parts gave;
    3. the node that fed the same input of the node that reads its result: the inside of a function, a cast; that
       reader itself, where it read a weight;
    4. the node whose result it reads.

    3 and 4 go on from neighbour to neighbour until one is known.

    Args:
        original: the graph of the bundle.
        optimised: the graph that ONNX Runtime runs; None where it could not be had.
    """

    def __init__(self, original: GraphModel, optimised: GraphModel | None) -> None:
        self._own = {node.name: node for node in original.graph.walk()}
        self._functions = {(function.domain, function.name) for function in original.functions}
        self._made_by = {value: node for node in original.graph.walk() for value in node.outputs if value}
        self._optimised: dict[str, GraphNode] = {}
        self._readers: dict[str, list[tuple[GraphNode, int]]] = {}
        self._makers: dict[str, GraphNode] = {}
        for node in optimised.graph.nodes if optimised else ():
            self._optimised[node.name] = node
            for place, value in enumerate(node.inputs):
                self._readers.setdefault(value, []).append((node, place))
            self._makers.update({value: node for value in node.outputs if value})
        self._stems = {stem for stem, number in map(split_layer, map(layer_of, self._own)) if number is not None}

    def node(self, name: str) -> GraphNode | None:
        """The node of the optimised graph (or the bundle's, where only that is known), None if there is none."""
        return self._optimised.get(name) or self._own.get(name)

    def owner(self, name: str) -> GraphNode | None:
        """The node of the bundle's graph that a node of the optimised graph came from; None if it came from none."""
        if name in self._own or name not in self._optimised:
            return self._own.get(name)
        first = self._optimised[name]
        return self._search(first, self._after) or self._search(first, self._before)

    def operator(self, name: str, kernel: str) -> str:
        """The operator to name: the function that a node is the inside of, else the kernel that ran."""
        owner = self.owner(name)
        return owner.op_type if owner is not None and (owner.domain, owner.op_type) in self._functions else kernel

    def layer(self, name: str) -> str:
        """The semantic layer of a node: ``layer 3``, ``embeddings``, ``head``, ``beside the layers``, or `OUTSIDE`."""
        owner = self.owner(name)
        if owner is None:
            return OUTSIDE
        layer = layer_of(owner.name)
        if layer == TOP:
            return HEAD
        number = split_layer(layer)[1]
        if number is not None:
            return f"layer {number}"
        if any(stem.startswith(f"{layer}/") for stem in self._stems):
            return BESIDE
        return layer.rsplit("/", 1)[-1]

    def part(self, name: str, inputs: Iterable[tuple[int, ...]]) -> str:
        """The part of its layer that a node belongs to.

        Args:
            name: of the node in the optimised graph.
            inputs: shapes of its inputs, by which the sum of two activations is told from a bias.
        """
        owner = self.owner(name)
        if owner is None:
            return OTHER
        if owner.op_type in _NORM_OPERATORS and not _OWN_NORMS.search(owner.name):
            return NORMS
        shapes = list(inputs)
        if owner.op_type in _SUMS and len(shapes) > 1 and len(set(shapes)) == 1 and len(shapes[0]) > 1:
            return NORMS
        inside = owner.name.removeprefix(layer_of(owner.name))
        return next((part for path, part in _PART_PATHS if path.search(inside)), OTHER)

    def _search(self, first: GraphNode, look: Callable[[GraphNode], _Found]) -> GraphNode | None:
        """Go from node to node until one tells where it came from; the nearest is found first."""
        seen, row = {first.name}, [first]
        while row:
            following: dict[str, GraphNode] = {}
            for node in row:
                known, near = look(node)
                if known is not None:
                    return known
                following.update((other.name, other) for other in near if other.name not in seen)
            seen.update(following)
            row = list(following.values())
        return None

    def _after(self, node: GraphNode) -> _Found:
        """Rules 2 and 3."""
        readers = [reader for value in node.outputs for reader in self._readers.get(value, ())]
        known = next((self._made_by[value] for value in node.outputs if value in self._made_by), None)
        if known is None and (same := next((r for r in readers if r[0].name in self._own), None)):
            reader, place = self._own[same[0].name], same[1]
            known = self._made_by.get(reader.inputs[place], reader) if place < len(reader.inputs) else reader
        return known, [reader for reader, _ in readers]

    def _before(self, node: GraphNode) -> _Found:
        """Rule 4."""
        makers = [self._makers[value] for value in node.inputs if value in self._makers]
        return next((self._own[maker.name] for maker in makers if maker.name in self._own), None), makers
