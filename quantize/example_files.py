"""Files of examples: text, JSON lines, lists, SQuAD's nested form; what is wrong is named with its line."""

from __future__ import annotations

import json
import re
import stat
import types
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

from pinnace.errors import InputError, UsageError, unknown_word
from pinnace.forms import FORMS
from pinnace.quantize.example import Example, content_of
from pinnace.quantize.example_labels import LABELS

MAX_BYTES: Final = 256 << 20
MAX_EXAMPLES: Final = 200_000
MASKED_TASKS: Final = ("fill-mask", "pretraining")
_LISTS: Final = ("documents", "choices", "candidate_labels")
# What data sets say beside the fields that matter here.
_BESIDE: Final = frozenset({"id", "idx", "title", "is_impossible", "plausible_answers"})
# The mask stands among the first words, which no model cuts off.
_FIRST_WORDS: Final = 40
# Task -> the field that says what a text is about, where the others may be shared by many inputs.
_CONTENT: Final[Mapping[str, tuple[str, ...]]] = types.MappingProxyType({"question-answering": ("context",)})

Found: TypeAlias = Iterator[tuple[Any, str]]  # texts or objects, and where they stand


def read(path: Path, task: str, mask_token: str, candidate_labels: Sequence[str]) -> list[Example]:
    """Read a file of examples; arguments and errors are those of `pinnace.quantize.examples.read_examples`."""
    text = _read_text(path)
    examples: list[Example] = []
    for value, place in _values(text, path, task):
        examples.append(as_example(value, place, task, mask_token, candidate_labels))
        if len(examples) > MAX_EXAMPLES:
            raise InputError(f"{path.name} holds more than {MAX_EXAMPLES:,} examples; give a part of it")
    if not examples:
        raise InputError(f"{path.name} holds no example of {task}; expected at least one")
    return examples


def as_example(
    value: Any, place: str, task: str, mask_token: str = "", candidate_labels: Sequence[str] = ()
) -> Example:
    """Make an example of a text or an object of fields.

    Raises:
        InputError: it is none of this task.
    """
    form = FORMS[task]
    label_name, read_label = LABELS.get(task, ("", None))
    fields = dict(value) if isinstance(value, Mapping) else {form.text: value}
    if fields.get("is_impossible") is True:
        fields["answers"] = []
    label = None
    if read_label is not None and label_name in fields:
        label = read_label(fields[label_name], f"{label_name!r} of {place}")
    known = (*form.fields, *([label_name] if label_name else []))
    for name in fields:
        if name not in known and name not in _BESIDE:
            raise InputError(f"{place}: {unknown_word(f'field of {task}', str(name), known)}")
    if form.option and not fields.get(form.option) and candidate_labels:
        fields[form.option] = list(candidate_labels)
    needed = (form.text, *form.required, *([form.option] if form.option else []))
    if missing := [name for name in needed if name not in fields]:
        shape = "{" + ", ".join(f'"{name}": ...' for name in needed) + "}"
        raise InputError(f"{place} has no {missing[0]!r}; expected {shape}, one on each line of a .jsonl file")
    inputs = {name: _checked(name, fields[name], place) for name in form.fields if fields.get(name) is not None}
    if task in MASKED_TASKS and mask_token:
        inputs["text"] = with_mask(inputs["text"], mask_token)
    options = {form.option: inputs.pop(form.option)} if form.option else {}
    named = _CONTENT.get(task, tuple(inputs))
    texts = [t for name in named for t in (inputs[name] if isinstance(inputs[name], list) else [inputs[name]])]
    content = tuple(texts) if task in _CONTENT else content_of(texts)
    return Example(inputs[form.text] if len(inputs) == 1 else inputs, label, options, content, place)


def with_mask(text: str, mask_token: str) -> str:
    """Mask one word of a text that has no mask; which one depends on the text alone.

    Raises:
        InputError: the text has no word.
    """
    if mask_token in text:
        return text
    words = list(re.finditer(r"[^\W\d_]+", text))[:_FIRST_WORDS]
    if not words:
        raise InputError(f"{text[:40]!r} has no word that could be masked; leave it out, or write {mask_token} into it")
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


def _read_text(path: Path) -> str:
    """The file's text.

    Raises:
        UsageError: no such file, not a regular one, larger than `MAX_BYTES`, or not UTF-8; the text has the line.
    """
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):
            kind = "a folder" if stat.S_ISDIR(facts.st_mode) else "no regular file"
            raise UsageError(f"cannot read examples from {path}: it is {kind}; give a file")
        if facts.st_size > MAX_BYTES:
            raise UsageError(f"{path} has {facts.st_size:,} bytes, expected at most {MAX_BYTES:,}; give a part of it")
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES)
        return raw.decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"cannot read examples from {path}: {error.strerror}; give an existing file") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UsageError(
            f"line {line} of {path} is not UTF-8 text (byte {error.start + 1}); convert the file"
        ) from None


def _values(text: str, path: Path, task: str) -> Found:
    """Find the texts or objects of a file: as its ending says, else as its first character does."""
    name, kind = path.name, path.suffix.lower()
    begins = text.lstrip()[:1]
    if kind in (".jsonl", ".ndjson"):
        return _json_lines(text, name)
    if kind == ".json" or (kind != ".txt" and begins in ("[", "{")):
        return _json(text, name)
    return _texts(text, name, task)


def _texts(text: str, name: str, task: str) -> Found:
    lines = text.split("\n")
    if task == "text-generation" and re.search(r"\n[ \t\r]*\n", text.strip()):
        paragraph: list[str] = []
        for number, line in enumerate([*lines, ""], 1):
            if line.strip():
                paragraph.append(line.strip("\r"))
            elif paragraph:
                yield "\n".join(paragraph), f"line {number - len(paragraph)} of {name}"
                paragraph = []
        return
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield line.strip("\r"), f"line {number} of {name}"


def _json_lines(text: str, name: str) -> Found:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            place = f"line {number} of {name}"
            try:
                yield json.loads(line), place
            except (ValueError, RecursionError) as error:
                raise InputError(f"{place} is not JSON: {_reason(error)}; correct it") from None


def _json(text: str, name: str) -> Found:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        lines = text.strip().split("\n")
        if len(lines) > 1 and _is_json(lines[0]):  # JSON lines under another ending
            yield from _json_lines(text, name)
            return
        raise InputError(f"{name} is not JSON: {_reason(error)}; correct it") from None
    if isinstance(data, Mapping) and isinstance(data.get("data"), list):
        yield from _squad(data["data"], f"data of {name}")
    elif isinstance(data, list):
        yield from ((item, f"item {i} of {name}") for i, item in enumerate(data))
    else:
        raise InputError(
            f'{name} is a JSON {type(data).__name__}, expected a list of examples, or SQuAD\'s {{"data": [...]}}'
        )


def _squad(articles: Sequence[Any], place: str) -> Found:
    """SQuAD's nested form, articles of paragraphs of questions, or a plain list under ``data``."""
    for i, article in enumerate(articles):
        if not isinstance(article, Mapping) or "paragraphs" not in article:
            yield article, f"item {i} of {place}"
            continue
        for j, paragraph in enumerate(_list(article, "paragraphs", f"article {i} of {place}")):
            where = f"paragraph {j} of article {i} of {place}"
            for k, question in enumerate(_list(paragraph, "qas", where)):
                if not isinstance(question, Mapping):
                    raise InputError(
                        f"question {k} of {where} is {repr(question)[:60]}, expected an object; correct it"
                    )
                yield {**question, "context": paragraph.get("context")}, f"question {k} of {where}"


def _list(owner: Any, name: str, place: str) -> list[Any]:
    if isinstance(owner, Mapping) and isinstance(owner.get(name), list):
        return list(owner[name])
    raise InputError(f"{place} has no list {name!r}, which SQuAD's form has there; correct it")


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _reason(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
