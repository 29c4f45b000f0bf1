"""Find what can be quantized in a lowered graph: the projections, grouped by the activations they read, and the tables.

Every quantizer works on these records, so none matches patterns of its own, and a graph of either target serves.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Final

import onnx_ir as ir

FUSED: Final = "com.microsoft"
MIN_WIDTH: Final = 32  # narrower weights (a head of two labels) gain nothing and lose much


@dataclasses.dataclass(frozen=True)
class Projection:
    """One product with a weight, and the bias that is added to it.

    Attributes:
        name: of the weight, as the checkpoint has it.
        node: the product; its first input are the activations ``(..., K)``.
        weight: the initializer: ``(N, K)`` where ``transposed``, else ``(K, N)``.
        transposed: whether the weight is stored as the checkpoint does, out before in.
        bias: an initializer ``(N,)``, or None.
        result: the value that holds product and bias.
        extra: nodes besides ``node`` that the projection consists of (a transposition, the bias's addition).
    """

    name: str
    node: ir.Node
    weight: ir.Value
    transposed: bool
    bias: ir.Value | None
    result: ir.Value
    extra: tuple[ir.Node, ...]

    @property
    def activations(self) -> ir.Value:
        """What the weight is multiplied with."""
        value = self.node.inputs[0]
        assert value is not None  # the first input of a product
        return value

    @property
    def inputs(self) -> int:
        """K, numbers in a row of the activations."""
        return _sizes(self.weight)[1 if self.transposed else 0]

    @property
    def outputs(self) -> int:
        """N, numbers in a row of the result."""
        return _sizes(self.weight)[0 if self.transposed else 1]


@dataclasses.dataclass(frozen=True)
class Group:
    """Projections that read the same activations, so that these are quantized once for all of them.

    Attributes:
        name: of the first projection.
        activations: the value that all read, ``(..., K)``.
        members: the projections, in the graph's order.
    """

    name: str
    activations: ir.Value
    members: tuple[Projection, ...]

    @property
    def inputs(self) -> int:
        """K, numbers in a row of the activations."""
        return self.members[0].inputs

    @property
    def everywhere(self) -> ir.Value:
        """The activations of every position, where the group itself reads those of each row's last only.

        Calibration sees a hundred times as much of a decoder's head in this way.
        """
        maker = self.activations.producer()
        if maker is not None and maker.op_type == "GatherElements" and maker.inputs[0] is not None:
            return maker.inputs[0]
        return self.activations


@dataclasses.dataclass(frozen=True)
class Table:
    """An embedding table: ``node`` gathers rows of ``weight (rows, width)``."""

    name: str
    node: ir.Node
    weight: ir.Value


def find_groups(graph: ir.Graph) -> tuple[Group, ...]:
    """Return every group of projections, in the graph's order."""
    found: dict[int, list[Projection]] = {}
    for projection in find_projections(graph):
        found.setdefault(id(projection.activations), []).append(projection)
    return tuple(Group(members[0].name, members[0].activations, tuple(members)) for members in found.values())


def find_projections(graph: ir.Graph) -> Iterator[Projection]:
    """Yield every product of activations with a weight of at least `MIN_WIDTH` rows and columns."""
    for node in graph:
        if (found := _product(node)) is None:
            continue
        weight, transposed, bias, extra = found
        result = node.outputs[0]
        if bias is None and (added := _bias_after(node)) is not None:
            adder, bias = added
            result, extra = adder.outputs[0], (*extra, adder)
        if min(_sizes(weight)) >= MIN_WIDTH:
            yield Projection(str(weight.name), node, weight, transposed, bias, result, tuple(extra))


def find_tables(graph: ir.Graph) -> tuple[Table, ...]:
    """Return every embedding table of at least `MIN_WIDTH` rows and columns."""
    return tuple(
        Table(str(weight.name), node, weight)
        for node in graph
        if node.op_type == "Gather"
        and node.attributes.get_int("axis", 0) == 0
        and (weight := _weight(node.inputs[0])) is not None
        and min(_sizes(weight)) >= MIN_WIDTH
    )


def _product(node: ir.Node) -> tuple[ir.Value, bool, ir.Value | None, tuple[ir.Node, ...]] | None:
    """Weight, whether it is stored (N, K), bias, and other nodes of a product; None for any other node."""
    if node.op_type not in ("FusedMatMul", "MatMul", "Gemm") or len(node.inputs) < 2:
        return None
    second = node.inputs[1]
    turned = bool(node.attributes.get_int("transB", 0))
    extra: tuple[ir.Node, ...] = ()
    maker = second.producer() if second is not None else None
    if maker is not None and maker.op_type == "Transpose":
        second, turned, extra = maker.inputs[0], not turned, (maker,)
    weight = _weight(second)
    plain = all(node.attributes.get_int(name, 0) == 0 for name in ("transA", "transBatchA", "transBatchB"))
    scaled = any(node.attributes.get_float(name, 1.0) != 1.0 for name in ("alpha", "beta"))
    if weight is None or not plain or scaled:
        return None
    bias = _vector(node.inputs[2]) if len(node.inputs) > 2 else None
    if len(node.inputs) > 2 and node.inputs[2] is not None and bias is None:
        return None
    return weight, turned, bias, extra


def _bias_after(node: ir.Node) -> tuple[ir.Node, ir.Value] | None:
    """The node that adds a bias to a product, where nothing else reads the product."""
    product = node.outputs[0]
    uses = list(product.uses())
    if len(uses) != 1 or product.is_graph_output():
        return None
    adder = uses[0].node
    if adder.op_type not in ("Add", "Sum") or len(adder.inputs) != 2:
        return None
    bias = _vector(next((value for value in adder.inputs if value is not product), None))
    return None if bias is None else (adder, bias)


def _weight(value: ir.Value | None) -> ir.Value | None:
    return value if value is not None and value.is_initializer() and len(_sizes(value)) == 2 else None


def _vector(value: ir.Value | None) -> ir.Value | None:
    return value if value is not None and value.is_initializer() and len(_sizes(value)) == 1 else None


def _sizes(value: ir.Value) -> Sequence[int]:
    assert value.shape is not None  # initializers are typed
    return [int(size) for size in value.shape if isinstance(size, int)]
