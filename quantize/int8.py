"""int8 with integer arithmetic: eight-bit activations times eight-bit weights, each row's result its own.

Activations are unsigned, with a fixed scale or with one for each token; both leave a row independent of
its batch mates, unlike the one scale for a whole tensor of ONNX's DynamicQuantizeLinear. Signed activations would need
no zero point, but ONNX Runtime multiplies them at a fifth of fp32's speed (1.32, AVX-512 with VNNI).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from pinnace.arrays import Array
from pinnace.quantize.emit import Emitter
from pinnace.quantize.projections import FUSED, Group, Projection
from pinnace.quantize.ranges import TINY, Range, token_shares
from pinnace.quantize.rounding.gptq import Hessian, compensated_channels
from pinnace.quantize.rounding.nearest import channel_codes
from pinnace.quantize.tensors import TensorPlan, read_weight, rows_of


def quantize_group(
    emit: Emitter,
    plan: TensorPlan,
    group: Group,
    how: Range,
    *,
    reduced: bool,
    corrections: Mapping[str, Array],
    hessian: Hessian | None = None,
    tied: Collection[str] = (),
) -> dict[str, Sequence[ir.Value]]:
    """Replace a group's projections by integer products, and return the codes and steps of each weight.

    Args:
        emit: makes nodes before the group's first one.
        plan: takes the quantized weights.
        group: projections that read the same activations.
        how: their range.
        reduced: weights whose sums cannot overflow where the processor adds pairs in sixteen bits.
        corrections: projection -> what is added to its bias, float32 ``(N,)``.
        hessian: of the activations, to compensate rounding errors with; None rounds to nearest.
        tied: weights whose codes a table reads too: they are stored row by row, and turned when a session opens.
    """
    if hessian is not None:
        hessian = hessian.divided(how.smooth)
    x = group.activations
    if how.smooth is not None:
        x = emit.smooth(plan, group, how.smooth)
    if how.per_token:
        codes, row_scale = _token_codes(emit, plan, x, group.inputs, how.zero)
        scale, zero = plan.constant("constant_float32_0d_1", np.float32(1)), _byte(plan, how.zero)
    else:
        row_scale = None
        scale = plan.constant(f"{group.name}_activation_scale", np.float32(how.scale))
        zero = _byte(plan, how.zero)
        codes = emit.op("QuantizeLinear", x, scale, zero)
    planned: dict[str, Sequence[ir.Value]] = {}
    for projection in group.members:
        rows = projection.name in tied
        planned[projection.name] = plan_weight(plan, projection, how.smooth, reduced, hessian, rows=rows)
        weight, steps = planned[projection.name]
        weight = emit.op("Transpose", weight, perm=[1, 0]) if rows else weight
        bias = plan_bias(plan, projection, corrections.get(projection.name))
        early = None if how.per_token else bias
        inputs = (codes, weight, scale, steps, zero, None, early)
        y = emit.op("MatMulIntegerToFloat", *inputs, domain=FUSED)
        if row_scale is not None:
            y = emit.op("Mul", y, row_scale)
            y = y if bias is None else emit.op("Add", y, bias)
        emit.replace(projection.result, y)
    return planned


def plan_weight(
    plan: TensorPlan,
    projection: Projection,
    smooth: Array | None,
    reduced: bool,
    hessian: Hessian | None,
    *,
    rows: bool = False,
) -> list[ir.Value]:
    """Plan the codes int8 ``(K, N)``, or ``(N, K)`` where ``rows``, and steps float32 ``(N,)`` of a weight."""
    name = projection.name
    K, N = projection.inputs, projection.outputs

    def make() -> dict[str, Array]:
        weight = smoothed(projection, smooth)
        if hessian is None:
            codes, steps = channel_codes(weight, reduced=reduced)
        else:
            codes, steps = compensated_channels(weight, hessian, reduced, search=False)
        return {f"{name}_quantized": codes if rows else codes.T, f"{name}_scale": steps}

    entries = {
        f"{name}_quantized": (ir.DataType.INT8, (N, K) if rows else (K, N)),
        f"{name}_scale": (ir.DataType.FLOAT, (N,)),
    }
    return plan.add(entries, make)


def plan_bias(plan: TensorPlan, projection: Projection, correction: Array | None) -> ir.Value | None:
    """The projection's bias, corrected where asked; None where it has none and needs none."""
    if correction is None:
        return projection.bias
    bias = 0 if projection.bias is None else read_weight(projection.bias)
    return plan.constant(f"{projection.name}_bias", np.asarray(bias + correction, np.float32))


def smoothed(projection: Projection, smooth: Array | None) -> Array:
    """A projection's weight as float32 ``(N, K)``, its columns multiplied by what the activations are divided by."""
    return weight_rows(projection) if smooth is None else stored_weight(projection) * smooth


def stored_weight(projection: Projection) -> Array:
    """A projection's weight as float32 ``(N, K)``."""
    weight = read_weight(projection.weight)
    return weight if projection.transposed else np.ascontiguousarray(weight.T)


def weight_rows(projection: Projection) -> Array:
    """A projection's weight as float32 ``(N, K)`` to be rounded, a very large one in parts."""
    return rows_of(projection.weight) if projection.transposed else stored_weight(projection)


def _byte(plan: TensorPlan, code: int) -> ir.Value:
    return plan.constant(f"constant_uint8_0d_{code}", np.uint8(code))


def _token_codes(emit: Emitter, plan: TensorPlan, x: ir.Value, width: int, zero: int) -> tuple[ir.Value, ir.Value]:
    """Codes of the activations ``(..., K)`` and the step of each row ``(..., 1)``.

    Two reductions and one quantization by row: 0.55 ns a number where dividing the rows first takes 1.2.
    """
    axis = plan.constant("constant_int64_1d_m1", np.array([-1], np.int64))
    ends = (emit.op("ReduceMax", x, axis, keepdims=1), emit.op("ReduceMin", x, axis, keepdims=1))
    shares = (plan.constant(f"constant_float32_0d_share_{zero}_{i}", s) for i, s in enumerate(token_shares(zero)))
    steps = (emit.op("Mul", end, share) for end, share in zip(ends, shares, strict=True))
    tiny = plan.constant("constant_float32_0d_tiny", np.float32(TINY))
    step = emit.op("Max", *steps, tiny)  # (..., 1)
    flat_step = emit.op("Reshape", step, axis)  # (rows,)
    rows = emit.op("Reshape", x, plan.constant(f"constant_int64_1d_m1_{width}", np.array([-1, width], np.int64)))
    zeros = emit.op("Expand", _byte(plan, zero), emit.op("Shape", flat_step))
    codes = emit.op("QuantizeLinear", rows, flat_step, zeros, axis=0)
    return emit.op("Reshape", codes, emit.op("Shape", x)), step
