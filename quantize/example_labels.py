"""What an example may say of the right answer, task by task, checked and brought into one form."""

from __future__ import annotations

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
    if isinstance(value, list) and all(isinstance(label, str | int) and type(label) is not bool for label in value):
        return tuple(value)
    if isinstance(value, str | int | float) and type(value) is not bool:
        return value
    raise _wrong(place, value, "a label's name or number, a number for regression, or a list of labels")


def _choice(value: Any, place: str) -> int:
    if type(value) is int and value >= 0:
        return value
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


# Task -> the field of its label and what reads it. A task that is missing has none: fp32 is what it is compared with.
LABELS: Final[Mapping[str, tuple[str, Callable[[Any, str], Any]]]] = types.MappingProxyType(
    {
        "fill-mask": ("words", _words),
        "question-answering": ("answers", _answers),
        "token-classification": ("entities", _entities),
        "text-classification": ("label", _class),
        "text-ranking": ("relevant", _places),
        "zero-shot-classification": ("label", _text),
        "multiple-choice": ("label", _choice),
        "next-sentence-prediction": ("is_next", _truth),
    }
)
