"""BERT with the heads of pretraining: words, the next word, and whether one sentence follows another.

Source: transformers/models/bert/modeling_bert.py, 5.23, for names, order of outputs and losses.

Shapes: B batch, T tokens, C hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor, nn

from pinnace.models import ops
from pinnace.models.bert import BertModel, BertPreTrainedModel
from pinnace.models.checkpoints.names import BERT_NAMES
from pinnace.models.configs.bert import BertConfig
from pinnace.models.forward_inputs import OutputOptions, PastKeyValues, keep_positions
from pinnace.models.losses import causal_loss, class_loss
from pinnace.models.outputs import CausalLMOutput, HeadOutput, PreTrainingOutput


class BertPredictionHeadTransform(nn.Module):
    """Dense, activation, LayerNorm: (B, T, C) -> (B, T, C)."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.hidden_act = config.hidden_act
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden_states: Tensor) -> Tensor:
        x = ops.activation(ops.linear(hidden_states, self.dense.weight), self.hidden_act, bias=self.dense.bias)
        return ops.layer_norm(x, self.LayerNorm.weight, self.LayerNorm.bias, self.LayerNorm.eps)


class BertLMPredictionHead(nn.Module):
    """Scores of every word: (B, T, C) -> (B, T, V)."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.transform = BertPredictionHeadTransform(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        # Checkpoints name the bias twice; tying makes both one parameter.
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden_states: Tensor) -> Tensor:
        return ops.linear(self.transform(hidden_states), self.decoder.weight, self.decoder.bias)


class BertPreTrainingHeads(nn.Module):
    """The parts of pretraining that a model has: ``predictions`` for words, ``seq_relationship`` for sentences."""

    def __init__(self, config: BertConfig, *, words: bool, sentences: bool) -> None:
        super().__init__()
        if words:
            self.predictions = BertLMPredictionHead(config)
        if sentences:
            self.seq_relationship = nn.Linear(config.hidden_size, 2)

    def sentences(self, pooled: Tensor) -> Tensor:
        """Scores of "follows" and "does not": (B, C) -> (B, 2)."""
        return ops.linear(pooled, self.seq_relationship.weight, self.seq_relationship.bias)


class _WordHead(BertPreTrainedModel):
    """What the heads that predict words share."""

    tied_weights = BERT_NAMES.tied
    cls: BertPreTrainingHeads

    def get_output_embeddings(self) -> nn.Linear:
        return self.cls.predictions.decoder

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.cls.predictions.decoder = value
        self.cls.predictions.bias = value.bias


class BertForPreTraining(_WordHead):
    """Both heads of pretraining: masked words and next sentence."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.bert = BertModel(config)
        self.cls = BertPreTrainingHeads(config, words=True, sentences=True)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        next_sentence_label: Tensor | None = None,
        **options: Unpack[OutputOptions],
    ) -> Any:
        """As `BertModel.forward`; labels (B, T) with -100 ignored and next_sentence_label (B,) give the loss."""
        return_dict = options.pop("return_dict", None)
        base = self.bert(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, return_dict=True, **options
        )
        words = self.cls.predictions(base.last_hidden_state)
        sentences = self.cls.sentences(base.pooler_output)
        loss = None
        if labels is not None and next_sentence_label is not None:
            loss = class_loss(words, labels) + class_loss(sentences, next_sentence_label)
        output = PreTrainingOutput(loss, words, sentences, base.hidden_states, base.attentions)
        return self._finish(output, return_dict)


class BertLMHeadModel(_WordHead):
    """The decoder that predicts the next word."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=False)
        self.cls = BertPreTrainingHeads(config, words=True, sentences=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        past_key_values: PastKeyValues | None = None,
        use_cache: bool | None = None,
        cache_position: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **options: Unpack[OutputOptions],
    ) -> Any:
        """As `BertModel.forward`.

        Args:
            labels: (B, T), compared with the prediction made one token before; -100 is ignored.
            logits_to_keep: how many last positions get logits, 0 for all; or a tensor: positions (kept,) or
                (B, kept), or booleans (B, T), which give logits (chosen, V).
        """
        return_dict = options.pop("return_dict", None)
        base = self.bert(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds,
            encoder_hidden_states, encoder_attention_mask, past_key_values,
            use_cache if labels is None else False, cache_position, return_dict=True, **options,
        )  # fmt: skip
        logits = self.cls.predictions(keep_positions(base.last_hidden_state, logits_to_keep))
        loss = None if labels is None else causal_loss(logits, labels)
        output = CausalLMOutput(
            loss, logits, base.past_key_values, base.hidden_states, base.attentions, base.cross_attentions
        )
        return self._finish(output, return_dict)


class BertForMaskedLM(_WordHead):
    """The encoder that fills masked words."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=False)
        self.cls = BertPreTrainingHeads(config, words=True, sentences=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **options: Unpack[OutputOptions],
    ) -> Any:
        """As `BertModel.forward`; labels (B, T), -100 ignored."""
        return_dict = options.pop("return_dict", None)
        base = self.bert(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds,
            encoder_hidden_states, encoder_attention_mask, return_dict=True, **options,
        )  # fmt: skip
        logits = self.cls.predictions(base.last_hidden_state)
        loss = None if labels is None else class_loss(logits, labels)
        return self._finish(HeadOutput(loss, logits, base.hidden_states, base.attentions), return_dict)


class BertForNextSentencePrediction(BertPreTrainedModel):
    """Whether the second sentence follows the first: label 0 yes, 1 no."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.bert = BertModel(config)
        self.cls = BertPreTrainingHeads(config, words=False, sentences=True)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **options: Unpack[OutputOptions],
    ) -> Any:
        """As `BertModel.forward`; labels (B,)."""
        return_dict = options.pop("return_dict", None)
        base = self.bert(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, return_dict=True, **options
        )
        logits = self.cls.sentences(base.pooler_output)
        loss = None if labels is None else class_loss(logits, labels)
        return self._finish(HeadOutput(loss, logits, base.hidden_states, base.attentions), return_dict)
