"""How the flags of ``pinnace bench`` and ``pinnace compare`` are read: lists, times, shares, names with paths."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Final

from pinnace.cli.flags import as_share
from pinnace.errors import UsageError

MIXED: Final = "mixed"
_UNITS: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


def as_words(flag: str, value: str) -> Any:
    """Read ``a,b,c``; a word counts once.

    Raises:
        UsageError: there is no word.
    """
    words = _words(value)
    if not words:
        raise UsageError(f"{flag} is {value!r}; expected at least one word, or several such as a,b")
    return words


def as_counts(flag: str, value: str) -> Any:
    """Read ``1,2,8``: whole numbers of at least 1, each once.

    Raises:
        UsageError: it has another form.
    """
    words = _words(value)
    if not words or not all(re.fullmatch(r"\d{1,9}", word, re.ASCII) and int(word) for word in words):
        raise UsageError(f"{flag} is {value!r}; expected whole numbers of at least 1, such as 1,2,8")
    return tuple(dict.fromkeys(map(int, words)))


def as_seed(flag: str, value: str) -> Any:
    """Read a whole number of at least 0.

    Raises:
        UsageError: it is not one.
    """
    if not re.fullmatch(r"\d{1,9}", value, re.ASCII):
        raise UsageError(f"{flag} is {value!r}; expected a whole number of at least 0")
    return int(value)


def as_lengths(flag: str, value: str) -> Any:
    """Read ``32,128`` or ``mixed``.

    Raises:
        UsageError: it has another form.
    """
    return (MIXED,) if value == MIXED else as_counts(flag, value)


def as_seconds(flag: str, value: str) -> Any:
    """Read ``100ms`` or ``0.5s``; a number without a unit counts seconds.

    Raises:
        UsageError: it has another form, or is not above zero.
    """
    return _time(flag, value, "s", "a time such as 100ms or 0.5s; a bare number counts seconds")


def as_time(flag: str, value: str) -> Any:
    """Read ``100ms`` or ``0.5s``; the unit is needed.

    Raises:
        UsageError: it has another form, or is not above zero.
    """
    return _time(flag, value, "", "a time with its unit, such as 100ms or 0.5s")


def as_percentile(flag: str, value: str) -> Any:
    """Read a share that is neither none nor all, ``99%`` or ``0.99``.

    Raises:
        UsageError: it has another form, or is not between 0 and 1.
    """
    share = as_share(flag, value)
    if not 0 < share < 1:
        raise UsageError(f"{flag} is {value!r}; expected a share between 0 and 1, such as 99% or 0.99")
    return share


def as_pairs(flag: str, value: str) -> Any:
    """Read ``NAME=PATH,...``.

    A path becomes absolute, for a program is started in another folder; its links are kept, since Python finds its
    environment by the link that it is started through. A name without a folder is looked up as shells do.

    Raises:
        UsageError: it has another form.
    """
    pairs = [word.partition("=") for word in _words(value)]
    if not pairs or not all(name and equals and path for name, equals, path in pairs):
        raise UsageError(f"{flag} is {value!r}; expected NAME=PATH, such as transformers=peers/bin/python")
    return {name: _placed(path) for name, _, path in pairs}


def _time(flag: str, value: str, unit: str, expected: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(us|ms|s)?", value, re.ASCII)
    scale = _UNITS.get(match[2] or unit) if match else None
    if match is None or scale is None or float(match[1]) <= 0:
        raise UsageError(f"{flag} is {value!r}; expected {expected}")
    return float(match[1]) * scale


def _words(value: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word.strip() for word in value.split(",") if word.strip()))


def _placed(path: str) -> str:
    expanded = Path(path).expanduser()
    return str(expanded.absolute() if os.sep in path else expanded)
