"""From a text or an object of a file to an example of a task: its fields, label and mask checked, its content named."""

from __future__ import annotations

import re
import types
import zlib
from collections.abc import Mapping
from typing import Any, Final

from pinnace.errors import InputError, unknown_word
from pinnace.forms import FORMS
from pinnace.quantize.examples.example import Example, content_of
from pinnace.quantize.examples.labels import LABELS

MASKED_TASKS: Final = ("fill-mask", "pretraining")
_LISTS: Final = ("documents", "choices", "candidate_labels")
# What data sets say beside the fields that matter here.
_BESIDE: Final = frozenset({"id", "idx", "title", "is_impossible", "plausible_answers"})
# The mask stands among the first words, which no model cuts off.
_FIRST_WORDS: Final = 40
# Task -> the field that says what a text is about, where the others may be shared by many inputs.
_CONTENT: Final[Mapping[str, tuple[str, ...]]] = types.MappingProxyType({"question-answering": ("context",)})


def as_example(value: Any, place: str, task: str, mask_token: str, tokens: int | None = None) -> Example:
    """Make an example of a text or an object of fields; the arguments are those of `examples.read_examples`.

    Raises:
        InputError: it is none of this task.
    """
    form = FORMS[task]
    labels = LABELS.get(task)
    fields = {k: v for k, v in value.items() if v is not None} if isinstance(value, Mapping) else {form.text: value}
    if task == "question-answering" and fields.get("is_impossible") is True:
        fields["answers"] = []
    known = (*form.fields, *([labels.field] if labels else []))
    for name in fields:
        if name not in known and name not in _BESIDE:
            raise InputError(f"{place}: {unknown_word(f'field of {task}', str(name), known)}")
    needed = (form.text, *form.required, *([form.option] if form.option else []))
    if missing := [name for name in needed if name not in fields]:
        shape = "{" + ", ".join(f'"{name}": ...' for name in needed) + "}"
        raise InputError(f"{place} has no {missing[0]!r}; expected {shape}, one on each line of a .jsonl file")
    inputs = {name: _checked(name, fields[name], place) for name in form.fields if name in fields}
    label = None
    if labels and labels.field in fields:
        where = f"{labels.field!r} of {place}"
        label = labels.read(fields[labels.field], where)
        labels.fits(label, inputs, mask_token, where)
    if task in MASKED_TASKS and mask_token:
        # Of a pair that is cut, half is left for each.
        room = tokens // 2 if tokens and len(inputs) > 1 else tokens
        inputs["text"] = with_mask(inputs["text"], mask_token, room)
    options = {form.option: inputs.pop(form.option)} if form.option else {}
    named = _CONTENT.get(task, tuple(inputs))
    texts = [t for name in named for t in (inputs[name] if isinstance(inputs[name], list) else [inputs[name]])]
    content = tuple(texts) if task in _CONTENT else content_of(texts)
    return Example(inputs[form.text] if len(inputs) == 1 else inputs, label, options, content, place)


def with_mask(text: str, mask_token: str, tokens: int | None = None) -> str:
    """Mask one word of a text that has no mask; which one depends on the text and ``tokens`` alone.

    Args:
        text: the text.
        mask_token: what the model writes for a mask.
        tokens: to which the text may be cut, the first and the last of them the model's own.

    Raises:
        InputError: the text has no word.
    """
    if mask_token in text:
        return text
    words = list(re.finditer(r"[^\W\d_]+", text))[:_FIRST_WORDS]
    if not words:
        raise InputError(f"{text[:40]!r} has no word that could be masked; leave it out, or write {mask_token} into it")
    if tokens is not None:  # a token is at least one character
        words = [word for word in words if word.start() < tokens - 2] or words[:1]
    long = [word for word in words if len(word[0]) > 2] or words
    word = long[zlib.crc32(text.encode(errors="surrogatepass")) % len(long)]
    return f"{text[: word.start()]}{mask_token}{text[word.end() :]}"


def _checked(name: str, value: Any, place: str) -> Any:
    if name in _LISTS:
        if isinstance(value, list) and value and all(isinstance(text, str) for text in value):
            return value
        raise InputError(f"{name!r} of {place} is {repr(value)[:60]}, expected a list of at least one text; give one")
    if not isinstance(value, str):
        raise InputError(f"{name!r} of {place} is {repr(value)[:60]}, expected a text; give one")
    if not value.strip():
        raise InputError(f"{name!r} of {place} is empty, expected a text; give one, or leave the example out")
    return value
