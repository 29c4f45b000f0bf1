"""Embedding tables in few bits: rows are gathered as codes and become numbers again one batch at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import onnx_ir as ir

from pinnace.arrays import Array
from pinnace.quantize.emit import Emitter
from pinnace.quantize.projections import FUSED, Table
from pinnace.quantize.rounding.nearest import channel_codes
from pinnace.quantize.rounding.packing import row_operands
from pinnace.quantize.tensors import TensorPlan, rows_of

EMBED: Final = "EmbedLayerNormalization"
_INPUTS: Final = 9  # of EmbedLayerNormalization


@dataclasses.dataclass(frozen=True)
class StoredCodes:
    """What a variant stores of a projection's weight (N, K).

    Attributes:
        values: codes and scales: of rows (N, K) and (N,), or of blocks (N, blocks, bytes) and (N, blocks).
        bits: of a code.
        block: columns that share a scale, which divide K; None where a row has one.
        factors: by what the columns were multiplied before they were rounded, (K,).
    """

    values: Sequence[ir.Value]
    bits: int
    block: int | None = None
    factors: Array | None = None


def split_embedding(model: ir.Model) -> None:
    """Take EmbedLayerNormalization apart, in place, so that its largest table can be gathered as codes.

    The operator has a quantized form, QEmbedLayerNormalization, with one scale for a whole table; a scale for each row
    loses far less.
    """
    graph = model.graph
    plan = TensorPlan(graph)
    for node in [node for node in graph if node.op_type == EMBED and node.domain == FUSED]:
        given = [*node.inputs, *[None] * (_INPUTS - len(node.inputs))]
        ids, segments, words, places, kinds, weight, bias, _mask, position_ids = given
        emit = Emitter(graph, node)
        parts = [emit.op("Gather", words, ids)]
        if position_ids is not None:
            parts.append(emit.op("Gather", places, position_ids))
        else:
            zero, one = (plan.constant(f"constant_int64_1d_{i}", np.array([i], np.int64)) for i in (0, 1))
            parts.append(emit.op("Slice", places, zero, emit.op("Shape", ids, start=1, end=2), zero, one))
        if segments is not None:
            parts.append(emit.op("Gather", kinds, segments))
        epsilon = node.attributes.get_float("epsilon", 1e-12)
        normed = emit.op("LayerNormalization", emit.op("Sum", *parts), weight, bias, axis=-1, epsilon=epsilon)
        emit.replace(node.outputs[0], normed)


def quantize_rows(emit: Emitter, plan: TensorPlan, table: Table) -> None:
    """Eight bits, one scale for each row; standard operators."""
    rows, width = _shape(table)
    name = table.name

    def make() -> Mapping[str, Array]:
        codes, scales = row_operands(*channel_codes(rows_of(table.weight), reduced=False))
        return {f"{name}_rows": codes, f"{name}_row_scale": scales}

    entries = {
        f"{name}_rows": (ir.DataType.INT8, (rows, width)),
        f"{name}_row_scale": (ir.DataType.FLOAT, (rows, 1)),
    }
    codes, scales = plan.add(entries, make)
    ids = table.node.inputs[1]
    numbers = emit.op("Cast", emit.op("Gather", codes, ids), to=ir.DataType.FLOAT)
    emit.replace(table.node.outputs[0], emit.op("Mul", numbers, emit.op("Gather", scales, ids)))


def gather_tied(emit: Emitter, plan: TensorPlan, table: Table, stored: StoredCodes) -> None:
    """Gather rows of the codes of the projection that has the same weight, which is then stored once."""
    ids = table.node.inputs[1]
    if stored.block is not None:
        data, scales = stored.values
        flat = plan.constant("constant_int64_1d_0_m1", np.array([0, -1], np.int64))
        rows = emit.op(
            "GatherBlockQuantized", emit.op("Reshape", data, flat), ids, scales, domain=FUSED,
            bits=stored.bits, block_size=stored.block, gather_axis=0, quantize_axis=1,
        )  # fmt: skip
    else:
        codes, steps = (emit.op("Gather", value, ids) for value in stored.values)
        last = plan.constant("constant_int64_1d_m1", np.array([-1], np.int64))
        rows = emit.op("Mul", emit.op("Cast", codes, to=ir.DataType.FLOAT), emit.op("Unsqueeze", steps, last))
        if stored.factors is not None:
            inverse = plan.constant(f"{table.name}_unsmoothing", np.asarray(1 / stored.factors, np.float32))
            rows = emit.op("Mul", rows, inverse)
    emit.replace(table.node.outputs[0], rows)


def _shape(table: Table) -> tuple[int, int]:
    assert table.weight.shape is not None  # initializers are typed
    rows, width = (int(size) for size in table.weight.shape if isinstance(size, int))
    return rows, width
