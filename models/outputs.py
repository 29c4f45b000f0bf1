"""What the models return: named results that can also be read as a dictionary or a tuple.

Fields that were not asked for are None and do not appear among the keys or in the tuple.
Source: transformers/modeling_outputs.py and models/bert/modeling_bert.py, 5.23 (names and their order).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from pinnace.models.cache import KeyValueCache

Tensors = tuple[Tensor, ...]


@dataclass(eq=False)
class ModelOutput(Mapping[Any, Any]):
    """Base of all outputs: ``out.logits``, ``out["logits"]`` and ``out[0]`` are the same tensor."""

    def _present(self) -> dict[str, Any]:
        pairs = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value for name, value in pairs if value is not None}

    def __getitem__(self, key: str | int | slice) -> Any:
        return self._present()[key] if isinstance(key, str) else self.to_tuple()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._present())

    def __len__(self) -> int:
        return len(self._present())

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are there, in their order."""
        return tuple(self._present().values())


@dataclass(eq=False)
class BaseModelOutput(ModelOutput):
    """Of a model without a head: last_hidden_state (B, T, C), pooler_output (B, C)."""

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    past_key_values: KeyValueCache | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None
    cross_attentions: Tensors | None = None


@dataclass(eq=False)
class PreTrainingOutput(ModelOutput):
    """prediction_logits (B, T, V) and seq_relationship_logits (B, 2); loss is the sum of both losses."""

    loss: Tensor | None = None
    prediction_logits: Tensor | None = None
    seq_relationship_logits: Tensor | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


@dataclass(eq=False)
class CausalLMOutput(ModelOutput):
    """logits (B, T, V), or (B, kept, V) where only some positions were asked for."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: KeyValueCache | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None
    cross_attentions: Tensors | None = None


@dataclass(eq=False)
class HeadOutput(ModelOutput):
    """logits of a head: (B, T, V) masked language model, (B, T, labels) tokens, (B, labels) sequences,
    (B, choices) multiple choice, (B, 2) next sentence."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


@dataclass(eq=False)
class QuestionAnsweringOutput(ModelOutput):
    """start_logits and end_logits (B, T)."""

    loss: Tensor | None = None
    start_logits: Tensor | None = None
    end_logits: Tensor | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None
