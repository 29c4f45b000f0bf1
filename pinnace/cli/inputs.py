"""Inputs of ``pinnace run``: which fields a task takes, from flags for one input, from lines for many."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import stat
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

from pinnace.errors import InputError, UsageError, nearest_word, unknown_word
from pinnace.forms import FORMS, Form

MAX_LINE_BYTES: Final = 64 << 20
LINES: Final = ("auto", "json", "text")
_FORMAT_OF_SUFFIX: Final[Mapping[str, str]] = {".jsonl": "json", ".ndjson": "json", ".json": "json", ".txt": "text"}


# Field -> the flag that gives it, where the two are not spelled alike.
_FLAG_OF_FIELD: Final[Mapping[str, str]] = {"documents": "document", "choices": "choice"}
INPUT_FIELDS: Final = tuple(dict.fromkeys(field for form in FORMS.values() for field in form.fields if field != "text"))


@dataclasses.dataclass(frozen=True)
class Item:
    """One input as its pipeline takes it, and where it came from."""

    value: Any
    options: dict[str, Any]
    place: str
    end: int = 0  # bytes of the file up to the end of its line


def flag_of(field: str) -> str:
    """The flag, without dashes, that gives a field."""
    return _FLAG_OF_FIELD.get(field, field.replace("_", "-"))


def one_input(task: str, text: str | None, given: Mapping[str, Any], *, lines: bool = False) -> Item | None:
    """Make an input of TEXT and flags.

    Args:
        task: the task's full name.
        text: TEXT, None where it was not given.
        given: field -> what its flag said, None where it was not given.
        lines: whether lines of inputs are given too.

    Returns:
        the input; None where neither TEXT nor a field was given.

    Raises:
        UsageError: a flag that the task does not take, or one that it needs and that is not there; an empty text; an
            input beside lines.
    """
    form = FORMS[task]
    fields = {field: value for field, value in given.items() if value is not None}
    _refuse_foreign(task, form, fields)
    if lines and (text is not None or set(fields) - {form.option}):
        raise UsageError("both one input (TEXT or flags) and lines (--input) are given; give one of them")
    _refuse_empty({"TEXT": text, **{f"--{flag_of(field)}": value for field, value in fields.items()}})
    if text is not None:
        if form.text in fields:
            raise UsageError(f"the {form.text} is given twice, as TEXT and as --{flag_of(form.text)}; give one of them")
        fields = {form.text: text, **fields}
    if not set(fields) - {form.option}:
        return None
    if missing := [name for name in (form.text, *form.required) if name not in fields]:
        shown = "TEXT" if missing[0] == form.text else f"--{flag_of(missing[0])}"
        raise UsageError(f"{task} needs {shown}.\n  for example: pinnace run BUNDLE {form.example}")
    return _item(form, fields, {}, "the input")


def shared_options(task: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of every call that an input's flag gives, such as the labels of zero-shot classification."""
    option = FORMS[task].option
    return {option: given[option]} if option and given.get(option) is not None else {}


def read_labels(flag: str, said: str) -> list[str]:
    """Read labels from ``a,b,c``, or one a line from ``@FILE``.

    Args:
        flag: the flag, without dashes, for the message.
        said: what the user gave.

    Raises:
        UsageError: no such file, or no label in it.
    """
    if not said.startswith("@"):
        labels = said.split(",")
    else:
        path = Path(said[1:]).expanduser()
        try:
            labels = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise UsageError(f"cannot read the labels' file {path}: {reason}") from None
    found = [label.strip() for label in labels if label.strip()]
    if not found:
        raise UsageError(f"--{flag} {said!r} holds no label; expected a,b,c or @FILE with one label a line")
    return found


def items_of_lines(task: str, source: str, lines: str, shared: Mapping[str, Any]) -> Iterator[Item]:
    """Read inputs from a file or standard input (``-``), one a line, as they are asked for.

    Args:
        task: the task's full name.
        source: path, or ``-``.
        lines: ``"json"``, ``"text"`` or ``"auto"``: by the file's ending, else by the first line.
        shared: options of every call.

    Raises:
        UsageError: no such file.
        InputError: a line that is no input of this task; the text has its number.
    """
    form = FORMS[task]
    name = "standard input" if source == "-" else source
    kind = lines if lines != "auto" else _FORMAT_OF_SUFFIX.get(Path(source).suffix.lower(), "")
    with _opened(source) as file:
        number = end = 0
        first = True
        while raw := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            end += len(raw)
            place = f"line {number} of {name}"
            if len(raw) > MAX_LINE_BYTES:
                raise InputError(f"{place} is longer than {MAX_LINE_BYTES:,} bytes; split it")
            line = _decoded(raw, place).strip("\r\n")
            if not line.strip():
                continue
            kind = kind or ("json" if _is_json(line) else "text")
            if first and kind == "json" and _begins_list(task, line):
                raise InputError(_one_a_line(form, place))
            first = False
            value = line if kind == "text" else _parsed(line, place)
            yield dataclasses.replace(_line_item(task, form, value, shared, place), end=end)


def _line_item(task: str, form: Form, value: Any, shared: Mapping[str, Any], place: str) -> Item:
    if isinstance(value, list) and not _is_conversation(task, value):
        raise InputError(f"{place} is a list, expected one input; give each item a line of its own")
    fields = value if isinstance(value, dict) else {form.text: value}
    for name in fields:
        if name not in form.fields:
            raise InputError(f"{place}: {unknown_word(f'field of {task}', str(name), form.fields)}")
    if missing := [name for name in (form.text, *form.required) if name not in fields]:
        raise InputError(f"{place} has no {missing[0]!r}; {task} takes {_shape(form)}")
    return _item(form, fields, shared, place)


def _item(form: Form, fields: Mapping[str, Any], shared: Mapping[str, Any], place: str) -> Item:
    own = {form.option: fields[form.option]} if form.option in fields else {}
    inputs = {name: value for name, value in fields.items() if name != form.option}
    alone = len(inputs) == 1
    return Item(inputs[form.text] if alone else inputs, {**shared, **own}, place)


def _refuse_empty(said: Mapping[str, Any]) -> None:
    """Refuse an empty text, which is what an unset variable of a shell leaves."""
    for name, value in said.items():
        if "" in (value if isinstance(value, list) else [value]):
            raise UsageError(f"{name} is empty; expected a text. If an empty one is meant, give it in a line of JSON")


def _refuse_foreign(task: str, form: Form, fields: Mapping[str, Any]) -> None:
    for field in fields:
        if field not in form.fields:
            flags = ", ".join(f"--{flag_of(name)}" for name in form.fields if name != "text")
            raise UsageError(f"--{flag_of(field)} does not belong to {task}, which takes TEXT{flags and f', {flags}'}")


def _shape(form: Form) -> str:
    optional = [f'"{name}" (may be left out)' for name in form.optional]
    return "{" + ", ".join([*(f'"{name}": ...' for name in (form.text, *form.required)), *optional]) + "}"


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


def near_path(path: str) -> str:
    """A hint at the name beside ``path`` that is most like it; empty where none is."""
    parent = Path(path).expanduser().absolute().parent
    try:
        names: Sequence[str] = sorted(entry.name for entry in parent.iterdir())
    except OSError:
        return ""
    near = nearest_word(Path(path).name, names, 0.6)
    return f". Did you mean {Path(path).parent / near}?" if near and near != Path(path).name else ""


def _decoded(raw: bytes, place: str) -> str:
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
        raise InputError(f"{place} is not JSON: {reason}. Mend it; for plain texts, give --lines text") from None
