"""The way back from packed weights, and layouts of other nodes that read them, to compare with."""

from __future__ import annotations

import numpy as np

from pinnace.errors import UsageError
from pinnace.quantize.rounding.nearest import Blocks, Bytes, Codes, Floats, check_layout, in_blocks, row_chunks
from pinnace.quantize.rounding.packing import Operands, packed


def dequantize(blocks: Blocks) -> Floats:
    """Return the weight that the blocks stand for, fp32 [N, K]."""
    n, k = blocks.codes.shape
    out = np.empty((n, k), np.float32)
    for rows in row_chunks((n, k)):
        codes = in_blocks(blocks.codes[rows].astype(np.float32), blocks.block)
        codes -= np.float32(1 << (blocks.bits - 1))
        codes *= blocks.scales[rows, :, None]
        out[rows] = codes.reshape(len(codes), -1)[:, :k]
    return out


def gather_operands(blocks: Blocks) -> Operands:
    """Pack blocks for GatherBlockQuantized (com.microsoft), which looks rows up and returns them in fp32.

    The node's inputs are ``data, indices, scales``. For uint8 data its CPU kernel wants the first axis
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
        {"bits": blocks.bits, "block_size": blocks.block, "gather_axis": 0, "quantize_axis": 1},
    )


def integer_operands(codes: Codes, scales: Floats) -> tuple[Codes, Floats]:
    """Lay out int8 codes for MatMulInteger and DynamicQuantizeMatMul, which multiply by the weight as it stands.

    Args:
        codes: int8 [N, K].
        scales: fp32 [N].

    Returns:
        codes int8 [K, N] and scales fp32 [N].
    """
    return np.ascontiguousarray(codes.T), np.ascontiguousarray(scales, np.float32)


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
    return Blocks(unpacked(data, bits, columns), operands.scales, bits, block)
