"""Named functions inside a graph: what a reader sees as one node, with its numbers, and a runtime unfolds.

A function works in fp32 inside and gives the type that it was given, so the fp16 variant has its fp32 islands for free.

Shapes: B batch, T new tokens, D head size.
"""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from typing import Any, Final

import onnx_ir as ir

DOMAIN: Final = "pinnace"
FLOAT: Final = ir.DataType.FLOAT
_STEEP: Final = 3e38  # nearly the largest fp32: a slope by which every normal number above 0 reaches 1
_ATTRIBUTE_TYPES: Final[Mapping[str, ir.AttributeType]] = types.MappingProxyType(
    {"value_float": ir.AttributeType.FLOAT, "value_floats": ir.AttributeType.FLOATS}
)


class Body:
    """A function's body under construction.

    Attributes:
        inputs: the function's inputs, in order.
    """

    def __init__(self, inputs: Sequence[str]) -> None:
        self.inputs = [ir.Value(name=name) for name in inputs]
        self.nodes: list[ir.Node] = []
        self.parameters: dict[str, ir.AttributeType] = {}

    def op(self, op_type: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        """Add a standard node with one output."""
        node = ir.node(op_type, inputs, attributes=attributes, name=f"{op_type}_{len(self.nodes)}")
        return self._add(node)

    def number(self, value: float) -> ir.Value:
        """A constant of the body."""
        return self.op("Constant", value_float=float(value))

    def parameter(self, name: str, kind: str = "value_float") -> ir.Value:
        """An attribute of the function, as a constant."""
        self.parameters[name] = _ATTRIBUTE_TYPES[kind]
        reference = ir.RefAttr(kind, name, _ATTRIBUTE_TYPES[kind])
        return self._add(ir.Node("", "Constant", [], [reference], name=f"Constant_{len(self.nodes)}"))

    def like(self, value: ir.Value, pattern: ir.Value) -> ir.Value:
        """A value in another one's type."""
        return self.op("CastLike", value, pattern)

    def _add(self, node: ir.Node) -> ir.Value:
        self.nodes.append(node)
        value = node.outputs[0]
        value.name = f"{node.name}_output"
        return value

    def function(self, name: str, outputs: Sequence[ir.Value], opset: int) -> ir.Function:
        """Finish the function."""
        graph = ir.Graph(self.inputs, outputs, nodes=self.nodes, opset_imports={"": opset}, name=name)
        attributes = [ir.Attr(key, kind, None) for key, kind in self.parameters.items()]
        return ir.Function(DOMAIN, name, graph=graph, attributes=attributes)


def xielu(opset: int) -> ir.Function:
    """xIELU with a, b and beta as attributes: ``a x^2 + beta x`` above 0, ``b (expm1(x) - x) + beta x`` below it.

    eps is left out: the last numbers below 0, from eps on, come out with expm1(x) in place of expm1(eps), and the value
    is off by b eps at most. Use `clamped_xielu` where that is not next to nothing.

    Written without a choice between two halves: Where and Greater take 17 to 42 ms for 512 x 4096 numbers on the CPU, a
    plain operator 0.6 to 1.3 (onnxruntime 1.32, one thread). Both halves are one sum of ten,
    ``x (a p + beta - b) + b max(x, expm1(min(x, 0)))`` with p = max(x, 0): 0.72 of the time of `clamped_xielu`. Fewer
    are slower: Elu and Selu take 6 ms, for their exponential is not vectorized.
    """
    body = Body(["x"])
    x, alpha_p, alpha_n, beta = _open(body)
    below = body.op("Sub", body.op("Exp", body.op("Min", x, body.number(0.0))), body.number(1.0))
    elu = body.op("Max", below, x)
    result = _with_curve(body, elu, x, body.op("Relu", x), alpha_p, alpha_n, beta)
    return body.function("XIELU", [body.like(result, body.inputs[0])], opset)


def clamped_xielu(opset: int) -> ir.Function:
    """The same with eps as one more attribute: ``expm1(min(x, eps))`` below 0, whatever eps is.

    ``x (a p + beta - b) + b (p + below expm1(min(x, eps)))``, where below is 1 up to 0 and 0 above it.
    """
    body = Body(["x"])
    x, alpha_p, alpha_n, beta = _open(body)
    expm1 = body.op("Sub", body.op("Exp", body.op("Min", x, body.parameter("eps"))), body.number(1.0))
    negative = body.op("Mul", expm1, body.op("HardSigmoid", x, alpha=-_STEEP, beta=1.0))
    positive = body.op("Relu", x)
    result = _with_curve(body, body.op("Add", negative, positive), x, positive, alpha_p, alpha_n, beta)
    return body.function("ClampedXIELU", [body.like(result, body.inputs[0])], opset)


def _with_curve(
    body: Body, elu: ir.Value, x: ir.Value, positive: ir.Value, alpha_p: ir.Value, alpha_n: ir.Value, beta: ir.Value
) -> ir.Value:
    """``x (a p + beta - b) + b elu``, with p = max(x, 0) as ``positive``."""
    curve = body.op("Add", body.op("Mul", positive, alpha_p), body.op("Sub", beta, alpha_n))
    return body.op("Add", body.op("Mul", elu, alpha_n), body.op("Mul", curve, x))


def accurate_xielu(opset: int) -> ir.Function:
    """The same for fp16, whose smallest numbers would show what ``exp - 1`` loses.

    ``expm1(x) = 2 t / (1 - t)`` with t = ``tanh(x / 2)``. Twice the time of `xielu` on the CPU; within one unit of the
    last place of fp16 everywhere for b up to 2, and up to 4 but for the one or two numbers next to where the value
    crosses zero (three units there).
    """
    body = Body(["x"])
    x, alpha_p, alpha_n, beta = _open(body)
    eps = body.parameter("eps")
    one, half = body.number(1.0), body.number(0.5)

    def expm1(value: ir.Value) -> ir.Value:
        t = body.op("Tanh", body.op("Mul", value, half))
        return body.op("Div", t, body.op("Sub", one, t))

    above = body.op("HardSigmoid", x, alpha=_STEEP, beta=0.0)
    halved = body.op("Sub", expm1(body.op("Min", x, eps)), body.op("Mul", above, expm1(eps)))
    positive = body.op("Relu", x)
    curve = body.op("Mul", positive, body.op("Add", body.op("Mul", positive, alpha_p), alpha_n))
    rest = body.op("Add", body.op("Mul", x, body.op("Sub", beta, alpha_n)), curve)
    result = body.op("Add", rest, body.op("Mul", halved, body.op("Add", alpha_n, alpha_n)))
    return body.function("XIELU", [body.like(result, body.inputs[0])], opset)


def _open(body: Body) -> tuple[ir.Value, ir.Value, ir.Value, ir.Value]:
    """The input in fp32, and the numbers a, b and beta."""
    x = body.op("Cast", body.inputs[0], to=FLOAT)
    alpha_p, alpha_n, beta = (body.parameter(name) for name in ("alpha_p", "alpha_n", "beta"))
    return x, alpha_p, alpha_n, beta


def rotary_angles(opset: int) -> ir.Function:
    """Positions (B, T) -> cosine and sine (B, T, D / 2), in the type of the second input."""
    body = Body(["position_ids", "like"])
    return _angles(body, "RotaryAngles", body.parameter("inverse", "value_floats"), opset)


def stretched_rotary_angles(opset: int) -> ir.Function:
    """The same for dynamic scaling: a row longer than ``positions`` turns slower.

    ``theta = base (factor length / positions - (factor - 1)) ^ (D / (D - 2))``; pair i turns by ``theta ^ -(2 i / D)``.
    """
    body = Body(["position_ids", "like"])
    base, factor, positions = (body.parameter(name) for name in ("base", "factor", "positions"))
    one = body.number(1.0)
    last = body.op("ReduceMax", body.inputs[0], body.op("Constant", value_ints=[1]), keepdims=1)
    length = body.op("Max", body.op("Add", body.op("Cast", last, to=FLOAT), one), positions)  # (B, 1)
    stretch = body.op("Div", body.op("Mul", factor, length), positions)
    stretch = body.op("Sub", stretch, body.op("Sub", factor, one))
    theta = body.op("Mul", body.op("Pow", stretch, body.parameter("power")), base)
    exponents = body.parameter("exponents", "value_floats")
    speeds = body.op("Pow", body.op("Unsqueeze", theta, body.op("Constant", value_ints=[1])), exponents)
    return _angles(body, "StretchedRotaryAngles", body.op("Div", one, speeds), opset)  # (B, 1, D / 2)


def _angles(body: Body, name: str, inverse: ir.Value, opset: int) -> ir.Function:
    position_ids, like = body.inputs
    places = body.op("Unsqueeze", body.op("Cast", position_ids, to=FLOAT), body.op("Constant", value_ints=[2]))
    turned, scale = body.op("Mul", places, inverse), body.parameter("scale")
    results = (body.op("Mul", body.op(op_type, turned), scale) for op_type in ("Cos", "Sin"))
    return body.function(name, [body.like(result, like) for result in results], opset)
