"""Zero-shot classification: labels of the caller's choice, judged by a model of entailment."""

from __future__ import annotations

import dataclasses
import string
import warnings
from typing import Any

import numpy as np

from pinnace.arrays import Array
from pinnace.errors import InputError, UsageError
from pinnace.runtime.arguments import check_text
from pinnace.runtime.pipelines.base import CallOptions
from pinnace.runtime.pipelines.scores import softmax
from pinnace.runtime.pipelines.text_classification import ClassifierPipeline


@dataclasses.dataclass(frozen=True)
class ZeroShotOptions(CallOptions):
    """Options of zero-shot classification.

    Attributes:
        candidate_labels: the labels, a list or one text with commas between them.
        hypothesis_template: a sentence with ``{}`` where the label goes.
        multi_label: judge each label on its own, rather than share one probability among all.
    """

    candidate_labels: Any = None
    hypothesis_template: str = "This example is {}."
    multi_label: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        labels = self.candidate_labels
        if isinstance(labels, str):
            labels = [part.strip() for part in labels.split(",") if part.strip()]
        if not isinstance(labels, list | tuple) or not labels or not all(isinstance(label, str) for label in labels):
            raise UsageError(
                f"candidate_labels is {self.candidate_labels!r}; expected a list of at least one text, "
                "or one text with commas between the labels"
            )
        object.__setattr__(self, "candidate_labels", list(labels))
        template = check_text(self.hypothesis_template, "hypothesis_template")
        if not _takes_a_label(template):
            raise UsageError(f"hypothesis_template is {template!r}; expected a sentence with {{}} where the label goes")


class ZeroShotClassificationPipeline(ClassifierPipeline[ZeroShotOptions]):
    """Judge a text by labels that are given with it: ``{sequence, labels, scores}``, best first.

    The model is one of entailment: its label that begins with "entail" says that the hypothesis follows from the text.

    Source: behaviour of transformers 4.57, ZeroShotClassificationPipeline.
    """

    task = "zero-shot-classification"
    options_type = ZeroShotOptions

    def __call__(self, inputs: Any, candidate_labels: Any = None, **options: Any) -> Any:
        """Classify one text, a list of texts, or lazily any other iterable of texts.

        Args:
            inputs: a text, or many.
            candidate_labels: the labels, a list or one text with commas between them.
            options: see `ZeroShotOptions`.

        Raises:
            InputError: an input that is not a text, or is empty.
            UsageError: no labels, a template without ``{}``, or an unknown option.
        """
        return super().__call__(inputs, candidate_labels=candidate_labels, **options)

    def check_input(self, item: Any, place: str) -> str:
        """Accept a text with something in it."""
        if not (text := check_text(item, place)):
            raise InputError(f"{place} is an empty text, expected one to judge; leave it out")
        return text

    def piece_size(self, options: ZeroShotOptions) -> int:
        """Each text runs once for each label."""
        return max(1, super().piece_size(options) // len(options.candidate_labels))

    def answer(self, items: list[str], options: ZeroShotOptions) -> list[Any]:
        """Judge each text; the hypotheses of all texts share batches."""
        labels = options.candidate_labels
        logits = self._logits(items, options)
        entailment = self._entailment()
        if options.multi_label or len(labels) == 1:
            against = -1 if entailment == 0 else 0
            scores = softmax(logits[..., [against, entailment]])[..., 1]
        else:
            scores = softmax(logits[..., entailment])
        order = scores.argsort(-1, kind="stable")[:, ::-1]
        ranked = np.take_along_axis(scores, order, -1)
        return [
            {"sequence": text, "labels": [labels[i] for i in places], "scores": values}
            for text, places, values in zip(items, order.tolist(), ranked.tolist(), strict=True)
        ]

    def _logits(self, items: list[str], options: ZeroShotOptions) -> Array:
        """Return the logits of every label with every text, float32 ``[texts, labels, logits]``."""
        labels, template = options.candidate_labels, options.hypothesis_template
        most = self.longest - self.tokenizer.num_special_tokens_to_add(pair=True) - 1
        # The hypotheses are made as they are needed: all at once they can be thousands of times the request.
        alone = self.encode_pairs(
            ((template.format(label), None) for label in labels), between=options.seconds_left, add_special_tokens=False
        )
        for label, row in zip(labels, alone, strict=True):
            if len(row) > most:
                raise InputError(f"the label {label[:40]!r} with its template is longer than {most} tokens; shorten it")
        pairs = ((text, template.format(label)) for text in items for label in labels)
        return self.logits(pairs, options, truncation="only_first").reshape(len(items), len(labels), -1)

    def _entailment(self) -> int:
        labels = self.manifest.labels
        for i, label in enumerate(labels):
            if label.lower().startswith("entail"):
                return i
        warnings.warn(
            f"no label of this model begins with 'entail' (it has {', '.join(labels)}), so the last is taken for it; "
            "a model of natural language inference gives meaningful scores",
            UserWarning,
            stacklevel=4,
        )
        return -1


def _takes_a_label(template: str) -> bool:
    """Whether a text has a plain ``{}``: a width in it would be filled with spaces without end."""
    try:
        fields = [rest for _, *rest in string.Formatter().parse(template) if rest[0] is not None]
    except ValueError:
        return False
    return fields == [["", "", None]] or (bool(fields) and all(field == ["0", "", None] for field in fields))
