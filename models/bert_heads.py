"""BERT with its heads: what each adds to BertModel, and the loss that labels give.

The heads of pretraining are in a file of their own and can be imported from here like the others.
Source: transformers/models/bert/modeling_bert.py, 5.23, for names, order of outputs and losses.

Shapes: B batch, T tokens, C hidden size, L labels.
"""

from __future__ import annotations

from typing import Any, Unpack

from torch import Tensor, nn
from torch.nn import functional as F

from pinnace.errors import ConfigError
from pinnace.models import ops
from pinnace.models.bert import BertModel, BertPreTrainedModel
from pinnace.models.bert_pretraining_heads import (
    BertForMaskedLM,
    BertForNextSentencePrediction,
    BertForPreTraining,
    BertLMHeadModel,
)
from pinnace.models.configs.bert import BertConfig
from pinnace.models.forward_inputs import OutputOptions, one_of
from pinnace.models.losses import class_loss, classification_loss, problem_type_of, span_loss
from pinnace.models.outputs import HeadOutput, QuestionAnsweringOutput

__all__ = [
    "BertForPreTraining",
    "BertLMHeadModel",
    "BertForMaskedLM",
    "BertForNextSentencePrediction",
    "BertForSequenceClassification",
    "BertForMultipleChoice",
    "BertForTokenClassification",
    "BertForQuestionAnswering",
]


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return ops.linear(x, layer.weight, layer.bias)


def _classifier_dropout(config: BertConfig) -> nn.Dropout:
    own = config.classifier_dropout
    return nn.Dropout(config.hidden_dropout_prob if own is None else own)


class BertForSequenceClassification(BertPreTrainedModel):
    """One label, several labels or a number for the whole sequence."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.bert = BertModel(config)
        self.dropout = _classifier_dropout(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
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
        """As `BertModel.forward`.

        Args:
            labels: (B,) classes, or (B,) numbers where there is one label, or (B, L) floats for several labels.
                Where ``config.problem_type`` is None they decide it, once, and it is kept in the configuration.
        """
        return_dict = options.pop("return_dict", None)
        base = self.bert(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, return_dict=True, **options
        )
        logits = _linear(self.classifier, self.dropout(base.pooler_output))
        loss = None
        if labels is not None:
            if self.config.problem_type is None:
                self.config.problem_type = problem_type_of(self.num_labels, labels)
            loss = classification_loss(self.config.problem_type, logits, labels)
        return self._finish(HeadOutput(loss, logits, base.hidden_states, base.attentions), return_dict)


class BertForMultipleChoice(BertPreTrainedModel):
    """One score for each choice."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.bert = BertModel(config)
        self.dropout = _classifier_dropout(config)
        self.classifier = nn.Linear(config.hidden_size, 1)
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
        """As `BertModel.forward`, every tensor with one more axis: (B, choices, T); labels (B,).

        Returns:
            logits (B, choices); hidden states and attentions have B * choices rows.
        """
        return_dict = options.pop("return_dict", None)
        B, choices = one_of(input_ids, inputs_embeds).shape[:2]
        each = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        flat = (None if tensor is None else tensor.flatten(0, 1) for tensor in each)
        base = self.bert(*flat, return_dict=True, **options)
        scores = _linear(self.classifier, self.dropout(base.pooler_output))  # (B * choices, 1)
        logits = scores.reshape(B, choices)
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return self._finish(HeadOutput(loss, logits, base.hidden_states, base.attentions), return_dict)


class BertForTokenClassification(BertPreTrainedModel):
    """A label for each token."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.bert = BertModel(config, add_pooling_layer=False)
        self.dropout = _classifier_dropout(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
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
        """As `BertModel.forward`; labels (B, T), -100 ignored."""
        return_dict = options.pop("return_dict", None)
        base = self.bert(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, return_dict=True, **options
        )
        logits = _linear(self.classifier, self.dropout(base.last_hidden_state))
        loss = None if labels is None else class_loss(logits, labels)
        return self._finish(HeadOutput(loss, logits, base.hidden_states, base.attentions), return_dict)


class BertForQuestionAnswering(BertPreTrainedModel):
    """Where an answer starts and ends."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        if config.num_labels != 2:
            raise ConfigError(f"question answering has two outputs, start and end; got num_labels={config.num_labels}")
        self.num_labels = config.num_labels
        self.bert = BertModel(config, add_pooling_layer=False)
        self.qa_outputs = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        **options: Unpack[OutputOptions],
    ) -> Any:
        """As `BertModel.forward`; start_positions and end_positions (B,), those outside the sequence ignored."""
        return_dict = options.pop("return_dict", None)
        base = self.bert(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, return_dict=True, **options
        )
        both = _linear(self.qa_outputs, base.last_hidden_state)  # (B, T, 2)
        start, end = both.select(-1, 0), both.select(-1, 1)
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = span_loss(start, end, start_positions, end_positions)
        output = QuestionAnsweringOutput(loss, start, end, base.hidden_states, base.attentions)
        return self._finish(output, return_dict)
