"""How the flags of ``pinnace bench`` and ``pinnace compare`` are read: lists, times, shares, names with paths."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from pinnace.errors import UsageError

MIXED: Final = "mixed"
_UNITS: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


def as_words(_flag: str, value: str) -> Any:
    """Read ``a,b,c``."""
    return tuple(word.strip() for word in value.split(",") if word.strip())


def as_counts(flag: str, value: str) -> Any:
    """Read ``1,2,8``: whole numbers of at least 1.

    Raises:
        UsageError: it has another form.
    """
    words = as_words(flag, value)
    if not words or not all(re.fullmatch(r"\d{1,9}", word, re.ASCII) and int(word) for word in words):
        raise UsageError(f"{flag} is {value!r}; expected whole numbers of at least 1, such as 1,2,8")
    return tuple(int(word) for word in words)


def as_lengths(flag: str, value: str) -> Any:
    """Read ``32,128`` or ``mixed``.

    Raises:
        UsageError: it has another form.
    """
    return (MIXED,) if value == MIXED else as_counts(flag, value)


def as_seconds(flag: str, value: str) -> Any:
    """Read ``100ms`` or ``0.5s``.

    Raises:
        UsageError: it has another form, or is not above zero.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(us|ms|s)", value, re.ASCII)
    if match is None or float(match[1]) <= 0:
        raise UsageError(f"{flag} is {value!r}; expected a time with its unit, such as 100ms or 0.5s")
    return float(match[1]) * _UNITS[match[2]]


def as_pairs(flag: str, value: str) -> Any:
    """Read ``NAME=PATH,...``.

    Raises:
        UsageError: it has another form.
    """
    pairs = [word.partition("=") for word in as_words(flag, value)]
    if not pairs or not all(name and equals and path for name, equals, path in pairs):
        raise UsageError(f"{flag} is {value!r}; expected NAME=PATH, such as transformers=peers/bin/python")
    return {name: str(Path(path).expanduser()) for name, _, path in pairs}
