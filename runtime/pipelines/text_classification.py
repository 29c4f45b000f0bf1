"""Text classification: the labels of a text, or of a pair of texts, with their scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from pinnace.arrays import Array
from pinnace.errors import UsageError
from pinnace.runtime.arguments import check_count, check_word
from pinnace.runtime.pipelines.base import CallOptions, Options, Pipeline
from pinnace.runtime.pipelines.items import Pair, check_pair
from pinnace.runtime.pipelines.scores import sigmoid, softmax

FUNCTIONS: Final[Mapping[str, Callable[[Array], Array]]] = MappingProxyType(
    {"sigmoid": sigmoid, "softmax": softmax, "none": lambda logits: logits}
)
# Tasks that share BertForSequenceClassification: a bundle of one serves the pipelines of all.
CLASSIFIER_TASKS: Final = ("text-classification", "text-ranking", "zero-shot-classification")


@dataclasses.dataclass(frozen=True)
class ClassificationOptions(CallOptions):
    """Options of text classification.

    Attributes:
        top_k: how many labels, best first; None gives all; ``""`` (nothing said) gives the best one alone.
        function_to_apply: ``"sigmoid"``, ``"softmax"`` or ``"none"``; None takes sigmoid for one label or a multi-label
            model, softmax for several labels, nothing for regression.
        return_all_scores: the older form of ``top_k=None``: all labels, in the model's order.
        truncation: cut texts that are too long, rather than refuse them.
        max_length: tokens to cut to; None takes the model's limit.
        stride: tokens that neighbouring windows share; a text (alone, no pair) of any length is then read whole, and
            its logits are the mean of its windows', each weighted by its tokens. None cuts it.
    """

    top_k: int | str | None = ""
    function_to_apply: str | None = None
    return_all_scores: bool = False
    truncation: bool | str = True
    max_length: int | None = None
    stride: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("max_length", self.max_length)
        check_count("stride", self.stride, 0)
        if self.top_k != "":
            check_count("top_k", self.top_k)
        if self.function_to_apply is not None:
            check_word("function_to_apply", str(self.function_to_apply).lower(), FUNCTIONS)


class ClassifierPipeline(Pipeline[Options]):
    """What the pipelines on a sequence-classification head share."""

    bundle_tasks = CLASSIFIER_TASKS

    def logits(self, pairs: Iterable[Pair], options: Options, **arguments: Any) -> Array:
        """Return the logits of texts or pairs, float32 ``[pairs, labels]``; ``arguments`` are the tokenizer's."""
        encodings = self.encode_pairs(pairs, between=options.seconds_left, **arguments)
        logits = np.empty((len(encodings), len(self.manifest.labels)), np.float32)
        for batch, outputs in self.batches(encodings, options):
            logits[batch] = outputs["logits"]
        return logits


class TextClassificationPipeline(ClassifierPipeline[ClassificationOptions]):
    """Label texts: ``[{label, score}]`` for one text, one ``{label, score}`` for each text of a list.

    With ``top_k`` given, every input gets a list of labels, best first. A pair is ``{"text": ..., "text_pair": ...}``.

    Source: behaviour of transformers 4.57, TextClassificationPipeline.
    """

    task = "text-classification"
    options_type = ClassificationOptions

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """Classify one text or pair, a list of them, or lazily any other iterable of them.

        Args:
            inputs: a text, a pair ``{"text", "text_pair"}``, or many of these.
            options: see `ClassificationOptions`.

        Raises:
            InputError: an input of another type.
            UsageError: an unknown or unfit option.
        """
        result = super().__call__(inputs, **options)
        return [result] if isinstance(inputs, str) and "top_k" not in options else result

    def check_input(self, item: Any, place: str) -> Pair:
        """Accept a text or ``{"text", "text_pair"}``."""
        return check_pair(item, place)

    def answer(self, items: list[Pair], options: ClassificationOptions) -> list[Any]:
        """Label each text or pair."""
        length = min(self.longest, options.max_length or self.longest)
        if options.stride is None:
            logits = self.logits(items, options, truncation=options.truncation, max_length=length)
        else:
            logits = self._windowed_logits(items, options, length, options.stride)
        scores = FUNCTIONS[(options.function_to_apply or self._default_function()).lower()](logits)
        labels = self.manifest.labels
        if options.top_k == "" and not options.return_all_scores:
            best = scores.argmax(-1)
            return [
                {"label": labels[i], "score": score}
                for i, score in zip(best.tolist(), scores.max(-1).tolist(), strict=True)
            ]
        if options.top_k == "":
            order = np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
        else:
            order = np.argsort(-scores, axis=-1, kind="stable")[:, : options.top_k]
        ranked = np.take_along_axis(scores, order, -1)
        return [
            [{"label": labels[i], "score": score} for i, score in zip(row, values, strict=True)]
            for row, values in zip(order.tolist(), ranked.tolist(), strict=True)
        ]

    def _windowed_logits(self, items: list[Pair], options: ClassificationOptions, length: int, stride: int) -> Array:
        """Read texts of any length in windows, which share batches; return the weighted mean of each text's logits."""
        if any(partner is not None for _, partner in items):
            raise UsageError("stride reads single texts in windows, got a pair; leave stride out, or give one text")
        if stride >= (room := length - self.tokenizer.num_special_tokens_to_add()):
            raise UsageError(f"stride is {stride}; expected less than {room}, the tokens of text in one window")
        encoded = self.encode(
            [text for text, _ in items], max_length=length, stride=stride, return_overflowing_tokens=True
        )
        rows, owners = encoded.encodings or [], np.asarray(encoded["overflow_to_sample_mapping"], np.int64)
        total = np.zeros((len(items), len(self.manifest.labels)), np.float64)
        weights = np.asarray([max(1, len(row)) for row in rows], np.float64)
        for places, outputs in self.batches(rows, options):
            np.add.at(total, owners[places], outputs["logits"] * weights[places, None])
        return np.asarray(total / np.bincount(owners, weights, len(items))[:, None], np.float32)

    def _default_function(self) -> str:
        if self.manifest.problem_type == "regression":
            return "none"
        if self.manifest.problem_type == "multi_label_classification" or len(self.manifest.labels) <= 1:
            return "sigmoid"
        return "softmax"
