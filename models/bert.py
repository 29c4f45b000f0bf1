"""BERT without a head: encoder, or decoder with a cache and perhaps cross-attention.

Source: Devlin et al. 2018; transformers/models/bert/modeling_bert.py, 5.23, for names and forms.

Shapes: B batch, T new tokens, P past tokens, S = P + T, N heads, D head size, C = N * D hidden size, E encoder tokens.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pinnace.errors import ConfigError, InputError
from pinnace.models import ops
from pinnace.models.bert_layers import BertEmbeddings, BertLayer, PassState
from pinnace.models.cache import KeyValueCache
from pinnace.models.checkpoints.names import BERT_NAMES
from pinnace.models.configs.bert import BertConfig
from pinnace.models.forward_inputs import (
    PastKeyValues,
    as_cache,
    check_positions,
    count_on,
    one_of,
    visible_keys,
)
from pinnace.models.modeling import PreTrainedModel
from pinnace.models.outputs import BaseModelOutput
from pinnace.models.semantic import is_tracing


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
        past = as_cache(past_key_values, config.num_hidden_layers) if is_decoder else None
        position_ids = count_on(position_ids, cache_position, tokens, past)
        if not is_tracing():
            check_positions(tokens, position_ids, config.max_position_embeddings)
        with_attentions = config.output_attentions if output_attentions is None else output_attentions
        state = PassState(
            mask=visible_keys(attention_mask, tokens, past, causal=is_decoder),
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
