"""What an example may say of the right answer, task by task, checked and brought into one form."""

from __future__ import annotations

import dataclasses
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any, Final

from pinnace.errors import InputError


def _answers(value: Any, place: str) -> tuple[str, ...]:
    """Gold answers: a text, texts, ``{"text": [...]}``, or SQuAD's list of ``{"text": ...}``; none: no answer."""
    if isinstance(value, Mapping):
        value = value.get("text")
    said = [value] if isinstance(value, str) else value
    if isinstance(said, list):
        texts = [answer.get("text") if isinstance(answer, Mapping) else answer for answer in said]
        if all(isinstance(text, str) for text in texts):
            return tuple(map(str, texts))
    raise _wrong(place, value, 'a text, a list of texts, or {"text": [...]}')


def _entities(value: Any, place: str) -> tuple[tuple[int, int, str], ...]:
    """Entities ``{"start", "end", "label"}``, in characters of the text."""
    found = []
    for entity in value if isinstance(value, list) else [value]:
        named = entity if isinstance(entity, Mapping) else {}
        start, end, label = (named.get(name) for name in ("start", "end", "label"))
        if type(start) is not int or type(end) is not int or not isinstance(label, str) or not 0 <= start < end:
            raise _wrong(place, entity, 'a list of {"start": 0, "end": 3, "label": "PER"}, in characters')
        found.append((start, end, label))
    return tuple(found)


def _class(value: Any, place: str) -> Any:
    """A label's name or number; a number for regression; a list of labels where a text may have several."""
    labels = value if isinstance(value, list) else [value]
    if not all(isinstance(label, str | int | float) and type(label) is not bool for label in labels):
        raise _wrong(place, value, "a label's name or number, a number for regression, or a list of labels")
    for label in labels:  # Python's JSON reads NaN and Infinity too, and whole numbers of any size
        if not isinstance(label, str) and not abs(label) <= sys.float_info.max:
            raise _wrong(place, label, "a finite number")
    return tuple(value) if isinstance(value, list) else value


def _choice(value: Any, place: str) -> int:
    if type(value) is int and value >= 0:
        return int(value)
    raise _wrong(place, value, "the right choice's place, from 0")


def _places(value: Any, place: str) -> tuple[int, ...]:
    places = value if isinstance(value, list) else [value]
    if places and all(type(index) is int and index >= 0 for index in places):
        return tuple(places)
    raise _wrong(place, value, "the places of the relevant documents, from 0")


def _truth(value: Any, place: str) -> bool:
    if type(value) is bool:
        return value
    raise _wrong(place, value, "true or false")


def _text(value: Any, place: str) -> str:
    if isinstance(value, str):
        return value
    raise _wrong(place, value, "a text")


def _words(value: Any, place: str) -> tuple[str, ...]:
    words = [value] if isinstance(value, str) else value
    if isinstance(words, list) and words and all(isinstance(word, str) for word in words):
        return tuple(words)
    raise _wrong(place, value, "the masked word, or a list of a word for each mask")


def _wrong(place: str, got: Any, expected: str) -> InputError:
    return InputError(f"{place} is {repr(got)[:60]}, expected {expected}; correct it, or leave it out of all examples")


def _fits_text(label: Any, inputs: Mapping[str, Any], mask_token: str, place: str) -> None:
    last, length = max((end for _, end, _ in label), default=0), len(inputs["text"])
    if last > length:
        raise _wrong(place, last, f"ends of at most {length}, the characters of the text")


def _fits_masks(label: Any, inputs: Mapping[str, Any], mask_token: str, place: str) -> None:
    masks = inputs["text"].count(mask_token)
    if masks != len(label):
        raise _wrong(place, list(label), f"a word for each {mask_token} of the text, which has {masks}")


def _fits_candidates(label: Any, inputs: Mapping[str, Any], mask_token: str, place: str) -> None:
    if label not in inputs["candidate_labels"]:
        raise _wrong(place, label, f"one of its candidate labels: {', '.join(inputs['candidate_labels'])}")


def _fits_list(field: str) -> Callable[[Any, Mapping[str, Any], str, str], None]:
    def fits(label: Any, inputs: Mapping[str, Any], mask_token: str, place: str) -> None:
        highest, count = max(label) if isinstance(label, tuple) else label, len(inputs[field])
        if highest >= count:
            raise _wrong(place, highest, f"0 to {count - 1}, as there are {count} {field}")

    return fits


def _fits_any(label: Any, inputs: Mapping[str, Any], mask_token: str, place: str) -> None:
    """What the model's own labels are is checked where the model is known."""


@dataclasses.dataclass(frozen=True)
class Label:
    """The label of a task's examples.

    Attributes:
        field: its name in a file.
        read: brings what a file says into one form; the place is for messages.
        fits: refuses what cannot be right, given the label, the input's fields, the mask token and the place.
    """

    field: str
    read: Callable[[Any, str], Any]
    fits: Callable[[Any, Mapping[str, Any], str, str], None] = _fits_any


# A task that is missing has no label: fp32 is what it is compared with.
LABELS: Final[Mapping[str, Label]] = types.MappingProxyType(
    {
        "fill-mask": Label("words", _words, _fits_masks),
        "question-answering": Label("answers", _answers),
        "token-classification": Label("entities", _entities, _fits_text),
        "text-classification": Label("label", _class),
        "text-ranking": Label("relevant", _places, _fits_list("documents")),
        "zero-shot-classification": Label("label", _text, _fits_candidates),
        "multiple-choice": Label("label", _choice, _fits_list("choices")),
        "next-sentence-prediction": Label("is_next", _truth),
    }
)
