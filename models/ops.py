"""Semantic operators: the dozen named steps that the reference models are written in.

Each has one plain, differentiable PyTorch meaning. While a model is traced for export (`semantic_tracing`), each
becomes exactly one node of the domain ``pinnace`` instead, which the lowering tables of ``pinnace.export`` turn into
the operators of a target. So a graph is born fused and no pattern needs to be searched for.

Shapes: B batch, T new tokens, P past tokens, S = P + T, N query heads, K key/value heads, D head size,
C = N * D hidden size, V vocabulary.
"""

from __future__ import annotations

import contextlib
import contextvars
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any, Final, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from pinnace.models.activations import ACTIVATIONS

DOMAIN: Final = "pinnace"
_tracing: contextvars.ContextVar[bool] = contextvars.ContextVar("pinnace_semantic_tracing", default=False)


@contextlib.contextmanager
def semantic_tracing() -> Iterator[None]:
    """While active, every operator of this file emits one semantic node instead of computing."""
    token = _tracing.set(True)
    try:
        yield
    finally:
        _tracing.reset(token)


def is_tracing() -> bool:
    """Whether operators emit semantic nodes at this moment."""
    return _tracing.get()


# One operator carries them all through the tracer; its only meaning is the shape of its results.
_LIBRARY: Final = torch.library.Library(DOMAIN, "DEF")  # type: ignore[no-untyped-call]  # torch.library has no types
_LIBRARY.define(  # type: ignore[no-untyped-call]
    "semantic(Tensor?[] inputs, str op, str attributes, SymInt[] sizes, int[] ranks, str[] dtypes) -> Tensor[]"
)


@torch.library.register_fake(f"{DOMAIN}::semantic")  # type: ignore[untyped-decorator]
def _semantic_shapes(
    inputs: Sequence[Tensor | None],
    op: str,
    attributes: str,
    sizes: Sequence[int],
    ranks: Sequence[int],
    dtypes: Sequence[str],
) -> list[Tensor]:
    device = next(tensor.device for tensor in inputs if tensor is not None)
    left = iter(sizes)
    shapes = [[next(left) for _ in range(rank)] for rank in ranks]
    return [torch.empty(s, dtype=getattr(torch, d), device=device) for s, d in zip(shapes, dtypes, strict=True)]


def _emit(
    op: str, inputs: Sequence[Tensor | None], attributes: dict[str, Any], *outputs: tuple[torch.dtype, Sequence[Any]]
) -> Any:
    """Record one semantic node with the given output types and shapes; one output is returned bare."""
    made = torch.ops.pinnace.semantic(
        list(inputs),
        op,
        json.dumps(attributes),
        [size for _, shape in outputs for size in shape],
        [len(shape) for _, shape in outputs],
        [str(dtype).removeprefix("torch.") for dtype, _ in outputs],
    )
    return made[0] if len(outputs) == 1 else tuple(made)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``: x (..., in), weight (out, in), bias (out,) or None -> (..., out)."""
    if _tracing.get():
        shape = (*x.shape[:-1], weight.shape[0])
        return cast(Tensor, _emit("Linear", (x, weight, bias), {}, (x.dtype, shape)))
    return F.linear(x, weight, bias)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm over the last axis, x (..., C). Source: Ba et al. 2016."""
    if _tracing.get():
        return cast(Tensor, _emit("LayerNorm", (x, weight, bias), {"epsilon": eps}, (x.dtype, x.shape)))
    return F.layer_norm(x, (x.shape[-1],), weight, bias, eps)


def add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float, *, x_bias: Tensor | None = None
) -> Tensor:
    """``layer_norm(x + x_bias + residual)``: the post-norm residual step of BERT; all of x (B, T, C)."""
    if _tracing.get():
        inputs = (x, residual, weight, bias, x_bias)
        return cast(Tensor, _emit("AddLayerNorm", inputs, {"epsilon": eps}, (x.dtype, x.shape)))
    total = x + residual if x_bias is None else x + x_bias + residual
    return F.layer_norm(total, (x.shape[-1],), weight, bias, eps)


def activation(x: Tensor, name: str, *, bias: Tensor | None = None) -> Tensor:
    """``f(x + bias)`` for an activation of ``pinnace.models.activations``; x (..., C), bias (C,) or None."""
    if _tracing.get():
        return cast(Tensor, _emit("Activation", (x, bias), {"function": name}, (x.dtype, x.shape)))
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
    if _tracing.get():
        shape = (*input_ids.shape, words.shape[1])
        inputs = (input_ids, token_type_ids, position_ids, words, types, positions, weight, bias)
        return cast(Tensor, _emit("Embed", inputs, {"epsilon": eps}, (words.dtype, shape)))
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
    if _tracing.get():
        shape = (query.shape[0], heads, query.shape[1], key.shape[1])
        inputs = (query, key, value, mask, *(biases or ()))
        outputs = (query.dtype, query.shape), (query.dtype, shape)
        context, weights = _emit("Attention", inputs, {"num_heads": heads}, *outputs)
        return context, weights
    q, k, v = (_split_heads(t, heads) for t in _add_biases(query, key, value, biases))
    return _attend(q, k, v, mask, dropout)


def cached_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    past: tuple[Tensor, Tensor],
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
        past: keys and values so far, each (B, K, P, D).
        heads: N; the number of key/value heads K is read off the past.
        biases: of the three projections.
        dropout: probability of dropping a weight (training only).

    Returns:
        context (B, T, C), weights (B, N, T, S), and the present keys and values (B, K, S, D).
    """
    past_key, past_value = past
    kv_heads, P, D = past_key.shape[1:]
    B, T = query.shape[:2]
    if _tracing.get():
        present = (B, kv_heads, P + T, D)
        inputs = (query, key, value, mask, past_key, past_value, *(biases or ()))
        outputs = (query.dtype, query.shape), (query.dtype, (B, heads, T, P + T))
        emitted = _emit(
            "CachedAttention", inputs, {"num_heads": heads, "kv_num_heads": kv_heads},
            *outputs, (query.dtype, present), (query.dtype, present),
        )  # fmt: skip
        return cast(tuple[Tensor, Tensor, Tensor, Tensor], tuple(emitted))
    query, key, value = _add_biases(query, key, value, biases)
    q = _split_heads(query, heads)
    k = torch.cat([past_key, _split_heads(key, kv_heads)], dim=2)
    v = torch.cat([past_value, _split_heads(value, kv_heads)], dim=2)
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
    if _tracing.get():
        return cast(Tensor, _emit("LastPosition", (mask, input_ids), {}, (torch.int64, (mask.shape[0], 1))))
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
