"""Files of examples: text, JSON lines, lists, SQuAD's nested form; what is wrong is named with its line."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

from pinnace.errors import InputError, UsageError
from pinnace.quantize.examples.example import Example
from pinnace.quantize.examples.forms import as_example
from pinnace.quantize.examples.labels import LABELS

MAX_BYTES: Final = 256 << 20
MAX_EXAMPLES: Final = 200_000
_HALF: Final = re.compile(r"\\u[dD][89a-fA-F]")  # JSON's escape of half of a surrogate pair; most belong to a whole one
_TABLES: Final = (".csv", ".tsv", ".parquet", ".xlsx", ".arrow")

Found: TypeAlias = Iterator[tuple[Any, str]]  # texts or objects, and where they stand


def read(path: Path, task: str, mask_token: str, tokens: int | None = None) -> list[Example]:
    """Read a file of examples; arguments and errors are those of `pinnace.quantize.examples.source.read_examples`."""
    if path.suffix.lower() in _TABLES:  # read as text, its columns would be taken for words, and its labels too
        raise UsageError(
            f"{path.name} is a table, and examples are read from texts and JSON; write it as JSON lines, an object "
            "with the fields of an example on each line, and give that .jsonl file"
        )
    text = _read_text(path)
    halves = _HALF.search(text) is not None
    examples: list[Example] = []
    for value, place in _values(text, path, task):
        if halves:
            _refuse_halves(value, place)
        examples.append(as_example(value, place, task, mask_token, tokens))
        if len(examples) > MAX_EXAMPLES:
            raise InputError(f"{path.name} holds more than {MAX_EXAMPLES:,} examples; give a part of it")
    if not examples:
        raise InputError(f"{path.name} holds no example of {task}; expected at least one")
    bare = [example.place for example in examples if example.label is None]
    if 0 < len(bare) < len(examples):
        raise InputError(
            f"{bare[0]} has no {LABELS[task].field!r}, and others have; expected it in all examples or none"
        )
    return examples


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


def _refuse_halves(value: Any, place: str) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start : error.end]
        raise InputError(f"{place} holds half of a surrogate pair, {half!r}: no character; correct it") from None


def _values(text: str, path: Path, task: str) -> Found:
    """Find the texts or objects of a file: as its ending says, else as its first character does."""
    name, kind = path.name, path.suffix.lower()
    begins = text.lstrip()[:1]
    if kind in (".jsonl", ".ndjson"):
        return _json_lines(text, name)
    if kind == ".json" or (kind != ".txt" and begins in ("[", "{")):
        return _json(text, name)
    if begins == "{" and _is_json(text.lstrip().split("\n", 1)[0]):
        raise InputError(
            f"{name} begins with a JSON object, and each line of a text file is a text, labels and all; "
            f"rename it to {path.stem}.jsonl"
        )
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
