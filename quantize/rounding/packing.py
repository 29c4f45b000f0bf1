"""Lay out rounded weights as ONNX Runtime's kernels read them: MatMulNBits, GatherBlockQuantized, integer products."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Final

import numpy as np

from pinnace.errors import UsageError
from pinnace.quantize.rounding.nearest import Blocks, Bytes, Codes, Floats, check_layout

# What MatMulNBits computes in: 0 fp32 (and slow), 1 fp32, 2 fp16, 3 bf16, 4 int8. It rounds activations per block.
ACCURACY_LEVEL: Final = 4


@dataclasses.dataclass(frozen=True)
class Operands:
    """The tensors and attributes of one node that reads blocks.

    Attributes:
        data: uint8; [N, blocks, bytes] for MatMulNBits, [N, bytes] for GatherBlockQuantized.
        scales: fp32 [N, blocks].
        zeros: uint8 [N, ceil(blocks * bits / 8)], or None where every zero point is the middle of the range.
        attributes: the node's attributes.
    """

    data: Bytes
    scales: Floats
    zeros: Bytes | None
    attributes: Mapping[str, int]


def matmul_operands(blocks: Blocks, accuracy_level: int = ACCURACY_LEVEL) -> Operands:
    """Pack blocks for MatMulNBits (com.microsoft), which multiplies by the transposed weight.

    A short last block is filled up with zero points. Without a bias the node's inputs are ``A, data, scales[, zeros]``;
    onnxruntime 1.32 insists on the three dimensions of ``data``.

    Args:
        blocks: a weight of N outputs and K inputs.
        accuracy_level: 0 to 4, see `ACCURACY_LEVEL`.
    """
    (n, k), count = blocks.codes.shape, blocks.scales.shape[1]
    codes = blocks.codes
    if short := count * blocks.block - k:
        last = np.uint8(1 << (blocks.bits - 1)) if blocks.zeros is None else blocks.zeros[:, -1:]
        codes = np.concatenate([codes, np.broadcast_to(last, (n, short))], axis=1)
    return Operands(
        packed(codes, blocks.bits).reshape(n, count, -1),
        np.ascontiguousarray(blocks.scales, np.float32),
        None if blocks.zeros is None else packed(blocks.zeros, blocks.bits),
        {"K": k, "N": n, "bits": blocks.bits, "block_size": blocks.block, "accuracy_level": accuracy_level},
    )


def gather_operands(blocks: Blocks) -> Operands:
    """Pack blocks for GatherBlockQuantized (com.microsoft), which looks rows up and returns them in fp32.

    The node's inputs are ``data, indices, scales[, zeros]``. For uint8 data its CPU kernel wants the first axis
    gathered and the last one quantized. Where K is a multiple of the block, the bytes are those of `matmul_operands`:
    one tensor then serves both (see `shares_bytes`).

    Args:
        blocks: an embedding of N rows and K columns.

    Raises:
        UsageError: two 4-bit codes make a byte, so an odd K has no layout.
    """
    if blocks.bits == 4 and blocks.codes.shape[1] % 2:
        raise UsageError(f"4-bit rows need an even number of columns, got {blocks.codes.shape[1]}; use 8 bits")
    return Operands(
        packed(blocks.codes, blocks.bits),
        np.ascontiguousarray(blocks.scales, np.float32),
        None if blocks.zeros is None else packed(blocks.zeros, blocks.bits),
        {"bits": blocks.bits, "block_size": blocks.block, "gather_axis": 0, "quantize_axis": 1},
    )


def shares_bytes(columns: int, block: int) -> bool:
    """Whether MatMulNBits and GatherBlockQuantized read the same bytes, so that a tied weight is stored once."""
    return columns % block == 0


def integer_operands(codes: Codes, scales: Floats) -> tuple[Codes, Floats]:
    """Lay out int8 codes for MatMulInteger and DynamicQuantizeMatMul, which multiply by the weight as it stands.

    Args:
        codes: int8 [N, K].
        scales: fp32 [N].

    Returns:
        codes int8 [K, N] and scales fp32 [N].
    """
    return np.ascontiguousarray(codes.T), np.ascontiguousarray(scales, np.float32)


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


def unpacked(data: Bytes, bits: int, count: int) -> Bytes:
    """Return the first ``count`` codes of each row [N, bytes]; the inverse of `packed`."""
    if bits == 8:
        return data[:, :count]
    return np.stack([data & np.uint8(15), data >> np.uint8(4)], axis=2).reshape(len(data), -1)[:, :count]


def blocks_of(operands: Operands, columns: int) -> Blocks:
    """Return the blocks that a node's operands hold.

    Args:
        operands: of either node.
        columns: K, the weight's inputs or the embedding's columns.
    """
    bits, block = operands.attributes["bits"], operands.attributes["block_size"]
    check_layout(bits, block)
    data = operands.data.reshape(len(operands.data), -1)
    zeros = None if operands.zeros is None else unpacked(operands.zeros, bits, operands.scales.shape[1])
    return Blocks(unpacked(data, bits, columns), operands.scales, zeros, bits, block)
