"""The lines of a file or of standard input as inputs of a task, each with what is wrong with it."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import stat
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

from pinnace.cli.inputs import Item, near_path, shape_of, split
from pinnace.errors import InputError, NumericalError, UsageError, unknown_word
from pinnace.forms import FORMS, Form
from pinnace.json_text import to_json

MAX_LINE_BYTES: Final = 64 << 20
LINES: Final = ("auto", "json", "text")
_FORMAT_OF_SUFFIX: Final[Mapping[str, str]] = {".jsonl": "json", ".ndjson": "json", ".json": "json", ".txt": "text"}


def items_of_lines(
    task: str, source: str, lines: str, shared: Mapping[str, Any], keep: Sequence[str] = ()
) -> Iterator[Item]:
    """Read inputs from a file or standard input (``-``), one a line, as they are asked for.

    A line that is no input of this task becomes an item with an error, whose text has its number.

    Args:
        task: the task's full name.
        source: path, or ``-``.
        lines: ``"json"``, ``"text"`` or ``"auto"``: by the file's ending, else by the first line.
        shared: options of every call.
        keep: fields of a line that its answer shall hold, whether the task takes them or not.

    Raises:
        UsageError: no such file, one that begins with a list of inputs, or fields to keep of lines of plain text.
    """
    form = FORMS[task]
    name = "standard input" if source == "-" else source
    kind = lines if lines != "auto" else _FORMAT_OF_SUFFIX.get(Path(source).suffix.lower(), "")
    if keep and kind == "text":
        raise _no_fields(name)
    with _opened(source) as file:
        end, first = 0, True
        for number in itertools.count(1):
            raw, size = _line(file)
            if not size:
                return
            end += size
            item = Item(None, {**shared}, f"line {number} of {name}", number, end)
            try:
                line = _decoded(raw, item.place).strip("\r\n")
            except InputError as error:
                yield item.failed(error)
                continue
            if not line.strip():
                continue
            if not kind and (kind := "json" if _is_json(line) else "text") == "text" and keep:
                raise _no_fields(name)
            if first and kind == "json" and _begins_list(task, line):
                raise UsageError(_one_a_line(form, item.place))
            first = False
            yield _line_item(task, line, kind, keep, item)


def _line(file: BinaryIO) -> tuple[bytes, int]:
    """The next line and its length; of one that is too long only the beginning."""
    raw = rest = file.readline(MAX_LINE_BYTES + 1)
    size = len(raw)
    while size > MAX_LINE_BYTES and not rest.endswith(b"\n") and (rest := file.readline(MAX_LINE_BYTES)):
        size += len(rest)
    return raw, size


def _line_item(task: str, line: str, kind: str, keep: Sequence[str], item: Item) -> Item:
    """Fill in what a line holds, or what is wrong with it."""
    form, place = FORMS[task], item.place
    kept: dict[str, Any] = {}
    try:
        value = line if kind == "text" else _parsed(line, place)
        if isinstance(value, list) and not _is_conversation(task, value):
            raise InputError(f"{place} is a list, expected one input; give each item a line of its own")
        fields = {**value} if isinstance(value, dict) else {form.text: value}
        for name in keep:
            if name not in fields:
                raise InputError(f"{place} has no field {name!r}, which --keep-field names; give it one")
            kept[name] = _kept(name, fields[name] if name in form.fields else fields.pop(name), place)
        for name in fields:
            if name not in form.fields:
                raise InputError(f"{place}: {unknown_word(f'field of {task}', str(name), form.fields)}")
        if missing := [name for name in (form.text, *form.required) if name not in fields]:
            raise InputError(f"{place} has no {missing[0]!r}; {task} takes {shape_of(form)}")
    except InputError as error:
        return dataclasses.replace(item, kept=kept, error=error)
    value, own = split(form, fields)
    return dataclasses.replace(item, value=value, options={**item.options, **own}, kept=kept)


def _kept(name: str, value: Any, place: str) -> Any:
    try:
        to_json(value)
    except NumericalError:
        raise InputError(f"the field {name!r} of {place} holds NaN or infinity, which are no JSON to keep") from None
    return value


def _no_fields(name: str) -> UsageError:
    return UsageError(f"--keep-field names fields of JSON lines, and those of {name} are plain text; leave it out")


@contextlib.contextmanager
def _opened(source: str) -> Iterator[BinaryIO]:
    if source == "-":
        yield sys.stdin.buffer
        return
    try:
        descriptor = os.open(source, os.O_RDONLY)
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise UsageError(f"cannot read {source}: it is a folder; give a file with one input a line")
    except OSError as error:
        raise UsageError(f"cannot read {source}: {error.strerror}{near_path(source)}") from None
    with os.fdopen(descriptor, "rb") as file:
        yield file


def _decoded(raw: bytes, place: str) -> str:
    if len(raw) > MAX_LINE_BYTES:
        raise InputError(f"{place} is longer than {MAX_LINE_BYTES:,} bytes; split it")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{place} is not UTF-8 text (byte {error.start + 1}); convert the file") from None


def _is_json(line: str) -> bool:
    """Whether a first line is JSON that can only be meant as such: a number or a word in brackets may be a text."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return line.strip() == "["  # a list goes on in the next lines
    return isinstance(value, str | dict) or _is_messages(value)


def _is_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)


def _is_conversation(task: str, value: Any) -> bool:
    return task == "text-generation" and _is_messages(value)


def _begins_list(task: str, line: str) -> bool:
    """Whether a first line is a JSON list of inputs, or the beginning of one over many lines."""
    if not line.lstrip().startswith("["):
        return False
    try:
        return not _is_conversation(task, json.loads(line))
    except json.JSONDecodeError as error:
        return error.pos >= len(line.rstrip()) - 1  # the line is right as far as it goes
    except (ValueError, RecursionError):
        return False


def _one_a_line(form: Form, place: str) -> str:
    """The message for a list of inputs; its remedy leaves out what else an example for quantize has."""
    fields = ", ".join(f'"{name}"' for name in (form.text, *form.required))
    item = f"{{name: one[name] for name in ({fields})}}" if form.required else "one"
    return (
        f"{place} begins a JSON list, expected one whole input a line. This writes the items of a list so:\n"
        f"  python -c 'import json, sys; [print(json.dumps({item})) for one in json.load(sys.stdin)]' "
        "< LIST.json > LINES.jsonl\n  For plain texts, give --lines text"
    )


def _parsed(line: str, place: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise InputError(f"{place} is not JSON: {reason}. Correct it; for plain texts, give --lines text") from None
