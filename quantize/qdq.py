"""Static int8 for accelerators: QuantizeLinear and DequantizeLinear around products, standard operators only.

The graph computes in fp32 as written; a compiler that knows integers (TensorRT, QNN, OpenVINO, ONNX Runtime's CPU
kernels) replaces each product and the pairs around it by one integer product. Weights are symmetric with a scale for
each output. Activations have one fixed scale: unsigned with a zero point, which QNN and OpenVINO take and ONNX
Runtime's CPU kernels run fastest, or signed with zero at 0, the only form that TensorRT takes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pinnace.arrays import Array
from pinnace.quantize.emit import Emitter
from pinnace.quantize.int8 import plan_bias, plan_weight
from pinnace.quantize.projections import Group
from pinnace.quantize.ranges import Range
from pinnace.quantize.tensors import TensorPlan


def quantize_pairs(
    emit: Emitter,
    plan: TensorPlan,
    group: Group,
    how: Range,
    *,
    reduced: bool,
    signed: bool,
    corrections: Mapping[str, Array],
) -> None:
    """Replace a group's projections by products between pairs.

    Args:
        emit: makes nodes before the group's first one.
        plan: takes the quantized weights.
        group: projections that read the same activations.
        how: their one range.
        reduced: weights whose sums cannot overflow where the processor adds pairs in sixteen bits.
        signed: int8 activations with zero at 0; else uint8.
        corrections: projection -> what is added to its bias, float32 ``(N,)``.
    """
    scale = plan.constant(f"{group.name}_activation_scale", np.float32(how.scale))
    code = np.int8(0) if signed else np.uint8(how.zero)
    zero = plan.constant(f"constant_{code.dtype}_0d_{code}", code)
    rounded = emit.op("DequantizeLinear", emit.op("QuantizeLinear", group.activations, scale, zero), scale, zero)
    for projection in group.members:
        codes, steps = plan_weight(plan, projection, None, reduced, None)
        weight = emit.op("DequantizeLinear", codes, steps, axis=1)  # (K, N), a scale for each of N
        product = emit.op("MatMul", rounded, weight)
        bias = plan_bias(plan, projection, corrections.get(projection.name))
        emit.replace(projection.result, product if bias is None else emit.op("Add", product, bias))
