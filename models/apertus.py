"""Apertus: a decoder with grouped heads, normed queries and keys, rotary positions and xIELU; and its heads.

Source: Apertus technical report 2025 (arXiv 2509.14233); transformers/models/apertus/modeling_apertus.py, 5.23, for
names, order of outputs and losses.

Shapes: B batch, T new tokens, P past tokens, S = P + T, N query heads, K key/value heads, D head size,
C hidden size, I intermediate size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Unpack, cast

import torch
from torch import Tensor, nn

from pinnace.models import ops
from pinnace.models.cache import KeyValueCache
from pinnace.models.checkpoints.names import APERTUS_NAMES
from pinnace.models.configs.apertus import ApertusConfig
from pinnace.models.forward_inputs import (
    OutputOptions,
    PastKeyValues,
    as_cache,
    count_on,
    keep_positions,
    one_of,
    visible_keys,
)
from pinnace.models.losses import causal_loss, class_loss
from pinnace.models.modeling import PreTrainedModel
from pinnace.models.outputs import BaseModelOutput, CausalLMOutput, HeadOutput
from pinnace.models.rotary import frequencies
from pinnace.models.xielu import XIELU


@dataclass
class PassState:
    """What travels beside the hidden states through one forward pass, and what it collects: keys, values, weights."""

    mask: Tensor
    cos: Tensor
    sin: Tensor
    past: KeyValueCache | None
    presents: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    attentions: list[Tensor] | None = None


class ApertusMLP(nn.Module):
    """Two projections with an activation between them, no gate: (B, T, C) -> (B, T, C)."""

    def __init__(self, config: ApertusConfig) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.hidden_act = config.hidden_act
        self.act_fn = XIELU() if config.hidden_act == "xielu" else None

    def forward(self, x: Tensor) -> Tensor:
        wide = ops.linear(x, self.up_proj.weight)  # (B, T, I)
        wide = ops.activation(wide, self.hidden_act) if self.act_fn is None else self.act_fn(wide)
        return ops.linear(wide, self.down_proj.weight)


class ApertusRMSNorm(nn.Module):
    """RMSNorm of the whole width, or of each head where ``size`` is a head's: (..., C) -> (..., C)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return ops.rms_norm(x, self.weight, self.eps)


class ApertusAttention(nn.Module):
    """Each token gathers from the earlier ones; queries and keys are normed per head, then turned: -> (B, T, C)."""

    def __init__(self, config: ApertusConfig, layer_idx: int) -> None:
        super().__init__()
        C, D, bias = config.hidden_size, config.head_size, config.attention_bias
        self.layer_idx = layer_idx
        self.num_heads = config.num_attention_heads
        self.dropout = config.attention_dropout
        self.q_proj = nn.Linear(C, self.num_heads * D, bias=bias)
        self.k_proj = nn.Linear(C, config.num_key_value_heads * D, bias=bias)
        self.v_proj = nn.Linear(C, config.num_key_value_heads * D, bias=bias)
        self.o_proj = nn.Linear(self.num_heads * D, C, bias=bias)
        self.q_norm = ApertusRMSNorm(D, config.rms_norm_eps)
        self.k_norm = ApertusRMSNorm(D, config.rms_norm_eps)

    def forward(self, x: Tensor, state: PassState) -> Tensor:
        q, k, v = (ops.linear(x, each.weight, each.bias) for each in (self.q_proj, self.k_proj, self.v_proj))
        q = ops.rotary(self.q_norm(q), state.cos, state.sin)  # (B, T, N * D)
        k = ops.rotary(self.k_norm(k), state.cos, state.sin)  # (B, T, K * D)
        past = cast(tuple[Tensor, Tensor], state.past[self.layer_idx]) if state.past else None  # (B, K, P, D) each
        dropout = self.dropout if self.training else 0.0
        context, weights, key, value = ops.cached_attention(q, k, v, state.mask, past, self.num_heads, dropout=dropout)
        state.presents.append((key, value))
        if state.attentions is not None:
            state.attentions.append(weights)
        return ops.linear(context, self.o_proj.weight, self.o_proj.bias)


class ApertusDecoderLayer(nn.Module):
    """One layer. What it adds to the residual stream is added by the norm that reads the sum next."""

    def __init__(self, config: ApertusConfig, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = ApertusAttention(config, layer_idx)
        self.mlp = ApertusMLP(config)
        self.attention_layernorm = ApertusRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.feedforward_layernorm = ApertusRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, normed: Tensor, stream: Tensor, state: PassState) -> tuple[Tensor, Tensor]:
        """Normed input and residual stream, both (B, T, C) -> what is to be added, and the stream before it."""
        norm = self.feedforward_layernorm
        normed, stream = ops.add_rms_norm(self.self_attn(normed, state), stream, norm.weight, norm.eps)
        return self.mlp(normed), stream


class ApertusPreTrainedModel(PreTrainedModel):
    """Base of ApertusModel and of its heads."""

    config_class = ApertusConfig
    base_model_prefix = "model"
    name_rules = APERTUS_NAMES
    config: ApertusConfig

    @torch.no_grad()
    def init_weights(self, module: nn.Module) -> None:
        """As in the base; xIELU starts as published."""
        super().init_weights(module)
        if isinstance(module, ApertusRMSNorm):
            module.weight.fill_(1.0)
        if isinstance(module, XIELU):
            module.reset_parameters()


class ApertusModel(ApertusPreTrainedModel):
    """Apertus without a head: a vector for each token."""

    def __init__(self, config: ApertusConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(ApertusDecoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = ApertusRMSNorm(config.hidden_size, config.rms_norm_eps)
        self._frequencies = frequencies(config.rope_parameters, config.head_size, config.max_position_embeddings)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embed_tokens = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: PastKeyValues | None = None,
        inputs_embeds: Tensor | None = None,
        cache_position: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Run the model.

        Args:
            input_ids: (B, T) int64; exactly one of it and ``inputs_embeds`` is given.
            attention_mask: (B, S), 1 where a token is real; or (B, T, S) or (B, N, T, S), 1 where it may be seen,
                which then replaces the causal order. A floating-point mask of four axes is read as transformers
                reads it: 0 visible, a large negative number hidden.
            position_ids: (B, T) or (1, T) int64; None counts on from the past.
            past_key_values: what an earlier step returned, or a tuple of ``(key, value)`` per layer, (B, K, P, D).
            inputs_embeds: (B, T, C) in place of the embeddings.
            cache_position: (T,) positions of the new tokens, used where ``position_ids`` is None.
            use_cache: whether to return the new ``past_key_values``.
            output_attentions: whether to return the weights of each layer, (B, N, T, S).
            output_hidden_states: whether to return the embeddings and each layer's output, (B, T, C), the last normed.
            return_dict: False returns a plain tuple.

        Returns:
            BaseModelOutput, or a tuple.

        Raises:
            InputError: inputs that do not go together.
        """
        config = self.config
        tokens = one_of(input_ids, inputs_embeds)  # (B, T) or (B, T, C)
        past = as_cache(past_key_values, config.num_hidden_layers)
        positions = count_on(position_ids, cache_position, tokens, past)
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
        mask = cast(Tensor, visible_keys(attention_mask, tokens, past, causal=True))  # a causal model always gets one
        stream = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds  # (B, T, C)
        cos, sin = ops.rotary_angles(positions, self._frequencies, stream)
        with_attentions = config.output_attentions if output_attentions is None else output_attentions
        state = PassState(mask, cos, sin, past, attentions=[] if with_attentions else None)
        every = [stream]
        layers = cast(list[ApertusDecoderLayer], list(self.layers))
        norms = [*(layer.attention_layernorm for layer in layers[1:]), self.norm]
        x = layers[0].attention_layernorm(stream)
        for layer, norm in zip(layers, norms, strict=True):
            added, stream = layer(x, stream, state)
            x, stream = ops.add_rms_norm(added, stream, norm.weight, norm.eps)
            every.append(stream)
        with_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        keep = config.use_cache if use_cache is None else use_cache
        output = BaseModelOutput(
            last_hidden_state=x,
            past_key_values=KeyValueCache(state.presents) if keep else None,
            hidden_states=(*every[:-1], x) if with_states else None,
            attentions=None if state.attentions is None else tuple(state.attentions),
        )
        return self._finish(output, return_dict)


class ApertusForCausalLM(ApertusPreTrainedModel):
    """Apertus that predicts the next token."""

    tied_weights = APERTUS_NAMES.tied

    def __init__(self, config: ApertusConfig) -> None:
        super().__init__(config)
        self.model = ApertusModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.output_vocab_size or config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: PastKeyValues | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        cache_position: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **options: Unpack[OutputOptions],
    ) -> Any:
        """As `ApertusModel.forward`.

        Args:
            labels: (B, T), compared with the prediction made one token before; -100 is ignored.
            logits_to_keep: how many last positions get logits, 0 for all; or positions, see `keep_positions`.
        """
        return_dict = options.pop("return_dict", None)
        base = self.model(
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, cache_position, use_cache,
            return_dict=True, **options,
        )  # fmt: skip
        logits = ops.linear(keep_positions(base.last_hidden_state, logits_to_keep), self.lm_head.weight)
        loss = None if labels is None else causal_loss(logits, labels)
        output = CausalLMOutput(loss, logits, base.past_key_values, base.hidden_states, base.attentions)
        return self._finish(output, return_dict)


class ApertusForTokenClassification(ApertusPreTrainedModel):
    """Apertus with a label for each token."""

    def __init__(self, config: ApertusConfig) -> None:
        super().__init__(config)
        self.model = ApertusModel(config)
        given = (rate for rate in (config.classifier_dropout, config.hidden_dropout) if rate is not None)
        self.dropout = nn.Dropout(next(given, 0.1))
        self.score = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: PastKeyValues | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        **options: Unpack[OutputOptions],
    ) -> Any:
        """As `ApertusModel.forward`; labels (B, T), -100 ignored."""
        return_dict = options.pop("return_dict", None)
        base = self.model(
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds,
            use_cache=use_cache, return_dict=True, **options,
        )  # fmt: skip
        logits = ops.linear(self.dropout(base.last_hidden_state), self.score.weight, self.score.bias)
        loss = None if labels is None else class_loss(logits, labels)
        return self._finish(HeadOutput(loss, logits, base.hidden_states, base.attentions), return_dict)
