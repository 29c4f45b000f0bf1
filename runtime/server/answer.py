"""An answer's JSON: written in short parts, so that other requests go on meanwhile, and bounded while it is written."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from pinnace.json_text import to_json
from pinnace.runtime.server.failures import Refused

MAX_ANSWER_BYTES: Final = 64 << 20
# An answer that is no longer is written at once: a thread for it would take longer.
_SHORT_BYTES: Final = 64 << 10
# Numbers of one part. Python's writer lets no other thread run before it has done what it was given.
_PART_ITEMS: Final = 1024
_CONTAINERS: Final = (dict, list, tuple, np.ndarray)


async def write_answer(content: Any) -> bytes:
    """Write an answer as `to_json` does, in UTF-8; in a thread where it is long.

    Raises:
        NumericalError: it holds NaN or infinity.
        Refused: 413, it is larger than `MAX_ANSWER_BYTES`. No more than these are made of it.
    """
    unwanted = threading.Event()
    parts = json_parts(content)
    begun = _take(parts, _SHORT_BYTES, unwanted)
    if len(begun) <= _SHORT_BYTES:
        return begun
    try:
        rest = await asyncio.to_thread(_take, parts, MAX_ANSWER_BYTES - len(begun), unwanted)
    finally:
        unwanted.set()  # where nobody waits any more, the thread ends too
    if len(begun) + len(rest) > MAX_ANSWER_BYTES:
        raise Refused(
            413,
            f"the answer is larger than {MAX_ANSWER_BYTES:,} bytes; ask for less at a time",
            code="answer_too_large",
        )
    return begun + rest


def json_parts(value: Any) -> Iterator[str]:
    """Yield the JSON that `to_json` makes, in parts.

    Raises:
        NumericalError: a number is NaN or infinite.
    """
    if isinstance(value, dict) and not _is_flat(value.values()) and all(isinstance(key, str) for key in value):
        before = "{"
        for key, inside in value.items():
            yield f"{before}{to_json(key)}: "
            yield from json_parts(inside)
            before = ", "
        yield "}"
    elif isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim):
        yield "["
        for start in range(0, len(value), _PART_ITEMS):
            yield ", " if start else ""
            yield from _items(value[start : start + _PART_ITEMS])
        yield "]"
    else:
        yield to_json(value)


def _items(values: Any) -> Iterator[str]:
    """Yield the inside of a list."""
    if _is_flat(values):
        yield to_json(values)[1:-1]
        return
    before = ""
    for inside in values:
        yield before
        yield from json_parts(inside)
        before = ", "


def _is_flat(values: Any) -> bool:
    if isinstance(values, np.ndarray):
        return values.ndim == 1
    return not any(isinstance(inside, _CONTAINERS) for inside in values)


def _take(parts: Iterator[str], most: int, unwanted: threading.Event) -> bytes:
    """Join parts until they are all there, are more than ``most`` bytes, or are not wanted any more."""
    taken = bytearray()
    for part in parts:
        taken += part.encode()
        if len(taken) > most or unwanted.is_set():
            break
    return bytes(taken)
