"""BERT without a head: encoder, or decoder with a cache and perhaps cross-attention.

Source: Devlin et al. 2018; transformers/models/bert/modeling_bert.py, 5.23, for names and forms.

Shapes: B batch, T new tokens, P past tokens, S = P + T, N heads, D head size, C = N * D hidden size, E encoder tokens.
"""

from __future__ import annotations

from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from pinnace.errors import ConfigError, InputError
from pinnace.models import ops
from pinnace.models.bert_config import BertConfig
from pinnace.models.bert_layers import BertEmbeddings, BertLayer, PassState
from pinnace.models.cache import KeyValueCache
from pinnace.models.checkpoint_names import BERT_NAMES
from pinnace.models.modeling import PreTrainedModel
from pinnace.models.outputs import BaseModelOutput, ModelOutput

PastKeyValues = KeyValueCache | tuple[tuple[Tensor, ...], ...]

# Additive masks mark a hidden key with a number at most this large.
_HIDDEN_AT_MOST = -1e4


class OutputOptions(TypedDict, total=False):
    """What every forward takes besides its tensors; None asks the configuration."""

    output_attentions: bool | None
    output_hidden_states: bool | None
    return_dict: bool | None


def one_of(input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
    """The one of both that was given."""
    if input_ids is not None and inputs_embeds is None:
        return input_ids
    if inputs_embeds is not None and input_ids is None:
        return inputs_embeds
    raise InputError(f"got {'both' if input_ids is not None else 'neither'} of input_ids and inputs_embeds; give one")


class BertEncoder(nn.Module):
    """The stack of layers: (B, T, C) -> (B, T, C)."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(BertLayer(config, index) for index in range(config.num_hidden_layers))

    def forward(self, hidden_states: Tensor, state: PassState, every: list[Tensor] | None = None) -> Tensor:
        for layer in self.layer:
            if every is not None:
                every.append(hidden_states)
            hidden_states = layer(hidden_states, state)
        if every is not None:
            every.append(hidden_states)
        return hidden_states


class BertPooler(nn.Module):
    """The first token's vector, projected: (B, T, C) -> (B, C)."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return ops.activation(ops.linear(hidden_states.select(1, 0), self.dense.weight, self.dense.bias), "tanh")


class BertPreTrainedModel(PreTrainedModel):
    """Base of BertModel and of its heads."""

    config_class = BertConfig
    base_model_prefix = "bert"
    name_rules = BERT_NAMES
    config: BertConfig

    def _finish(self, output: ModelOutput, return_dict: bool | None) -> Any:
        wanted = self.config.return_dict if return_dict is None else return_dict
        return output if wanted else output.to_tuple()


class BertModel(BertPreTrainedModel):
    """BERT, giving a vector for each token and, with the pooling layer, one for the sequence.

    Args:
        config: a `BertConfig`; with ``is_decoder`` each token sees only itself and earlier ones.
        add_pooling_layer: whether there is a pooler.
    """

    def __init__(self, config: BertConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        if config.add_cross_attention and not config.is_decoder:
            raise ConfigError("add_cross_attention=True needs is_decoder=True; got is_decoder=False")
        self.embeddings = BertEmbeddings(config)
        self.encoder = BertEncoder(config)
        self.pooler = BertPooler(config) if add_pooling_layer else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embeddings.word_embeddings = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: PastKeyValues | None = None,
        use_cache: bool | None = None,
        cache_position: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Run the model.

        Args:
            input_ids: (B, T) int64; exactly one of it and ``inputs_embeds`` is given.
            attention_mask: (B, S), 1 where a token is real; or (B, T, S) or (B, N, T, S), 1 where it may be seen,
                which then replaces a decoder's causal order. A floating-point mask of four axes is read as
                transformers reads it: 0 visible, a large negative number hidden.
            token_type_ids: (B, T) int64; None means all 0.
            position_ids: (B, T) or (1, T) int64; None counts on from the past.
            inputs_embeds: (B, T, C) in place of the word embeddings.
            encoder_hidden_states: (B, E, C), decoders with cross-attention only.
            encoder_attention_mask: (B, E), 1 where an encoder token is real.
            past_key_values: what an earlier step returned, or a tuple of ``(key, value)`` per layer, (B, N, P, D).
            use_cache: whether to return the new ``past_key_values`` (decoders only).
            cache_position: (T,) positions of the new tokens, used where ``position_ids`` is None.
            output_attentions: whether to return the weights of each layer, (B, N, T, S).
            output_hidden_states: whether to return the embeddings and each layer's output, (B, T, C).
            return_dict: False returns a plain tuple.

        Returns:
            BaseModelOutput, or a tuple.

        Raises:
            InputError: inputs that do not go together.
        """
        config = self.config
        is_decoder = config.is_decoder
        tokens = one_of(input_ids, inputs_embeds)  # (B, T) or (B, T, C)
        if is_decoder and encoder_hidden_states is not None and not config.add_cross_attention:
            raise InputError("encoder_hidden_states was given, but the configuration has add_cross_attention=False")
        past = KeyValueCache(past_key_values) if past_key_values and is_decoder else None
        if position_ids is None and cache_position is not None:
            position_ids = cache_position[None]
        elif position_ids is None and past is not None:
            P = past.get_seq_length()
            position_ids = torch.arange(P, P + tokens.shape[1], device=tokens.device)[None]
        if not ops.is_tracing():
            self._check_length(tokens, past, position_ids)
        with_attentions = config.output_attentions if output_attentions is None else output_attentions
        state = PassState(
            mask=self._mask(attention_mask, tokens, past),
            past=past,
            encoder_hidden_states=encoder_hidden_states if is_decoder else None,
            encoder_mask=encoder_attention_mask,
            attentions=[] if with_attentions else None,
            cross_attentions=[] if with_attentions and config.add_cross_attention else None,
        )
        with_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        every: list[Tensor] | None = [] if with_states else None
        x = self.embeddings(input_ids, token_type_ids, position_ids, inputs_embeds)  # (B, T, C)
        x = self.encoder(x, state, every)
        keep = is_decoder and (config.use_cache if use_cache is None else use_cache)
        output = BaseModelOutput(
            last_hidden_state=x,
            pooler_output=None if self.pooler is None else self.pooler(x),
            hidden_states=None if every is None else tuple(every),
            past_key_values=KeyValueCache(state.presents) if keep else None,
            attentions=None if state.attentions is None else tuple(state.attentions),
            cross_attentions=tuple(state.cross_attentions) if state.cross_attentions else None,
        )
        return self._finish(output, return_dict)

    def _check_length(self, tokens: Tensor, past: KeyValueCache | None, position_ids: Tensor | None) -> None:
        limit = self.config.max_position_embeddings
        if past is not None and len(past) != self.config.num_hidden_layers:
            raise InputError(f"past_key_values has {len(past)} layers, expected {self.config.num_hidden_layers}")
        last = tokens.shape[1] - 1 if position_ids is None else int(position_ids.max()) if position_ids.numel() else 0
        if last >= limit:
            raise InputError(f"position {last} is asked for, but the model has positions 0 to {limit - 1}.\n  truncate")

    def _mask(self, mask: Tensor | None, tokens: Tensor, past: KeyValueCache | None) -> Tensor | None:
        """Bring the mask into the form of `ops.attention`; a decoder always gets one."""
        if mask is None and not self.config.is_decoder:
            return None
        B, T = tokens.shape[:2]
        S = T + (past.get_seq_length() if past is not None else 0)
        if mask is None:
            return torch.ones(B, S, dtype=torch.long, device=tokens.device)
        if ops.is_tracing():
            return mask
        if mask.ndim not in (2, 3, 4) or mask.shape[-1] != S:
            raise InputError(
                f"attention_mask has shape {tuple(mask.shape)}, expected ({B}, {S}), ({B}, {T}, {S}) "
                f"or ({B}, heads, {T}, {S}): past and new tokens together"
            )
        if mask.ndim == 4 and mask.is_floating_point():
            hidden = mask <= _HIDDEN_AT_MOST
            if bool((~hidden & (mask != 0)).any()):
                raise InputError("a floating-point attention_mask of four axes may hold 0 (visible) and -inf only")
            return ~hidden
        return mask
