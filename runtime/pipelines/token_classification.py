"""Token classification: the labelled tokens of a text, or the entities that they form."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, Final

import numpy as np

from pinnace.errors import InputError, UsageError
from pinnace.runtime.arguments import check_count, check_text, check_word
from pinnace.runtime.pipelines.base import CallOptions, Pipeline
from pinnace.runtime.pipelines.entities import Entity, Tagger, Window, merge_overlapping
from pinnace.runtime.pipelines.scores import softmax

STRATEGIES: Final = ("none", "simple", "first", "average", "max")
_IGNORED: Final = ("O",)


@dataclasses.dataclass(frozen=True)
class TokenOptions(CallOptions):
    """Options of token classification.

    Attributes:
        aggregation_strategy: ``"none"`` gives labelled tokens, ``"simple"`` joins neighbours of one label;
            ``"first"``, ``"average"`` and ``"max"`` first give all tokens of a word one label: its first token's, the
            mean's, or its surest token's.
        ignore_labels: labels that are left out; None for the default.
        stride: tokens that neighbouring windows share; a text of any length is then read whole. None cuts it.
        is_split_into_words: an input is the list of a text's words; one gives one list of entities (in transformers
            4.57 a list of one list).
        delimiter: what stands between these words in the text that ``start`` and ``end`` count in; None for a space.
    """

    aggregation_strategy: str = "none"
    ignore_labels: Iterable[str] = _IGNORED
    stride: int | None = None
    is_split_into_words: bool = False
    delimiter: str = " "

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "aggregation_strategy", str(self.aggregation_strategy).lower())
        check_word("aggregation_strategy", self.aggregation_strategy, STRATEGIES)
        given: Any = _IGNORED if self.ignore_labels is None else self.ignore_labels  # transformers takes None, too
        labels = [*given] if isinstance(given, Iterable) and not isinstance(given, str) else [None]
        if not all(isinstance(label, str) for label in labels):
            raise UsageError(f"ignore_labels is {given!r}; expected a list of labels")
        object.__setattr__(self, "ignore_labels", frozenset(labels))
        delimiter: Any = " " if self.delimiter is None else self.delimiter
        if not isinstance(delimiter, str):
            raise UsageError(f"delimiter is {delimiter!r}; expected a text")
        object.__setattr__(self, "delimiter", delimiter)
        check_count("stride", self.stride, 0)
        if self.stride is not None and self.aggregation_strategy == "none":
            raise UsageError(
                "stride needs an aggregation_strategy other than 'none': the same token stands in two windows; "
                f"choose one of {', '.join(STRATEGIES[1:])}"
            )


class TokenClassificationPipeline(Pipeline[TokenOptions]):
    """Label the tokens of a text.

    Without aggregation ``[{entity, score, index, word, start, end}]``, with it
    ``[{entity_group, score, word, start, end}]``; ``start`` and ``end`` count characters of the text.

    Source: behaviour of transformers 4.57, TokenClassificationPipeline.
    """

    task = "token-classification"
    bundle_tasks = ("token-classification",)
    options_type = TokenOptions

    def is_one(self, inputs: Any, options: TokenOptions) -> bool:
        """Whether ``inputs`` is one text; a flat list of words is, when texts come split into words."""
        if options.is_split_into_words and isinstance(inputs, list | tuple):
            return bool(inputs) and all(isinstance(word, str) for word in inputs)
        return super().is_one(inputs, options)

    def check_input(self, item: Any, place: str) -> Any:
        """Accept a text, or a list of words."""
        if isinstance(item, list | tuple):
            return [check_text(word, f"word {i} of {place}") for i, word in enumerate(item)]
        return check_text(item, place)

    def answer(self, items: list[Any], options: TokenOptions) -> list[Any]:
        """Label the tokens of each text; the windows of all texts share batches."""
        texts = [self._whole_text(item, options) for item in items]
        split = options.is_split_into_words
        word_starts = [_word_starts(item, options.delimiter) if split else None for item in items]
        overflow: dict[str, Any] = {}
        if options.stride is not None:
            room = self.longest - self.tokenizer.num_special_tokens_to_add()
            if options.stride >= room:
                raise UsageError(
                    f"stride is {options.stride}; expected less than {room}, the tokens of text in one window"
                )
            overflow = {"stride": options.stride, "return_overflowing_tokens": True}
        encoded = self.encode(items, is_split_into_words=split, **overflow)
        rows = encoded.encodings or []
        owners = encoded["overflow_to_sample_mapping"] if overflow else range(len(items))
        tagger = Tagger(self.tokenizer, self.manifest.labels, options.aggregation_strategy, options.ignore_labels)
        found: list[list[Entity]] = [[] for _ in rows]
        for places, outputs in self.batches(rows, options):
            probabilities = softmax(outputs["logits"])  # (B, T, labels)
            for row, i in enumerate(places):
                owner = owners[i]
                chances = probabilities[row, : len(rows[i])]
                found[i] = tagger.entities(Window(texts[owner], rows[i], chances, word_starts[owner]))
        results: list[list[Entity]] = [[] for _ in items]
        windows = np.bincount(np.asarray(owners, np.int64), minlength=len(items))
        for owner, entities in zip(owners, found, strict=True):
            results[owner].extend(entities)
        return [merge_overlapping(r) if n > 1 else r for r, n in zip(results, windows.tolist(), strict=True)]

    def _whole_text(self, item: Any, options: TokenOptions) -> str:
        split = options.is_split_into_words
        if split == isinstance(item, str):
            got, expected = ("a text", "a list of words") if split else ("a list of words", "a text")
            raise InputError(f"an input is {got}, expected {expected}; set is_split_into_words={not split}")
        return options.delimiter.join(item) if split else str(item)


def _word_starts(words: list[str], delimiter: str) -> Any:
    """First character of each word in the joined text."""
    lengths = np.fromiter((len(word) + len(delimiter) for word in words), np.int64, len(words))
    return np.cumsum(lengths) - lengths
