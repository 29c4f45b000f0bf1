"""The ``onnx`` target: standard operators only, for any conforming runtime."""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import onnx_ir as ir

from pinnace.export import lowering_decoder
from pinnace.export.graph import Emitter, Row

GELU_OPSET: Final = 20  # first version with Gelu
ATTENTION_OPSET: Final = 23  # first version with Attention
NORM_INPUTS: Final = slice(0, 3)


def linear(e: Emitter) -> Sequence[ir.Value]:
    """x (..., in), weight (out, in), bias -> Gemm for matrices, else MatMul with the transposed weight."""
    x, weight, bias = e.needed(0), e.needed(1), e.input(2)
    if x.shape is not None and len(x.shape) == 2:
        return [e.op("Gemm", x, weight, bias, transB=1)]
    return [add_bias(e, e.op("MatMul", x, e.op("Transpose", weight, perm=[1, 0])), bias)]


def layer_norm(e: Emitter) -> Sequence[ir.Value]:
    """LayerNormalization over the last axis."""
    return [e.op("LayerNormalization", *e.node.inputs[NORM_INPUTS], axis=-1, epsilon=e.attribute("epsilon"))]


def add_layer_norm(e: Emitter) -> Sequence[ir.Value]:
    """Sum (with the bias added before), then LayerNormalization.

    Sum and not Add: ONNX Runtime fuses Add + LayerNormalization into SkipLayerNormalization, whose CPU kernel was
    measured six times slower than the two operators (6.1 against 1.0 ns an element, onnxruntime 1.32, AVX-512).
    """
    residual, weight, bias, x_bias = (e.input(i) for i in range(1, 5))
    total = e.op("Sum", add_bias(e, e.needed(0), x_bias), residual)
    return [e.op("LayerNormalization", total, weight, bias, axis=-1, epsilon=e.attribute("epsilon"))]


def add_bias(e: Emitter, x: ir.Value, bias: ir.Value | None) -> ir.Value:
    """x + bias, or x."""
    return x if bias is None else e.op("Add", x, bias)


def number(e: Emitter, value: float) -> ir.Value:
    """A float constant; graphs are lowered in fp32 and converted to other precisions afterwards."""
    return e.constant(value, "float32")


def gelu(e: Emitter, x: ir.Value) -> ir.Value:
    """x * Phi(x), exact. Source: Hendrycks and Gimpel 2016."""
    if e.opset >= GELU_OPSET:
        return e.op("Gelu", x)
    half = e.op("Mul", x, number(e, 0.5))
    cdf = e.op("Add", e.op("Erf", e.op("Mul", x, number(e, math.sqrt(0.5)))), number(e, 1.0))
    return e.op("Mul", half, cdf)


def gelu_tanh(e: Emitter, x: ir.Value) -> ir.Value:
    """The tanh approximation of GELU."""
    if e.opset >= GELU_OPSET:
        return e.op("Gelu", x, approximate="tanh")
    cube = e.op("Mul", e.op("Mul", e.op("Mul", x, x), x), number(e, 0.044715))
    inner = e.op("Mul", e.op("Add", x, cube), number(e, math.sqrt(2 / math.pi)))
    return e.op("Mul", e.op("Mul", x, number(e, 0.5)), e.op("Add", e.op("Tanh", inner), number(e, 1.0)))


def _sigmoid_gate(factor: float) -> Callable[[Emitter, ir.Value], ir.Value]:
    def apply(e: Emitter, x: ir.Value) -> ir.Value:
        inner = x if factor == 1.0 else e.op("Mul", x, number(e, factor))
        return e.op("Mul", x, e.op("Sigmoid", inner))

    return apply


def _plain(op_type: str) -> Callable[[Emitter, ir.Value], ir.Value]:
    return lambda e, x: e.op(op_type, x)


def _relu_squared(e: Emitter, x: ir.Value) -> ir.Value:
    positive = e.op("Relu", x)
    return e.op("Mul", positive, positive)


ActivationRow = Callable[[Emitter, ir.Value], ir.Value]
ACTIVATION_ROWS: Final[Mapping[str, ActivationRow]] = types.MappingProxyType(
    {
        "gelu": gelu,
        "gelu_python": gelu,
        "gelu_new": gelu_tanh,
        "gelu_fast": gelu_tanh,
        "gelu_accurate": gelu_tanh,
        "gelu_pytorch_tanh": gelu_tanh,
        "quick_gelu": _sigmoid_gate(1.702),
        "silu": _sigmoid_gate(1.0),
        "swish": _sigmoid_gate(1.0),
        "relu": _plain("Relu"),
        "relu2": _relu_squared,
        "relu6": lambda e, x: e.op("Clip", x, number(e, 0.0), number(e, 6.0)),
        "leaky_relu": lambda e, x: e.op("LeakyRelu", x, alpha=0.01),
        "mish": _plain("Mish"),
        "tanh": _plain("Tanh"),
        "sigmoid": _plain("Sigmoid"),
        "linear": _plain("Identity"),
    }
)


def activation(e: Emitter) -> Sequence[ir.Value]:
    """f(x + bias) by the table of activations.

    Sum and not Add, as in `add_layer_norm`: the fused BiasGelu is the slower form on the CPU (1.0 against 0.8 ns).
    """
    x, bias = e.needed(0), e.input(1)
    return [ACTIVATION_ROWS[e.attribute("function")](e, x if bias is None else e.op("Sum", x, bias))]


def embed(e: Emitter) -> Sequence[ir.Value]:
    """Three Gathers, two Adds, LayerNormalization; positions are 0..T-1 where none are given."""
    ids, token_types, position_ids, words, segments, positions, weight, bias = (e.input(i) for i in range(8))
    if position_ids is None:
        length = e.op("Shape", ids, start=1, end=2)
        place = e.op("Slice", positions, e.constant([0]), length, e.constant([0]))
    else:
        place = e.op("Gather", positions, position_ids)
    total = e.op("Add", e.op("Gather", words, ids), e.op("Gather", segments, token_types))
    total = e.op("Add", total, place)
    return [e.op("LayerNormalization", total, weight, bias, axis=-1, epsilon=e.attribute("epsilon"))]


def split_heads(e: Emitter, x: ir.Value, heads: int) -> ir.Value:
    """(B, S, heads * D) -> (B, heads, S, D)."""
    return e.op("Transpose", e.op("Reshape", x, e.constant([0, 0, heads, -1])), perm=[0, 2, 1, 3])


def visible_keys(e: Emitter, mask: ir.Value) -> ir.Value:
    """Mask (B, S) of 0 and 1 -> bool (B, 1, 1, S)."""
    return e.op("Cast", e.op("Unsqueeze", mask, e.constant([1, 2])), to=ir.DataType.BOOL)


def attention_by_parts(
    e: Emitter, q: ir.Value, k: ir.Value, v: ir.Value, visible: ir.Value | None
) -> tuple[ir.Value, ir.Value]:
    """Softmax attention from elementary operators: q (B, N, T, D), k, v (B, N, S, D) -> (B, T, C), (B, N, T, S)."""
    head_size = q_head_size(e)
    scaled = e.op("Mul", q, number(e, 1 / math.sqrt(head_size)))
    scores = e.op("MatMul", scaled, e.op("Transpose", k, perm=[0, 1, 3, 2]))
    if visible is not None:
        # Small enough to vanish in the softmax, and finite in fp16 too.
        scores = e.op("Where", visible, scores, number(e, -65504.0))
    weights = e.op("Softmax", scores, axis=-1)
    context = e.op("Transpose", e.op("MatMul", weights, v), perm=[0, 2, 1, 3])
    return e.op("Reshape", context, e.constant([0, 0, -1])), weights


def q_head_size(e: Emitter) -> int:
    """Head size D, from the query's last axis and the number of heads."""
    shape = e.needed(0).shape
    assert shape is not None and isinstance(shape[-1], int)  # projections have a fixed width
    return int(shape[-1]) // int(e.attribute("num_heads"))


def biased_projections(e: Emitter, first_bias: int) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Query, key and value with their biases added."""
    q, k, v = (add_bias(e, e.needed(i), e.input(first_bias + i)) for i in range(3))
    return q, k, v


def attention(e: Emitter) -> Sequence[ir.Value]:
    """Attention (opset 23) on 3-D projections; elementary operators before it, or where the weights are read."""
    heads, mask = e.attribute("num_heads"), e.input(3)
    q, k, v = biased_projections(e, 4)
    visible = None if mask is None else visible_keys(e, mask)
    if e.opset < ATTENTION_OPSET or e.output_is_read(1):
        q, k, v = (split_heads(e, projection, heads) for projection in (q, k, v))
        return attention_by_parts(e, q, k, v, visible)
    if mask is not None:
        # Read off the mask (in self-attention there are as many queries as keys), so that all layers share one mask.
        batch, keys = e.op("Shape", mask, start=0, end=1), e.op("Shape", mask, start=1, end=2)
        visible = e.op("Expand", visible, e.op("Concat", batch, e.constant([1]), keys, keys, axis=0))
    return [e.op("Attention", q, k, v, visible, q_num_heads=heads, kv_num_heads=heads)]


def causal_visibility(e: Emitter, mask: ir.Value, query: ir.Value) -> ir.Value:
    """Mask (B, S) -> bool (B, 1, T, S): real keys, and none after the query's own place (P + its index)."""
    total = e.op("Shape", mask, start=1, end=2)
    new = e.op("Shape", query, start=1, end=2)
    zero, one = e.constant(0), e.constant(1)
    key_place = e.op("Range", zero, e.op("Squeeze", total), one)  # (S,)
    place = e.op("Range", e.op("Squeeze", e.op("Sub", total, new)), e.op("Squeeze", total), one)  # (T,)
    causal = e.op("LessOrEqual", key_place, e.op("Unsqueeze", place, e.constant([1])))  # (T, S)
    return e.op("And", visible_keys(e, mask), causal)


def cached_attention(e: Emitter) -> Sequence[ir.Value]:
    """Growing cache: concatenate, then attend; without a past the new tokens alone, in causal order.

    Outputs context, weights, present keys, present values.
    """
    heads, kv_heads = e.attribute("num_heads"), e.attribute("kv_num_heads")
    mask, past_key, past_value = e.needed(3), e.input(4), e.input(5)
    q, k, v = biased_projections(e, 6)
    visible = e.once("causal", mask, lambda: causal_visibility(e, mask, q))
    fused = e.opset >= ATTENTION_OPSET and not e.output_is_read(1)
    if fused and past_key is None:
        return [e.op("Attention", q, k, v, visible, q_num_heads=heads, kv_num_heads=kv_heads)]
    if fused:
        rows, visible = group_heads(e, q, visible, heads, kv_heads)
        k, v = split_heads(e, k, kv_heads), split_heads(e, v, kv_heads)
        context, present_key, present_value = e.ops("Attention", rows, k, v, visible, past_key, past_value, outputs=3)
        return [ungroup_heads(e, context, heads, kv_heads), e.node.outputs[1], present_key, present_value]
    present_key, present_value = split_heads(e, k, kv_heads), split_heads(e, v, kv_heads)
    if past_key is not None and past_value is not None:
        present_key = e.op("Concat", past_key, present_key, axis=2)
        present_value = e.op("Concat", past_value, present_value, axis=2)
    keys, values = (_share_heads(e, t, heads, kv_heads) for t in (present_key, present_value))
    context, weights = attention_by_parts(e, split_heads(e, q, heads), keys, values, visible)
    return [context, weights, present_key, present_value]


def group_heads(e: Emitter, query: ir.Value, visible: ir.Value, heads: int, kv_heads: int) -> tuple[ir.Value, ir.Value]:
    """The query heads that share a key head become rows of one query: each key is then read once, and not once a head.

    Query (B, T, N * D) -> (B, K, T * N / K, D); visible (B, 1, T, S) -> (B, 1, T * N / K, S).
    """
    groups = heads // kv_heads
    if groups == 1:
        return split_heads(e, query, heads), visible
    parts = e.op("Reshape", query, e.constant([0, 0, kv_heads, groups, -1]))
    rows = e.op(
        "Reshape", e.op("Transpose", parts, perm=[0, 2, 1, 3, 4]), e.constant([0, kv_heads, -1, q_head_size(e)])
    )
    return rows, e.once("grouped", visible, lambda: _group_mask(e, visible, groups))


def _group_mask(e: Emitter, visible: ir.Value, groups: int) -> ir.Value:
    repeated = e.op("Expand", e.op("Unsqueeze", visible, e.constant([3])), e.constant([1, 1, 1, groups, 1]))
    shape = e.op("Concat", e.constant([0, 1, -1]), e.op("Shape", visible, start=3, end=4), axis=0)
    return e.op("Reshape", repeated, shape)


def ungroup_heads(e: Emitter, context: ir.Value, heads: int, kv_heads: int) -> ir.Value:
    """(B, K, T * N / K, D) -> (B, T, N * D): the opposite of `group_heads`."""
    groups = heads // kv_heads
    if groups == 1:
        return e.op("Reshape", e.op("Transpose", context, perm=[0, 2, 1, 3]), e.constant([0, 0, -1]))
    parts = e.op("Reshape", context, e.constant([0, kv_heads, -1, groups, q_head_size(e)]))
    return e.op("Reshape", e.op("Transpose", parts, perm=[0, 2, 1, 3, 4]), e.constant([0, 0, -1]))


def last_position(e: Emitter) -> Sequence[ir.Value]:
    """Mask (B, S), ids (B, T) -> index of the last real new token, (B, 1)."""
    mask, ids = e.needed(0), e.needed(1)
    total, new = e.op("Shape", mask, start=1, end=2), e.op("Shape", ids, start=1, end=2)
    recent = e.op("Slice", mask, e.op("Sub", total, new), total, e.constant([1]))
    places = e.op("Range", e.constant(0), e.op("Squeeze", new), e.constant(1))
    return [e.op("ArgMax", e.op("Mul", recent, places), axis=1, keepdims=1)]


def _share_heads(e: Emitter, x: ir.Value, heads: int, kv_heads: int) -> ir.Value:
    """(B, K, S, D) -> (B, N, S, D): every key/value head serves N / K query heads."""
    if heads == kv_heads:
        return x
    groups, size = heads // kv_heads, q_head_size(e)
    wide = e.op("Unsqueeze", x, e.constant([2]))
    front, back = e.op("Shape", wide, start=0, end=2), e.op("Shape", wide, start=3, end=5)
    wide = e.op("Expand", wide, e.op("Concat", front, e.constant([groups]), back, axis=0))
    return e.op("Reshape", wide, e.constant([0, heads, -1, size]))


ROWS: Final[Mapping[str, Row]] = types.MappingProxyType(
    {
        "Linear": linear,
        "LayerNorm": layer_norm,
        "AddLayerNorm": add_layer_norm,
        "Activation": activation,
        "Embed": embed,
        "Attention": attention,
        "CachedAttention": cached_attention,
        "LastPosition": last_position,
        "RMSNorm": lowering_decoder.rms_norm,
        "AddRMSNorm": lowering_decoder.add_rms_norm,
        "RotaryAngles": lowering_decoder.rotary_angles,
        "Rotary": lowering_decoder.rotary,
        "XIELU": lowering_decoder.xielu,
    }
)
HALF_ROWS: Final[Mapping[str, Row]] = types.MappingProxyType({**ROWS, "XIELU": lowering_decoder.half_xielu})
