"""Inputs of ``pinnace run``: which fields a task takes, one input made of flags, and options of a call."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pinnace.errors import PinnaceError, UsageError, nearest_word
from pinnace.forms import FORMS, Form

# Python's words are understood beside JSON's.
_PYTHON_WORDS: Final = {"None": None, "True": True, "False": False}
# Field -> the flag that gives it, where the two are not spelled alike.
_FLAG_OF_FIELD: Final[Mapping[str, str]] = {"documents": "document", "choices": "choice"}
INPUT_FIELDS: Final = tuple(dict.fromkeys(field for form in FORMS.values() for field in form.fields if field != "text"))


@dataclasses.dataclass(frozen=True)
class Item:
    """One input as its pipeline takes it, and where it came from.

    Attributes:
        value: what the pipeline takes; nothing where the line is wrong.
        options: of its call.
        place: where it stands, for messages.
        line: number of its line, from 1; 0 where it has none.
        end: bytes of the file up to the end of its line.
        kept: fields of its line that its answer shall hold.
        error: why it cannot be answered, None where nothing is known against it.
    """

    value: Any
    options: dict[str, Any]
    place: str
    line: int = 0
    end: int = 0
    kept: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    error: PinnaceError | None = None

    def failed(self, error: PinnaceError) -> Item:
        """This item, with why it cannot be answered."""
        return dataclasses.replace(self, error=error)


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
    value, own = split(form, fields)
    return Item(value, own, "the input")


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


def read_options(said: list[str] | tuple[str, ...]) -> dict[str, Any]:
    """Read ``name=value`` pairs (the value as JSON where it is JSON, else a text) and JSON objects.

    Raises:
        UsageError: another form.
    """
    options: dict[str, Any] = {}
    for pair in said:
        if pair.lstrip().startswith("{"):
            try:
                options |= json.loads(pair)
            except (ValueError, RecursionError) as error:
                raise UsageError(f"--option {pair!r} is not JSON: {error}") from None
            continue
        name, equals, value = pair.partition("=")
        if not equals or not name.strip():
            raise UsageError(f"--option is {pair!r}; expected name=value, such as top_k=3")
        options[name.strip().replace("-", "_")] = _value(value)
    return options


def _value(text: str) -> Any:
    if text in _PYTHON_WORDS:
        return _PYTHON_WORDS[text]
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def split(form: Form, fields: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """What the pipeline takes as its input, and what as an option of the call."""
    own = {form.option: fields[form.option]} if form.option in fields else {}
    inputs = {name: value for name, value in fields.items() if name != form.option}
    return inputs[form.text] if len(inputs) == 1 else inputs, own


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


def shape_of(form: Form) -> str:
    optional = [f'"{name}" (may be left out)' for name in form.optional]
    return "{" + ", ".join([*(f'"{name}": ...' for name in (form.text, *form.required)), *optional]) + "}"


def near_path(path: str) -> str:
    """A hint at the name beside ``path`` that is most like it; empty where none is."""
    parent = Path(path).expanduser().absolute().parent
    try:
        names: Sequence[str] = sorted(entry.name for entry in parent.iterdir())
    except OSError:
        return ""
    near = nearest_word(Path(path).name, names, 0.6)
    return f". Did you mean {Path(path).parent / near}?" if near and near != Path(path).name else ""
