"""The blocks of BERT. Every block returns one tensor, so that two implementations can be compared block by block.

Source: Devlin et al. 2018; module and parameter names are those of transformers/models/bert/modeling_bert.py, 5.23.

Shapes: B batch, T new tokens, P past tokens, S = P + T, E encoder tokens, N heads, D head size, C = N * D hidden size,
I intermediate size.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pinnace.models import ops
from pinnace.models.cache import KeyValueCache
from pinnace.models.configs.bert import BertConfig
from pinnace.models.semantic import is_tracing


@dataclass
class PassState:
    """What travels beside the hidden states through one forward pass: masks and past in, records out.

    Attributes:
        mask: as `ops.attention` takes it; a decoder's is never None.
        past: the cache of earlier steps, or None.
        encoder_hidden_states: (B, E, C) for cross-attention, or None.
        encoder_mask: (B, E) or None.
        presents: the cache entry of each layer so far (decoders only).
        attentions: weights of each layer (B, N, T, S), or None where nobody asked for them.
        cross_attentions: likewise (B, N, T, E).
    """

    mask: Tensor | None = None
    past: KeyValueCache | None = None
    encoder_hidden_states: Tensor | None = None
    encoder_mask: Tensor | None = None
    presents: list[tuple[Tensor, ...]] = field(default_factory=list)
    attentions: list[Tensor] | None = None
    cross_attentions: list[Tensor] | None = None


class BertEmbeddings(nn.Module):
    """Words, segments and positions summed and normalized: ids (B, T) -> (B, T, C)."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        C = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, C, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, C)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, C)
        self.LayerNorm = nn.LayerNorm(C, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        input_ids: Tensor | None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        norm = self.LayerNorm
        if input_ids is not None and not self.training:
            types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
            return ops.embed(
                input_ids, types, position_ids, self.word_embeddings.weight, self.token_type_embeddings.weight,
                self.position_embeddings.weight, norm.weight, norm.bias, norm.eps,
            )  # fmt: skip
        # Training goes through the modules: only nn.Embedding keeps the padding row free of gradients.
        words = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        T = words.shape[1]
        places = torch.arange(T, device=words.device)[None] if position_ids is None else position_ids
        if token_type_ids is None:
            token_type_ids = torch.zeros(words.shape[:2], dtype=torch.long, device=words.device)
        total = words + self.token_type_embeddings(token_type_ids) + self.position_embeddings(places)
        return self.dropout(ops.layer_norm(total, norm.weight, norm.bias, norm.eps))  # type: ignore[no-any-return]


class BertSelfAttention(nn.Module):
    """Each token gathers from the others, or in a decoder from the earlier ones: (B, T, C) -> (B, T, C)."""

    def __init__(self, config: BertConfig, layer_idx: int) -> None:
        super().__init__()
        C = config.hidden_size
        self.layer_idx = layer_idx
        self.num_attention_heads = config.num_attention_heads
        self.is_decoder = config.is_decoder
        self.query = nn.Linear(C, C)
        self.key = nn.Linear(C, C)
        self.value = nn.Linear(C, C)
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)

    def forward(self, hidden_states: Tensor, state: PassState) -> Tensor:
        q, k, v = (ops.linear(hidden_states, each.weight) for each in (self.query, self.key, self.value))
        biases = self.query.bias, self.key.bias, self.value.bias
        dropout = self.dropout.p if self.training else 0.0
        N = self.num_attention_heads
        if self.is_decoder:
            past = cast(tuple[Tensor, Tensor], state.past[self.layer_idx][:2]) if state.past else None
            mask = cast(Tensor, state.mask)  # a decoder's is never None
            context, weights, key, value = ops.cached_attention(q, k, v, mask, past, N, biases=biases, dropout=dropout)
            state.presents.append((key, value))
        else:
            context, weights = ops.attention(q, k, v, state.mask, N, biases=biases, dropout=dropout)
        if state.attentions is not None:
            state.attentions.append(weights)
        return context


class BertCrossAttention(nn.Module):
    """Each token of a decoder gathers from an encoder's output: (B, T, C) and (B, E, C) -> (B, T, C)."""

    def __init__(self, config: BertConfig, layer_idx: int) -> None:
        super().__init__()
        C = config.hidden_size
        self.layer_idx = layer_idx
        self.num_attention_heads = config.num_attention_heads
        self.query = nn.Linear(C, C)
        self.key = nn.Linear(C, C)
        self.value = nn.Linear(C, C)
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)

    def forward(self, hidden_states: Tensor, state: PassState) -> Tensor:
        N = self.num_attention_heads
        q = ops.linear(hidden_states, self.query.weight, self.query.bias)
        kept = state.past[self.layer_idx][2:] if state.past else ()
        if kept:
            k, v = (tensor.transpose(1, 2).flatten(2) for tensor in kept)  # (B, E, C)
        else:
            encoded = cast(Tensor, state.encoder_hidden_states)  # the layer calls this only where there are some
            k = ops.linear(encoded, self.key.weight, self.key.bias)
            v = ops.linear(encoded, self.value.weight, self.value.bias)
            kept = tuple(tensor.view(*tensor.shape[:2], N, -1).transpose(1, 2) for tensor in (k, v))  # (B, N, E, D)
        dropout = self.dropout.p if self.training else 0.0
        context, weights = ops.attention(q, k, v, state.encoder_mask, N, dropout=dropout)
        # The self-attention of this layer has just put its own pair there.
        state.presents[-1] = (*state.presents[-1][:2], *kept)
        if state.cross_attentions is not None:
            state.cross_attentions.append(weights)
        return context


class _ResidualDense(nn.Module):
    """A projection, then ``LayerNorm(x + residual)``; the projection's bias goes with the sum."""

    def __init__(self, config: BertConfig, size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: Tensor, residual: Tensor) -> Tensor:
        dense, norm = self.dense, self.LayerNorm
        if self.training and self.dropout.p:
            x = F.dropout(ops.linear(hidden_states, dense.weight, dense.bias), self.dropout.p)
            return ops.add_layer_norm(x, residual, norm.weight, norm.bias, norm.eps)
        x = ops.linear(hidden_states, dense.weight)
        return ops.add_layer_norm(x, residual, norm.weight, norm.bias, norm.eps, x_bias=dense.bias)


class BertSelfOutput(_ResidualDense):
    """After attention: (B, T, C) and the residual -> (B, T, C)."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config, config.hidden_size)


class BertOutput(_ResidualDense):
    """After the intermediate layer: (B, T, I) and the residual -> (B, T, C)."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config, config.intermediate_size)


class BertIntermediate(nn.Module):
    """The wide layer with its activation: (B, T, C) -> (B, T, I)."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.hidden_act = config.hidden_act

    def forward(self, hidden_states: Tensor) -> Tensor:
        x = ops.linear(hidden_states, self.dense.weight)
        return ops.activation(x, self.hidden_act, bias=self.dense.bias)


class BertAttention(nn.Module):
    """Attention with its output projection and residual: (B, T, C) -> (B, T, C)."""

    def __init__(self, config: BertConfig, layer_idx: int, *, cross: bool = False) -> None:
        super().__init__()
        self.self = BertCrossAttention(config, layer_idx) if cross else BertSelfAttention(config, layer_idx)
        self.output = BertSelfOutput(config)

    def forward(self, hidden_states: Tensor, state: PassState) -> Tensor:
        context = self.self(hidden_states, state)
        return self.output(context, hidden_states)  # type: ignore[no-any-return]


class BertLayer(nn.Module):
    """One layer: attention, in a decoder perhaps cross-attention, then the feed-forward part."""

    def __init__(self, config: BertConfig, layer_idx: int) -> None:
        super().__init__()
        self.chunk_size = config.chunk_size_feed_forward
        self.attention = BertAttention(config, layer_idx)
        if config.add_cross_attention:
            self.crossattention = BertAttention(config, layer_idx, cross=True)
        self.intermediate = BertIntermediate(config)
        self.output = BertOutput(config)

    def forward(self, hidden_states: Tensor, state: PassState) -> Tensor:
        x = self.attention(hidden_states, state)
        if state.encoder_hidden_states is not None:
            x = self.crossattention(x, state)
        # Pieces save memory and change no number, so a graph has none.
        if not self.chunk_size or is_tracing():
            return self._feed_forward(x)
        return torch.cat([self._feed_forward(piece) for piece in x.split(self.chunk_size, dim=1)], dim=1)

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.output(self.intermediate(x), x)  # type: ignore[no-any-return]
