"""The ``ort`` target: ONNX Runtime's fused operators; what it does not fuse is taken from the ``onnx`` target."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import onnx_ir as ir

from pinnace.export import lowering_decoder
from pinnace.export import lowering_onnx as standard
from pinnace.export.graph import LEFT_OUT, Emitter, Row

FUSED: Final = "com.microsoft"
GROUP_QUERY_STEP: Final = 8  # GroupQueryAttention takes head sizes that are multiples of this


def linear(e: Emitter) -> Sequence[ir.Value]:
    """FusedMatMul reads the weight as the checkpoint stores it, (out, in): no transposed copy at load."""
    x, weight, bias = e.needed(0), e.needed(1), e.input(2)
    if x.shape is not None and len(x.shape) == 2:
        return standard.linear(e)
    return [standard.add_bias(e, e.op("FusedMatMul", x, weight, domain=FUSED, transB=1), bias)]


def add_layer_norm(e: Emitter) -> Sequence[ir.Value]:
    """SkipLayerNormalization takes the projection's bias too; good on CUDA, slow on the CPU."""
    return [e.op("SkipLayerNormalization", *e.node.inputs, domain=FUSED, epsilon=e.attribute("epsilon"))]


def activation(e: Emitter) -> Sequence[ir.Value]:
    """GELU forms with their bias in one kernel; the others as in the standard target."""
    fused = _FUSED_GELUS.get(e.attribute("function"))
    if fused is None or e.input(1) is None:
        return standard.activation(e)
    return [fused(e, e.needed(0), e.needed(1))]


def _bias_gelu(e: Emitter, x: ir.Value, bias: ir.Value) -> ir.Value:
    return e.op("BiasGelu", x, bias, domain=FUSED)


def _fast_gelu(e: Emitter, x: ir.Value, bias: ir.Value) -> ir.Value:
    return e.op("FastGelu", x, bias, domain=FUSED)


_FUSED_GELUS: Final[Mapping[str, Callable[[Emitter, ir.Value, ir.Value], ir.Value]]] = types.MappingProxyType(
    {
        "gelu": _bias_gelu,
        "gelu_python": _bias_gelu,
        "gelu_new": _fast_gelu,
        "gelu_fast": _fast_gelu,
        "gelu_accurate": _fast_gelu,
        "gelu_pytorch_tanh": _fast_gelu,
    }
)


def embed(e: Emitter) -> Sequence[ir.Value]:
    """EmbedLayerNormalization, which takes its ids as int32."""
    ids, token_types, position_ids, words, segments, positions, weight, bias = (e.input(i) for i in range(8))
    ids32, types32, places32 = (
        None if t is None else e.op("Cast", t, to=ir.DataType.INT32) for t in (ids, token_types, position_ids)
    )
    inputs = (ids32, types32, words, positions, segments, weight, bias, None, places32)
    # The second output (lengths) is required by the operator and read by nobody.
    out, lengths = e.ops("EmbedLayerNormalization", *inputs, domain=FUSED, outputs=2, epsilon=e.attribute("epsilon"))
    lengths.type = ir.TensorType(ir.DataType.INT32)
    return [out]


def attention(e: Emitter) -> Sequence[ir.Value]:
    """Attention of opset 23; MultiHeadAttention in graphs of an older opset.

    Attention was measured faster up to 256 tokens (0.5 against 1.1 ms for 16 rows of 32) and level beyond; its mask is
    prepared once for all layers.
    """
    return standard.attention(e) if e.opset >= standard.ATTENTION_OPSET else multi_head_attention(e)


def multi_head_attention(e: Emitter) -> Sequence[ir.Value]:
    """MultiHeadAttention with its biases (joined once, at load) and the key mask."""
    if e.output_is_read(1):
        return standard.attention(e)
    q, k, v, mask = e.needed(0), e.needed(1), e.needed(2), e.input(3)
    bias = None if e.input(4) is None else e.op("Concat", e.input(4), e.input(5), e.input(6), axis=0)
    keys = None if mask is None else e.op("Cast", mask, to=ir.DataType.INT32)
    return [e.op("MultiHeadAttention", q, k, v, bias, keys, domain=FUSED, num_heads=e.attribute("num_heads"))]


def add_rms_norm(e: Emitter) -> Sequence[ir.Value]:
    """SkipSimplifiedLayerNormalization: one kernel on CUDA."""
    x, residual, weight = (e.needed(i) for i in range(3))
    normed, mean, deviation, total = e.ops(
        "SkipSimplifiedLayerNormalization", x, residual, weight, domain=FUSED, outputs=4,
        epsilon=e.attribute("epsilon"),
    )  # fmt: skip
    mean.name = deviation.name = LEFT_OUT
    return [normed, total]


def shares_cache(head_size: int, *, attentions: bool) -> bool:
    """Whether past and present are one buffer: GroupQueryAttention takes the head size and its weights are not read."""
    return head_size % GROUP_QUERY_STEP == 0 and not attentions


def cached_attention(e: Emitter) -> Sequence[ir.Value]:
    """GroupQueryAttention: the new keys are written behind each row's own past, in place where buffers are shared.

    Rows are right-padded: a row's length is the number of ones in its mask.
    """
    without_past = e.input(4) is None  # rows may then be padded on either side
    if without_past or not shares_cache(standard.q_head_size(e), attentions=e.output_is_read(1)):
        return standard.cached_attention(e)
    mask, past_key, past_value = e.needed(3), e.needed(4), e.needed(5)
    q, k, v = standard.biased_projections(e, 6)
    lengths = e.op("ReduceSum", mask, e.constant([1]), keepdims=0)
    last = e.op("Cast", e.op("Sub", lengths, e.constant(1)), to=ir.DataType.INT32)  # (B,)
    total = e.op("Cast", e.op("Squeeze", e.op("Shape", mask, start=1, end=2)), to=ir.DataType.INT32)  # scalar S
    out, present_key, present_value = e.ops(
        "GroupQueryAttention", q, k, v, past_key, past_value, last, total, domain=FUSED, outputs=3,
        num_heads=e.attribute("num_heads"), kv_num_heads=e.attribute("kv_num_heads"),
    )  # fmt: skip
    return [out, e.node.outputs[1], present_key, present_value]


CPU_ROWS: Final[Mapping[str, Row]] = types.MappingProxyType(
    {
        **standard.ROWS,
        "Linear": linear,
        "Embed": embed,
        "Attention": attention,
        "CachedAttention": cached_attention,
    }
)
CUDA_ROWS: Final[Mapping[str, Row]] = types.MappingProxyType(
    {
        **CPU_ROWS,
        "Activation": activation,
        "AddLayerNorm": add_layer_norm,
        "AddRMSNorm": add_rms_norm,
        "Attention": multi_head_attention,
        "XIELU": lowering_decoder.half_xielu,
    }
)
