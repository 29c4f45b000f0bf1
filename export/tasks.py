"""TASKS: for every task, its head per architecture and the inputs and outputs of its graph."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from typing import Any, Final

from pinnace.errors import UsageError
from pinnace.spec import TASK_ALIASES, Limits, TensorSpec, canonical_task

# Names of axes: these may vary from run to run, all others are sizes that the configuration fixes (see `sizes`).
DYNAMIC_AXES: Final = ("batch", "choices", "sequence", "past_sequence", "total_sequence")


@dataclasses.dataclass(frozen=True)
class Task:
    """What a task's graph takes and gives, with symbolic shapes.

    ``heads`` maps an architecture's name to the class of its head. A ``causal`` task has key/value cache inputs.
    ``inputs`` are those of most architectures, ``others`` the inputs of those that differ.
    """

    name: str
    heads: Mapping[str, str]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    causal: bool = False
    others: Mapping[str, tuple[TensorSpec, ...]] = dataclasses.field(default_factory=dict)

    def inputs_of(self, architecture: str) -> tuple[TensorSpec, ...]:
        """Inputs of the graph for an architecture."""
        return self.others.get(architecture, self.inputs)


def _ints(*names: str, axes: tuple[str, ...] = ("batch", "sequence")) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name, "int64", axes) for name in names)


def _floats(**shapes: tuple[int | str, ...]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name, "float32", shape) for name, shape in shapes.items())


_TEXT: Final = _ints("input_ids", "attention_mask", "token_type_ids")
# Rotary positions may start anywhere, so every task of a decoder is told them.
_PLACED: Final[Mapping[str, tuple[TensorSpec, ...]]] = types.MappingProxyType(
    {"apertus": _ints("input_ids", "attention_mask", "position_ids")}
)
_ROW: Final = ("batch", "sequence")
_ROWS: Final = (
    Task(
        "feature-extraction",
        {"bert": "BertModel", "apertus": "ApertusModel"},
        _TEXT,
        _floats(last_hidden_state=(*_ROW, "hidden"), pooler_output=("batch", "hidden")),
        others=_PLACED,
    ),
    Task("fill-mask", {"bert": "BertForMaskedLM"}, _TEXT, _floats(logits=(*_ROW, "vocabulary"))),
    Task(
        "question-answering",
        {"bert": "BertForQuestionAnswering"},
        _TEXT,
        _floats(start_logits=_ROW, end_logits=_ROW),
    ),
    Task(
        "token-classification",
        {"bert": "BertForTokenClassification", "apertus": "ApertusForTokenClassification"},
        _TEXT,
        _floats(logits=(*_ROW, "labels")),
        others=_PLACED,
    ),
    Task("text-classification", {"bert": "BertForSequenceClassification"}, _TEXT, _floats(logits=("batch", "labels"))),
    Task("text-ranking", {"bert": "BertForSequenceClassification"}, _TEXT, _floats(logits=("batch", "labels"))),
    Task(
        "zero-shot-classification",
        {"bert": "BertForSequenceClassification"},
        _TEXT,
        _floats(logits=("batch", "labels")),
    ),
    Task(
        "multiple-choice",
        {"bert": "BertForMultipleChoice"},
        _ints("input_ids", "attention_mask", "token_type_ids", axes=("batch", "choices", "sequence")),
        _floats(logits=("batch", "choices")),
    ),
    Task("next-sentence-prediction", {"bert": "BertForNextSentencePrediction"}, _TEXT, _floats(logits=("batch", 2))),
    Task(
        "pretraining",
        {"bert": "BertForPreTraining"},
        _TEXT,
        _floats(prediction_logits=(*_ROW, "vocabulary"), seq_relationship_logits=("batch", 2)),
    ),
    Task(
        "text-generation",
        {"bert": "BertLMHeadModel", "apertus": "ApertusForCausalLM"},
        (
            TensorSpec("input_ids", "int64", _ROW),
            TensorSpec("attention_mask", "int64", ("batch", "total_sequence")),
            TensorSpec("position_ids", "int64", _ROW),
        ),
        _floats(logits=("batch", 1, "vocabulary")),
        causal=True,
    ),
)
TASKS: Final[Mapping[str, Task]] = types.MappingProxyType({task.name: task for task in _ROWS})


def find_task(word: str, architecture: str) -> tuple[Task, str]:
    """Look up a task by name or alias, and the head that serves it.

    Returns:
        the row, and the class name of the head for ``architecture``.

    Raises:
        UsageError: no such task, or the architecture has no head for it.
    """
    task = TASKS[canonical_task(word)]
    if architecture not in task.heads:
        able = sorted(name for name, row in TASKS.items() if architecture in row.heads)
        raise UsageError(f"{architecture} has no head for {task.name!r}\n  it serves: {', '.join(able)}")
    return task, task.heads[architecture]


def tasks_of_head(head: str) -> tuple[str, ...]:
    """The tasks that a head serves, the usual one first, for a checkpoint whose ``architectures`` names its head."""
    return tuple(name for name, task in TASKS.items() if head in task.heads.values())


def sizes(config: Any) -> dict[str, int]:
    """Sizes that the names in output shapes stand for, read off a configuration."""
    written = getattr(config, "output_vocab_size", None) or config.vocab_size
    return {"hidden": config.hidden_size, "labels": config.num_labels, "vocabulary": written}


def limits_of(config: Any) -> Limits:
    """What a model takes; one with rotary positions may go beyond ``max_position_embeddings``, and has no segments."""
    return Limits(
        sequence=getattr(config, "longest_row", config.max_position_embeddings),
        vocabulary=config.vocab_size,
        token_types=getattr(config, "type_vocab_size", 1),
        in_pieces=getattr(config, "longest_in_pieces", None),
    )


def with_sizes(specs: tuple[TensorSpec, ...], known: Mapping[str, int]) -> tuple[TensorSpec, ...]:
    """Replace every named axis that ``known`` holds by its size."""
    return tuple(
        dataclasses.replace(spec, shape=tuple(known.get(a, a) if isinstance(a, str) else a for a in spec.shape))
        for spec in specs
    )


if set(TASKS) != set(TASK_ALIASES):  # the two tables are one list of words
    raise RuntimeError(f"tasks differ from pinnace.spec.TASK_ALIASES: {set(TASKS) ^ set(TASK_ALIASES)}")
