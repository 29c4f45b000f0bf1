"""Rows of the ``onnx`` target for a cache of fixed capacity: new keys are scattered into it, all slots are attended to.

A row of a batch lies in its slots from the first on, without holes. Its mask (B, capacity) has a one for each of its
tokens, the new ones too, so a row's first new key goes to slot ``length - T``; or to slot 0, where a prompt is padded.

Shapes: B batch, T new tokens, K key/value heads, D head size.
"""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from typing import Final

import onnx_ir as ir

from pinnace.export import lowering_onnx as standard
from pinnace.export.graph import Emitter, Row


def cached_attention(e: Emitter) -> Sequence[ir.Value]:
    """TensorScatter, then Attention with the causal mask and each row's length (opset 24)."""
    heads, kv_heads = e.attribute("num_heads"), e.attribute("kv_num_heads")
    mask, past_key, past_value = e.needed(3), e.needed(4), e.needed(5)
    q, k, v = standard.biased_projections(e, 6)
    lengths, start = _lengths_and_start(e, mask, q)
    present_key, present_value = (
        e.op("TensorScatter", past, standard.split_heads(e, new, kv_heads), start, axis=2)
        for past, new in ((past_key, k), (past_value, v))
    )
    visible = e.once("causal", mask, lambda: _visible_slots(e, mask, q, start))
    rows, visible = standard.group_heads(e, q, visible, heads, kv_heads)
    # ONNX Runtime's CPU kernel attends to every slot all the same; other runtimes may stop at the lengths.
    context = e.op("Attention", rows, present_key, present_value, visible, None, None, lengths)
    return [standard.ungroup_heads(e, context, heads, kv_heads), e.node.outputs[1], present_key, present_value]


def last_position(e: Emitter) -> Sequence[ir.Value]:
    """Mask (B, capacity), ids (B, T) -> index of the last real new token, (B, 1)."""
    mask, ids = e.needed(0), e.needed(1)
    lengths, start = _lengths_and_start(e, mask, ids)
    last = e.op("Sub", e.op("Sub", lengths, start), e.constant(1))
    return [e.op("Unsqueeze", e.op("Max", last, e.constant(0)), e.constant([1]))]


def _lengths_and_start(e: Emitter, mask: ir.Value, new: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Each row's tokens, and the slot of its first new one; both (B,)."""

    def build() -> tuple[ir.Value, ir.Value]:
        lengths = e.op("ReduceSum", mask, e.constant([1]), keepdims=0)
        return lengths, e.op("Max", e.op("Sub", lengths, e.op("Shape", new, start=1, end=2)), e.constant(0))

    return e.once("lengths", mask, build)


def _visible_slots(e: Emitter, mask: ir.Value, query: ir.Value, start: ir.Value) -> ir.Value:
    """Bool (B, 1, T, capacity): a new token sees the slots up to its own, which all hold tokens of its row."""
    zero, one = e.constant(0), e.constant(1)
    slots = e.op("Range", zero, e.op("Squeeze", e.op("Shape", mask, start=1, end=2)), one)
    steps = e.op("Range", zero, e.op("Squeeze", e.op("Shape", query, start=1, end=2)), one)
    own = e.op("Add", e.op("Unsqueeze", start, e.constant([1])), steps)  # (B, T)
    return e.op("LessOrEqual", slots, e.op("Unsqueeze", own, e.constant([1, 3])))


_OWN_ROWS: Final[Mapping[str, Row]] = types.MappingProxyType(
    {"CachedAttention": cached_attention, "LastPosition": last_position}
)
ROWS: Final[Mapping[str, Row]] = types.MappingProxyType({**standard.ROWS, **_OWN_ROWS})
HALF_ROWS: Final[Mapping[str, Row]] = types.MappingProxyType({**standard.HALF_ROWS, **_OWN_ROWS})
