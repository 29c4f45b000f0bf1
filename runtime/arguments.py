"""Checks of what a pipeline is given: each says what it got, what it expected and what to do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from pinnace.errors import InputError, UsageError, unknown_word

# A text, and its partner if it is one of a pair.
Pair: TypeAlias = tuple[str, str | None]


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Check that an option is a whole number of at least ``least``, or None.

    Raises:
        UsageError: it is not.
    """
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least):
        raise UsageError(f"{name} is {value!r}; expected a whole number of at least {least}, or None")


def check_replicas(value: Any) -> None:
    """Check the number of batches that run at once.

    Raises:
        UsageError: neither a whole number of at least 1 nor ``"auto"``.
    """
    if value != "auto" and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 1024):
        raise UsageError(f"replicas is {value!r}; expected a whole number of at least 1, or 'auto'")


def check_seconds(name: str, value: Any) -> None:
    """Check that an option is a number of seconds above 0, or None.

    Raises:
        UsageError: it is not.
    """
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not value > 0):
        raise UsageError(f"{name} is {value!r}; expected seconds above 0, or None")


def check_word(name: str, value: Any, choices: Iterable[str]) -> None:
    """Check that an option is one of a few words.

    Raises:
        UsageError: it is not; the text names the nearest.
    """
    if value not in (known := list(choices)):
        raise unknown_word(name, str(value), known)


def check_return_tensors(value: Any) -> None:
    """Check the option that asks for arrays in place of lists.

    Raises:
        UsageError: neither a bool nor ``"np"``.
    """
    if value not in (True, False, None, "np"):
        raise UsageError(f"return_tensors is {value!r}; expected True or 'np' for numpy arrays, or False for lists")


def check_text(item: Any, place: str, expected: str = "a text (str)") -> str:
    """Return ``item`` if it is a text.

    Raises:
        InputError: it is not.
    """
    if isinstance(item, str):
        return item
    remedy = "decode it first" if isinstance(item, bytes) else "give a text, or a list of them"
    raise InputError(f"{place} is {type(item).__name__}, expected {expected}; {remedy}")


def check_pair(item: Any, place: str) -> Pair:
    """Return a text, or a mapping of ``text`` and perhaps ``text_pair``, as a pair.

    Raises:
        InputError: anything else.
    """
    form = "a text (str) or {'text': ..., 'text_pair': ...}"
    if not isinstance(item, Mapping):
        if isinstance(item, list | tuple):
            raise InputError(f"{place} is a {type(item).__name__}, expected {form}; give a pair as such a dict")
        return check_text(item, place, form), None
    if "text" not in item or set(item) - {"text", "text_pair"}:
        raise InputError(f"{place} has the keys {sorted(map(str, item))}, expected {form}; give exactly these")
    partner = item.get("text_pair")
    text = check_text(item["text"], f"'text' of {place}")
    return text, None if partner is None else check_text(partner, f"'text_pair' of {place}")


def check_fields(item: Any, place: str, required: Sequence[str]) -> list[Any]:
    """Return the values of exactly the ``required`` keys of a mapping.

    Raises:
        InputError: not a mapping, or other keys.
    """
    form = "{" + ", ".join(f"{name!r}: ..." for name in required) + "}"
    if not isinstance(item, Mapping):
        raise InputError(f"{place} is {type(item).__name__}, expected {form}; give such a dict, or a list of them")
    if set(item) != set(required):
        raise InputError(f"{place} has the keys {sorted(map(str, item))}, expected {form}; give exactly these")
    return [item[name] for name in required]
