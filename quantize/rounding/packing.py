"""Lay out rounded weights as ONNX Runtime's kernels read them: MatMulNBits, GatherBlockQuantized, integer products."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Final

import numpy as np

from pinnace.quantize.rounding.nearest import Blocks, Bytes, Codes, Floats

# What MatMulNBits computes in: 0 fp32 (and slow), 1 fp32, 2 fp16, 3 bf16, 4 int8. It rounds activations per block.
ACCURACY_LEVEL: Final = 4


@dataclasses.dataclass(frozen=True)
class Operands:
    """The tensors and attributes of one node that reads blocks.

    Attributes:
        data: uint8; [N, blocks, bytes] for MatMulNBits, [N, bytes] for GatherBlockQuantized.
        scales: fp32 [N, blocks].
        attributes: the node's attributes.
    """

    data: Bytes
    scales: Floats
    attributes: Mapping[str, int]


def matmul_operands(blocks: Blocks, accuracy_level: int = ACCURACY_LEVEL) -> Operands:
    """Pack blocks for MatMulNBits (com.microsoft), which multiplies by the transposed weight.

    A short last block is filled up with codes of zero. Without a bias the node's inputs are ``A, data, scales``;
    onnxruntime 1.32 insists on the three dimensions of ``data``.

    Args:
        blocks: a weight of N outputs and K inputs.
        accuracy_level: 0 to 4, see `ACCURACY_LEVEL`.
    """
    (n, k), count = blocks.codes.shape, blocks.scales.shape[1]
    codes = blocks.codes
    if short := count * blocks.block - k:
        codes = np.concatenate([codes, np.full((n, short), 1 << (blocks.bits - 1), np.uint8)], axis=1)
    return Operands(
        packed(codes, blocks.bits).reshape(n, count, -1),
        np.ascontiguousarray(blocks.scales, np.float32),
        {"K": k, "N": n, "bits": blocks.bits, "block_size": blocks.block, "accuracy_level": accuracy_level},
    )


def shares_bytes(columns: int, block: int) -> bool:
    """Whether MatMulNBits and GatherBlockQuantized read the same bytes, so that a tied weight is stored once."""
    return columns % block == 0


def row_operands(codes: Codes, scales: Floats) -> tuple[Codes, Floats]:
    """Lay out int8 rows for a plain Gather: gather codes and scales, cast the codes, multiply.

    Args:
        codes: int8 [N, K].
        scales: fp32 [N].

    Returns:
        codes int8 [N, K] and scales fp32 [N, 1], so that gathered ones broadcast.
    """
    return np.ascontiguousarray(codes), np.ascontiguousarray(scales, np.float32)[:, None]


def packed(codes: Bytes, bits: int) -> Bytes:
    """Pack codes [N, K] into bytes, the first of two 4-bit codes in the low half; a missing last one is zero."""
    if bits == 8:
        return np.ascontiguousarray(codes)
    low, high = codes[:, ::2], codes[:, 1::2]
    out = low.copy()
    out[:, : high.shape[1]] |= high << np.uint8(4)
    return out
