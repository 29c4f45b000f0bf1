"""What each task is judged by: how an answer becomes a prediction, what it is compared with, and the figure."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import numpy as np

from pinnace.arrays import Array
from pinnace.errors import InputError, unknown_word
from pinnace.quantize.examples.example import Example
from pinnace.quantize.examples.source import Examples
from pinnace.quantize.judging.metrics import (
    answer_f1,
    correlation,
    exact_match,
    micro_f1,
    neighbours,
    reciprocal_rank,
    shared,
)
from pinnace.runtime.pipelines.base import Pipeline
from pinnace.spec import Manifest

Predictions: TypeAlias = Sequence[Any]
NEIGHBOURS: Final = 10
# Where no gold answer says how long answers are: the longest that SQuAD's own baselines give.
ANSWER_TOKENS: Final = 30
OUTSIDE: Final = "O"  # the label of tokens that belong to no entity


def _same(predictions: Predictions, golds: Predictions) -> list[float]:
    return [float(p == g) for p, g in zip(predictions, golds, strict=True)]


def _as_given(label: Any, example: Example, manifest: Manifest) -> Any:
    return label


def _own(predictions: Predictions) -> Predictions:
    return predictions


def _no_options(pipe: Pipeline[Any], examples: Examples) -> dict[str, Any]:
    return {}


@dataclasses.dataclass(frozen=True)
class Metric:
    """How one task is judged.

    Attributes:
        name: the main figure, a key of the gates; from labels if all examples have one, else against fp32's answers.
        predict: from the pipeline, an example and the pipeline's answer to a prediction.
        gold: from a label, its example and the manifest to what is right, in the form that ``each`` takes.
        own: from fp32's predictions to what is right where there are no labels.
        each: a figure for each example, larger is better.
        total: the main figure; None takes the mean of ``each``.
        details: further figures of the same predictions, by name.
        options: options of the pipeline's calls.
        chunk: examples of one call, few where an answer is large.
        finds: what an answer and what is right are sets of, where they may be empty.
    """

    name: str
    predict: Callable[[Pipeline[Any], Example, Any], Any]
    gold: Callable[[Any, Example, Manifest], Any] = _as_given
    own: Callable[[Predictions], Predictions] = _own
    each: Callable[[Predictions, Predictions], Sequence[float]] = _same
    total: Callable[[Predictions, Predictions], float] | None = None
    details: Mapping[str, Callable[[Predictions, Predictions], float]] = dataclasses.field(default_factory=dict)
    options: Callable[[Pipeline[Any], Examples], dict[str, Any]] = _no_options
    chunk: int = 1024
    finds: str = ""

    def measure(self, predictions: Predictions, golds: Predictions) -> tuple[float, Array]:
        """The main figure, and a figure for each example, float64."""
        each = np.asarray(self.each(predictions, golds), np.float64)
        return float(each.mean()) if self.total is None else self.total(predictions, golds), each


def _answer_options(pipe: Pipeline[Any], examples: Examples) -> dict[str, Any]:
    """ "No answer" competes unless labels say that there always is one; answers may be as long as the longest gold."""
    golds = [example.label for example in examples] if examples.labelled else []
    texts = [text for gold in golds for text in gold]
    rows = pipe.encode(texts, truncation=False, add_special_tokens=False).encodings if texts else []
    return {
        "handle_impossible_answer": not golds or not all(golds),
        "max_answer_len": max([ANSWER_TOKENS, *map(len, rows or [])]),
    }


def _each_f1(predictions: Predictions, golds: Predictions) -> list[float]:
    return [answer_f1(p, g) for p, g in zip(predictions, golds, strict=True)]


def _exact(predictions: Predictions, golds: Predictions) -> float:
    return float(np.mean([exact_match(p, g) for p, g in zip(predictions, golds, strict=True)]))


def _entities(pipe: Pipeline[Any], example: Example, answer: Any) -> Any:
    return tuple((entity["start"], entity["end"], entity["entity_group"]) for entity in answer)


def _entity_names(label: Any, example: Example, manifest: Manifest) -> Any:
    """Labels as the pipeline gives those of whole entities: without the ``B-`` or ``I-`` of their tokens."""
    known = list(dict.fromkeys(name.split("-", 1)[-1] for name in manifest.labels if name != OUTSIDE))
    for _, _, name in label:
        if name not in known:
            raise InputError(f"'entities' of {example.place}: {unknown_word('label', name, known)}")
    return label


def _each_micro(predictions: Predictions, golds: Predictions) -> list[float]:
    return [micro_f1([p], [g]) for p, g in zip(predictions, golds, strict=True)]


def _label_name(label: Any, example: Example, manifest: Manifest) -> str:
    if isinstance(label, tuple):
        raise InputError(f"'label' of {example.place} is a list, and this model gives one label; expected one")
    if isinstance(label, int) and 0 <= label < len(manifest.labels):
        return manifest.labels[label]
    if label not in manifest.labels:
        raise InputError(f"'label' of {example.place}: {unknown_word('label', str(label), manifest.labels)}")
    return str(label)


def _label_names(label: Any, example: Example, manifest: Manifest) -> tuple[str, ...]:
    return tuple(_label_name(one, example, manifest) for one in (label if isinstance(label, tuple) else (label,)))


def _numbers(label: Any, example: Example, manifest: Manifest) -> Any:
    numbers = label if isinstance(label, tuple) else (label,)
    if len(numbers) == len(manifest.labels) and all(isinstance(number, int | float) for number in numbers):
        return np.asarray(numbers, np.float64)
    count = len(manifest.labels)
    raise InputError(f"'label' of {example.place} is {label!r}, expected a number for each of the model's {count}")


def _all_scores(pipe: Pipeline[Any], example: Example, answer: Any) -> Any:
    return np.asarray([row["score"] for row in answer])


def _likely(pipe: Pipeline[Any], example: Example, answer: Any) -> tuple[str, ...]:
    return tuple(row["label"] for row in answer if row["score"] >= 0.5)


def _distance(predictions: Predictions, golds: Predictions) -> list[float]:
    return [-float(np.abs(p - g).max()) for p, g in zip(predictions, golds, strict=True)]


def _correlation(predictions: Predictions, golds: Predictions) -> float:
    """The least of all outputs: levels that differ between outputs are no merit. One that never varies says nothing."""
    found, right = np.stack(predictions), np.stack(golds)  # (examples, outputs)
    telling = np.flatnonzero(np.ptp(right, axis=0) > 0)
    outputs = telling if telling.size else range(right.shape[1])
    return min(correlation(found[:, i], right[:, i]) for i in outputs)


def _ranks(predictions: Predictions, golds: Predictions) -> list[float]:
    return [reciprocal_rank(p, g) for p, g in zip(predictions, golds, strict=True)]


def _best_words(pipe: Pipeline[Any], example: Example, answer: Any) -> tuple[str, ...]:
    masks = answer if isinstance(answer[0], list) else [answer]
    return tuple(mask[0]["token_str"].strip().casefold() for mask in masks)


def _words(label: Any, example: Example, manifest: Manifest) -> tuple[str, ...]:
    return tuple(word.strip().casefold() for word in label)


def _shares(predictions: Predictions, golds: Predictions) -> list[float]:
    """Of each example's parts, how many are equal."""
    return [
        sum(a == b for a, b in zip(p, g, strict=False)) / max(len(p), len(g), 1)
        for p, g in zip(predictions, golds, strict=True)
    ]


def _pretrained(pipe: Pipeline[Any], example: Example, answer: Any) -> tuple[int, ...]:
    """The likeliest token at every mask, and whether the second text follows."""
    fields = example.input if isinstance(example.input, dict) else {"text": example.input}
    row = pipe.encode_pairs([(fields["text"], fields.get("text_pair"))])[0]
    masks = np.flatnonzero(np.asarray(row.ids) == pipe.tokenizer.mask_token_id)
    if not masks.size:
        raise InputError(
            f"{example.place} has no mask in its first {pipe.longest} tokens, expected at least one; "
            f"write {pipe.tokenizer.mask_token} where a word is to be found"
        )
    best = np.argmax(answer["prediction_logits"][masks], -1).tolist()
    return (*best, int(np.argmax(answer["seq_relationship_logits"])))


def _pooling(pipe: Pipeline[Any], examples: Examples) -> dict[str, Any]:
    said = pipe.manifest.pooling
    return {"return_tensors": True, **({"pooling": "mean"} if said is None else {})}


def _nearest(predictions: Predictions) -> Predictions:
    return list(neighbours(np.stack(predictions), NEIGHBOURS))


def _each_overlap(predictions: Predictions, golds: Predictions) -> list[float]:
    found: list[float] = shared(np.stack(_nearest(predictions)), np.stack(golds)).tolist()
    return found


_ENTITY_F1: Final = Metric(
    "entity_f1",
    _entities,
    _entity_names,
    each=_each_micro,
    total=micro_f1,
    options=lambda *_: {"aggregation_strategy": "simple"},
    finds="entity",
)
_ALL_SCORES: Final = {"return_all_scores": True}
_ONE_LABEL: Final = Metric(
    "accuracy", lambda pipe, example, answer: max(answer, key=lambda row: row["score"])["label"], _label_name,
    options=lambda *_: _ALL_SCORES,
)  # fmt: skip
_SEVERAL_LABELS: Final = Metric(
    "label_f1", _likely, _label_names, each=_each_micro, total=micro_f1, options=lambda *_: _ALL_SCORES,
    finds="likely label",
)  # fmt: skip
_NUMBER: Final = Metric(
    "correlation", _all_scores, _numbers, each=_distance, total=_correlation, options=lambda *_: _ALL_SCORES
)
# Task -> what it is judged by. text-generation is judged by its distributions, in `evaluate_tokens`.
METRICS: Final[Mapping[str, Metric]] = types.MappingProxyType(
    {
        "feature-extraction": Metric(
            "neighbour_overlap", lambda pipe, example, answer: np.asarray(answer), own=_nearest, each=_each_overlap,
            options=_pooling,
        ),
        "fill-mask": Metric("accuracy", _best_words, _words, each=_shares, options=lambda *_: {"top_k": 1}),
        "question-answering": Metric(
            "f1", lambda pipe, example, answer: answer["answer"], own=lambda texts: [(text,) for text in texts],
            each=_each_f1, details={"exact_match": _exact}, options=_answer_options,
        ),
        "token-classification": _ENTITY_F1,
        "text-classification": _ONE_LABEL,
        "text-ranking": Metric(
            "reciprocal_rank", lambda pipe, example, answer: tuple(row["index"] for row in answer),
            own=lambda orders: [order[:1] for order in orders], each=_ranks,
        ),
        "zero-shot-classification": Metric("accuracy", lambda pipe, example, answer: answer["labels"][0]),
        "multiple-choice": Metric("accuracy", lambda pipe, example, answer: answer["choice"]),
        "next-sentence-prediction": Metric("accuracy", lambda pipe, example, answer: answer["is_next"]),
        "pretraining": Metric(
            "accuracy", _pretrained, each=_shares, options=lambda *_: {"return_tensors": True}, chunk=8
        ),
        "text-generation": Metric("kl", lambda pipe, example, answer: answer),
    }
)  # fmt: skip


def metric_of(task: str, manifest: Manifest) -> Metric:
    """Return what a bundle is judged by: the row of its task, for text-classification that of its kind of labels."""
    if task != "text-classification":
        return METRICS[task]
    if manifest.problem_type == "regression" or len(manifest.labels) == 1:
        return _NUMBER
    return _SEVERAL_LABELS if manifest.problem_type == "multi_label_classification" else _ONE_LABEL
