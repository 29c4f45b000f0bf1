"""Semantic operators: the dozen named steps that the reference models are written in.

Each has one plain, differentiable PyTorch meaning. While a model is traced for export (`semantic_tracing`), each
becomes exactly one node of the domain ``pinnace`` instead, which the lowering tables of ``pinnace.export`` turn into
the operators of a target. So a graph is born fused and no pattern needs to be searched for.

Shapes: B batch, T new tokens, P past tokens, S = P + T, N query heads, K key/value heads, D head size,
C = N * D hidden size, V vocabulary.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from pinnace.models.activations import ACTIVATIONS
from pinnace.models.rotary import Frequencies, angles
from pinnace.models.semantic import emit, is_tracing


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``: x (..., in), weight (out, in), bias (out,) or None -> (..., out)."""
    if is_tracing():
        shape = (*x.shape[:-1], weight.shape[0])
        return cast(Tensor, emit("Linear", (x, weight, bias), {}, (x.dtype, shape)))
    return F.linear(x, weight, bias)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm over the last axis, x (..., C). Source: Ba et al. 2016."""
    if is_tracing():
        return cast(Tensor, emit("LayerNorm", (x, weight, bias), {"epsilon": eps}, (x.dtype, x.shape)))
    return F.layer_norm(x, (x.shape[-1],), weight, bias, eps)


def add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float, *, x_bias: Tensor | None = None
) -> Tensor:
    """``layer_norm(x + x_bias + residual)``: the post-norm residual step of BERT; all of x (B, T, C)."""
    if is_tracing():
        inputs = (x, residual, weight, bias, x_bias)
        return cast(Tensor, emit("AddLayerNorm", inputs, {"epsilon": eps}, (x.dtype, x.shape)))
    total = x + residual if x_bias is None else x + x_bias + residual
    return F.layer_norm(total, (x.shape[-1],), weight, bias, eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm of x (..., C), over each run of as many numbers as ``weight`` has: (C,), or (D,) for each head apart.

    The mean square is taken in fp32. Source: Zhang and Sennrich 2019.
    """
    if is_tracing():
        return cast(Tensor, emit("RMSNorm", (x, weight), {"epsilon": eps}, (x.dtype, x.shape)))
    runs = x.float().view(*x.shape[:-1], -1, weight.shape[0])
    scaled = runs * torch.rsqrt(runs.square().mean(-1, keepdim=True) + eps)
    return (weight * scaled.to(x.dtype)).flatten(-2)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """``rms_norm(x + residual)`` and the sum itself: the pre-norm residual step; all of x (B, T, C)."""
    if is_tracing():
        made = emit("AddRMSNorm", (x, residual, weight), {"epsilon": eps}, (x.dtype, x.shape), (x.dtype, x.shape))
        return cast(tuple[Tensor, Tensor], made)
    total = residual + x
    return rms_norm(total, weight, eps), total


def rotary_angles(position_ids: Tensor, frequencies: Frequencies, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every position's angles, computed in fp32, once for all layers.

    Args:
        position_ids: (B, T) or (1, T) int64.
        frequencies: of the model, see ``rotary.py``.
        like: a tensor of the type that is wanted.

    Returns:
        two tensors (B, T, D / 2).
    """
    if is_tracing():
        shape = (*position_ids.shape, len(frequencies.inverse))
        inputs = (position_ids, like)
        made = emit("RotaryAngles", inputs, frequencies.attributes(), (like.dtype, shape), (like.dtype, shape))
        return cast(tuple[Tensor, Tensor], made)
    cos, sin = angles(position_ids, frequencies)
    return cos.to(like.dtype), sin.to(like.dtype)


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each head's halves by the angles: x (B, T, N * D), cos and sin (B, T, D / 2). Source: Su et al. 2021."""
    if is_tracing():
        return cast(Tensor, emit("Rotary", (x, cos, sin), {}, (x.dtype, x.shape)))
    first, second = x.view(*x.shape[:-1], -1, 2, cos.shape[-1]).unbind(-2)  # (B, T, N, D / 2)
    cos, sin = cos[:, :, None], sin[:, :, None]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).flatten(-2)


def xielu(x: Tensor, alpha_p: Tensor, alpha_n: Tensor, beta: Tensor, eps: Tensor) -> Tensor:
    """xIELU: ``a x^2 + beta x`` above 0, ``b (expm1(min(x, eps)) - x) + beta x`` elsewhere.

    Args:
        x: (..., C).
        alpha_p: (1,), ``a`` before softplus.
        alpha_n: (1,), ``b - beta`` before softplus.
        beta: (), the slope at 0.
        eps: (), a small negative number.

    Source: Huang and Schlag 2024 (arXiv 2411.13010).
    """
    if is_tracing():
        return cast(Tensor, emit("XIELU", (x, alpha_p, alpha_n, beta, eps), {}, (x.dtype, x.shape)))
    a, b = F.softplus(alpha_p), beta + F.softplus(alpha_n)
    return torch.where(x > 0, a * x * x + beta * x, (torch.expm1(torch.minimum(x, eps)) - x) * b + beta * x)


def activation(x: Tensor, name: str, *, bias: Tensor | None = None) -> Tensor:
    """``f(x + bias)`` for an activation of ``pinnace.models.activations``; x (..., C), bias (C,) or None."""
    if is_tracing():
        return cast(Tensor, emit("Activation", (x, bias), {"function": name}, (x.dtype, x.shape)))
    return ACTIVATIONS[name](x if bias is None else x + bias)


def embed(
    input_ids: Tensor,
    token_type_ids: Tensor,
    position_ids: Tensor | None,
    words: Tensor,
    types: Tensor,
    positions: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> Tensor:
    """Sum of word, segment and position embeddings, then LayerNorm.

    Args:
        input_ids: (B, T) int64; ``token_type_ids`` likewise.
        position_ids: (B, T) or (1, T) int64, or None for 0, 1, ..., T-1 in every row.
        words: (V, C); ``types`` (types, C); ``positions`` (max positions, C).
        weight: (C,) of the LayerNorm; ``bias`` likewise.
        eps: of the LayerNorm.
    """
    if is_tracing():
        shape = (*input_ids.shape, words.shape[1])
        inputs = (input_ids, token_type_ids, position_ids, words, types, positions, weight, bias)
        return cast(Tensor, emit("Embed", inputs, {"epsilon": eps}, (words.dtype, shape)))
    place = positions[: input_ids.shape[1]] if position_ids is None else F.embedding(position_ids, positions)
    total = F.embedding(input_ids, words) + F.embedding(token_type_ids, types) + place
    return F.layer_norm(total, (words.shape[1],), weight, bias, eps)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    heads: int,
    *,
    biases: tuple[Tensor, Tensor, Tensor] | None = None,
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Bidirectional multi-head attention, with the weights that it used.

    Args:
        query: (B, T, C); ``key`` and ``value`` (B, S, C): projections, before the split into heads.
        mask: 1 where a key may be seen: (B, S), or (B, T, S), or (B, N, T, S); None sees all.
            While tracing, only (B, S) or None.
        heads: N.
        biases: of the query, key and value projections, each (C,), added here so that a target may fuse them.
        dropout: probability of dropping a weight (training only).

    Returns:
        context (B, T, C) and weights (B, N, T, S). While tracing, a weights tensor that nothing reads costs nothing.

    Source: Vaswani et al. 2017.
    """
    if is_tracing():
        shape = (query.shape[0], heads, query.shape[1], key.shape[1])
        inputs = (query, key, value, mask, *(biases or ()))
        outputs = (query.dtype, query.shape), (query.dtype, shape)
        context, weights = emit("Attention", inputs, {"num_heads": heads}, *outputs)
        return context, weights
    q, k, v = (_split_heads(t, heads) for t in _add_biases(query, key, value, biases))
    return _attend(q, k, v, mask, dropout)


def cached_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    past: tuple[Tensor, Tensor] | None,
    heads: int,
    *,
    biases: tuple[Tensor, Tensor, Tensor] | None = None,
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Causal attention over a cache: a new token sees the past and the new tokens up to itself.

    Args:
        query: (B, T, C); ``key`` and ``value`` (B, T, K * D).
        mask: (B, S), 1 where a token is real; or, not while tracing, (B, T, S) or (B, N, T, S), 1 where a key may be
            seen, which then replaces the causal order.
        past: keys and values so far, each (B, K, P, D); None where there are none, P = 0. While tracing, a graph
            without a past has no present either.
        heads: N; the number of key/value heads K follows from the width of ``key``.
        biases: of the three projections.
        dropout: probability of dropping a weight (training only).

    Returns:
        context (B, T, C), weights (B, N, T, S), and the present keys and values (B, K, S, D).
    """
    B, T = query.shape[:2]
    D = query.shape[-1] // heads
    kv_heads = key.shape[-1] // D
    P = 0 if past is None else past[0].shape[2]
    if is_tracing():
        present = (B, kv_heads, P + T, D)
        inputs = (query, key, value, mask, *(past or (None, None)), *(biases or ()))
        outputs = (query.dtype, query.shape), (query.dtype, (B, heads, T, P + T))
        emitted = emit(
            "CachedAttention", inputs, {"num_heads": heads, "kv_num_heads": kv_heads},
            *outputs, (query.dtype, present), (query.dtype, present),
        )  # fmt: skip
        return cast(tuple[Tensor, Tensor, Tensor, Tensor], tuple(emitted))
    query, key, value = _add_biases(query, key, value, biases)
    q = _split_heads(query, heads)
    k, v = _split_heads(key, kv_heads), _split_heads(value, kv_heads)
    if past is not None:
        k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
    if mask.ndim == 2:
        mask = (mask[:, None, :] != 0) & torch.ones(T, P + T, dtype=torch.bool, device=q.device).tril(P)
    groups = heads // kv_heads
    shared_k, shared_v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    context, weights = _attend(q, shared_k, shared_v, mask, dropout)
    return context, weights, k, v


def last_position(mask: Tensor, input_ids: Tensor) -> Tensor:
    """Place of each row's last real token among the new ones, whichever side is padded.

    Args:
        mask: (B, S), 1 where a token is real; its last T columns are the new tokens'.
        input_ids: (B, T), read for its shape only.

    Returns:
        (B, 1) int64; 0 for a row without a real token.
    """
    if is_tracing():
        return cast(Tensor, emit("LastPosition", (mask, input_ids), {}, (torch.int64, (mask.shape[0], 1))))
    T = input_ids.shape[1]
    places = torch.arange(T, device=mask.device)
    return (places * (mask[:, mask.shape[1] - T :] != 0)).argmax(1, keepdim=True)


def _add_biases(
    query: Tensor, key: Tensor, value: Tensor, biases: tuple[Tensor, Tensor, Tensor] | None
) -> tuple[Tensor, Tensor, Tensor]:
    if biases is None:
        return query, key, value
    return query + biases[0], key + biases[1], value + biases[2]


def _split_heads(x: Tensor, heads: int) -> Tensor:
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)  # (B, N, S, D)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> tuple[Tensor, Tensor]:
    """Softmax attention on split heads: q (B, N, T, D), k and v (B, N, S, D) -> (B, T, C), (B, N, T, S)."""
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if mask is not None:
        visible = mask[:, None, None, :] if mask.ndim == 2 else mask[:, None] if mask.ndim == 3 else mask
        # The smallest finite number rather than -inf: a row that sees nothing then gets a mean, not NaN.
        scores = scores.masked_fill(visible == 0, torch.finfo(scores.dtype).min)
    weights = scores.softmax(-1)
    context = (F.dropout(weights, dropout) if dropout else weights) @ v
    return context.transpose(1, 2).flatten(2), weights
