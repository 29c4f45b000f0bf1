"""A stream of inputs in pieces, each small enough to be worked on as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any


def pieces(items: Iterable[Any], most: int, characters: int) -> Iterator[list[Any]]:
    """Cut a stream of checked inputs into lists, each ended by its number of inputs or of characters.

    Where the stream fails, the inputs before the failure are given first, and then the failure is raised.

    Args:
        items: texts, or anything made of texts; read as the pieces are asked for.
        most: most inputs of a piece.
        characters: a piece that has as many is full.

    Raises:
        Exception: what the stream raised.
    """
    stream = iter(items)
    failed: list[Exception] = []
    while not failed:
        if piece := _piece(stream, most, characters, failed):
            yield piece
        elif not failed:
            return
    raise failed[0]


def _piece(stream: Iterator[Any], most: int, characters: int, failed: list[Exception]) -> list[Any]:
    """The next piece, empty at the end; what the stream raises is put into ``failed``."""
    piece: list[Any] = []
    size = 0
    try:
        for item in stream:
            piece.append(item)
            size += _characters(item)
            if len(piece) >= most or size >= characters:
                break
    except Exception as error:
        failed.append(error)
    return piece


def _characters(item: Any) -> int:
    if isinstance(item, str):
        return len(item)
    if isinstance(item, Mapping):
        return sum(map(_characters, item.values()))
    return sum(map(_characters, item)) if isinstance(item, list | tuple) else 0
