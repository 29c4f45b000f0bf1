"""Weights in four or eight bits by blocks, activations as they are: what makes a decoder's single tokens fast.

ONNX Runtime's MatMulNBits reads them. Its ``accuracy_level`` is always 4, which rounds activations to eight bits by
blocks on the way; left at 0, decoding takes several times as long.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from pinnace.arrays import Array
from pinnace.quantize.emit import Emitter
from pinnace.quantize.int8 import weight_rows
from pinnace.quantize.projections import FUSED, Projection
from pinnace.quantize.rounding.packing import ACCURACY_LEVEL, matmul_operands
from pinnace.quantize.rounding.rounders import Rounding
from pinnace.quantize.tensors import TensorPlan


def quantize_projection(
    emit: Emitter, plan: TensorPlan, projection: Projection, *, bits: int, block: int, rounding: Rounding
) -> list[ir.Value]:
    """Replace a projection by MatMulNBits, and return the initializers that it reads: codes and scales.

    Args:
        emit: makes nodes before the projection.
        plan: takes the quantized weight.
        projection: what to replace.
        bits: 4 or 8.
        block: inputs that share a scale.
        rounding: makes the blocks of a weight ``(N, K)``.
    """
    name = f"{projection.name}_q{bits}"
    N, K = projection.outputs, projection.inputs
    blocks = -(-K // block)
    entries: dict[str, tuple[ir.DataType, tuple[int, ...]]] = {
        name: (ir.DataType.UINT8, (N, blocks, block * bits // 8)),
        f"{name}_scale": (ir.DataType.FLOAT, (N, blocks)),
    }

    def make() -> Mapping[str, Array]:
        found = rounding(weight_rows(projection))
        operands = matmul_operands(found, ACCURACY_LEVEL)
        return {name: operands.data, f"{name}_scale": operands.scales}

    packed = plan.add(entries, make)
    product = emit.op(
        "MatMulNBits", projection.activations, *packed, domain=FUSED,
        K=K, N=N, bits=bits, block_size=block, accuracy_level=ACCURACY_LEVEL,
    )  # fmt: skip
    emit.replace(projection.result, product if projection.bias is None else emit.op("Add", product, projection.bias))
    return packed
