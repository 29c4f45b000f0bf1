"""Checks of what a pipeline is given: each says what it got, what it expected and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from pinnace.errors import InputError, UsageError, unknown_word


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Check that an option is a whole number of at least ``least``, or None.

    Raises:
        UsageError: it is not.
    """
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least):
        raise UsageError(f"{name} is {value!r}; expected a whole number of at least {least}, or None")


def check_flag(name: str, value: Any) -> None:
    """Check that an option is true or false, for every text is true, ``"no"`` among them.

    Raises:
        UsageError: it is not.
    """
    if not isinstance(value, bool | np.bool_):
        raise UsageError(f"{name} is {value!r}; expected True or False (true or false on the command line and in JSON)")


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
