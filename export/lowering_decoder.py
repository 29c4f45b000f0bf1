"""Rows of the ``onnx`` target for what decoders have and encoders lack: RMSNorm, rotary positions and xIELU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from pinnace.export import functions
from pinnace.export.graph import Emitter

RMS_OPSET: Final = 23  # first version with RMSNormalization
ROTARY_OPSET: Final = 23  # first version with RotaryEmbedding
# xIELU without eps is off by b times eps next to 0. Checkpoints have -1e-6, for gradients; expm1's rounding is 6e-8.
EPS_LIMIT: Final = 2e-6


def rms_norm(e: Emitter) -> Sequence[ir.Value]:
    """RMSNormalization over the weight's width; a head's weight norms each head apart."""
    x, weight = e.needed(0), e.needed(1)
    size, width = _last(weight), _last(x)
    if size == width:
        return [rms_normalization(e, x, weight)]
    split = e.op("Reshape", x, e.constant([0, 0, width // size, size]))
    return [e.op("Reshape", rms_normalization(e, split, weight), e.constant([0, 0, width]))]


def rms_normalization(e: Emitter, x: ir.Value, weight: ir.Value) -> ir.Value:
    """One operator from opset 23 on, six before."""
    if e.opset >= RMS_OPSET:
        return e.op("RMSNormalization", x, weight, axis=-1, epsilon=e.attribute("epsilon"))
    mean = e.op("ReduceMean", e.op("Mul", x, x), e.constant([-1]), keepdims=1)
    root = e.op("Sqrt", e.op("Add", mean, e.constant(e.attribute("epsilon"), "float32")))
    return e.op("Mul", e.op("Div", x, root), weight)


def add_rms_norm(e: Emitter) -> Sequence[ir.Value]:
    """Sum, then RMSNormalization: normed and sum.

    The fused SkipSimplifiedLayerNormalization is no faster on the CPU (528 against 518 us for 512 x 1024 numbers) and
    slower for few (7.1 against 5.4 us for 1 x 4096; onnxruntime 1.32).
    """
    total = e.op("Sum", e.needed(0), e.needed(1))
    return [rms_normalization(e, total, e.needed(2)), total]


def rotary_angles(e: Emitter) -> Sequence[ir.Value]:
    """One function for all layers; no table of every position is stored."""
    inputs, scale, inverse = (e.needed(0), e.needed(1)), e.attribute("scale"), list(e.attribute("inverse"))
    if "base" not in e.node.attributes:
        return e.call(functions.rotary_angles, *inputs, outputs=2, inverse=inverse, scale=float(scale))
    pairs = len(inverse)
    given = {name: float(e.attribute(name)) for name in ("base", "factor", "positions")}
    return e.call(
        functions.stretched_rotary_angles, *inputs, outputs=2, **given, scale=float(scale),
        power=pairs / (pairs - 1), exponents=[i / pairs for i in range(pairs)],
    )  # fmt: skip


def rotary(e: Emitter) -> Sequence[ir.Value]:
    """RotaryEmbedding (opset 23) with the angles of this run; split, turned and joined before it."""
    x, cos, sin = (e.needed(i) for i in range(3))
    pairs, width = _last(cos), _last(x)
    heads = width // (2 * pairs)
    if e.opset >= ROTARY_OPSET:
        return [e.op("RotaryEmbedding", x, cos, sin, num_heads=heads)]
    first, second = e.ops("Split", e.op("Reshape", x, e.constant([0, 0, heads, -1])), outputs=2, axis=-1, num_outputs=2)
    cos, sin = (e.op("Unsqueeze", t, e.constant([2])) for t in (cos, sin))
    left = e.op("Sub", e.op("Mul", first, cos), e.op("Mul", second, sin))
    right = e.op("Add", e.op("Mul", second, cos), e.op("Mul", first, sin))
    return [e.op("Reshape", e.op("Concat", left, right, axis=-1), e.constant([0, 0, width]))]


def xielu(e: Emitter) -> Sequence[ir.Value]:
    """One function; its trained numbers are read now, so that softplus and the constants cost nothing later."""
    numbers = _xielu_numbers(e)
    if -EPS_LIMIT <= numbers["eps"] <= 0:
        del numbers["eps"]
        return e.call(functions.xielu, e.needed(0), **numbers)
    return e.call(functions.clamped_xielu, e.needed(0), **numbers)


def half_xielu(e: Emitter) -> Sequence[ir.Value]:
    """The form that stays exact in fp16."""
    return e.call(functions.accurate_xielu, e.needed(0), **_xielu_numbers(e))


def _xielu_numbers(e: Emitter) -> dict[str, Any]:
    alpha_p, alpha_n, beta, eps = (e.read(i) for i in range(1, 5))
    a, b = float(np.logaddexp(0.0, alpha_p)), beta + float(np.logaddexp(0.0, alpha_n))
    return {"alpha_p": a, "alpha_n": b, "beta": beta, "eps": eps}


def _last(value: ir.Value) -> int:
    shape = value.shape
    assert shape is not None and isinstance(shape[-1], int)  # widths are fixed by the configuration
    return int(shape[-1])
