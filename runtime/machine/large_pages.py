"""Packed weights on large pages: a decoder's step reads them all, and looks up fewer pages.

ONNX Runtime packs weights into ordinary memory: pages of 4 kB, wherever large ones must be asked for (Linux's usual
default). Linux 6.1 and newer can move what lies there to pages of 2 MB, which changes nothing else.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

VARIABLE: Final = "PINNACE_LARGE_PAGES"
# A process that only answers once has ended by then, and has not paid for it.
DELAY: Final = 1.0
LEAST: Final = 8 << 20  # bytes of a session's weights that are worth it
_PAGE: Final = 2 << 20
# So much is moved at once, and then as long nothing: it takes at most half a core from what runs beside.
_PIECE: Final = 8 << 20
_COLLAPSE: Final = 25  # MADV_COLLAPSE
_RESIDENT: Final = 0.9  # of a mapping, so that no memory is made for what was never used

Ranges: TypeAlias = list[tuple[int, int]]


@contextlib.contextmanager
def for_new_memory() -> Iterator[None]:
    """Move to large pages, a moment later and in a thread, what large memory is new at the end of the block.

    Does nothing where there is no Linux, where ``PINNACE_LARGE_PAGES=0`` says so, or where nothing large is new.
    """
    if sys.platform != "linux" or os.environ.get(VARIABLE) == "0":
        yield
        return
    before = _mapped()
    yield
    new = _without(_mapped(), before)
    if sum(end - start for start, end in new) >= LEAST:
        timer = threading.Timer(DELAY, move, [new])
        timer.name, timer.daemon = "pinnace-large-pages", True
        timer.start()


def move(ranges: Ranges) -> int:
    """Move memory to large pages, as far as it is still there and in use. Never an error.

    Args:
        ranges: first and last address of each part.

    Returns:
        Bytes that lie on large pages now.
    """
    moved = 0
    with contextlib.suppress(OSError, AttributeError, ValueError):
        advise: Any = ctypes.CDLL(None).madvise
        advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        for first, last in _common(ranges, _mapped(resident=True)):
            for start in range(-(-first // _PAGE) * _PAGE, last // _PAGE * _PAGE, _PIECE):
                size = min(_PIECE, last // _PAGE * _PAGE - start)
                begun = time.monotonic()
                if advise(start, size, _COLLAPSE) == 0:
                    moved += size
                elif not moved:
                    return 0  # an older kernel, or one that is not allowed to
                time.sleep(time.monotonic() - begun)
    return moved


def _mapped(*, resident: bool = False) -> Ranges:
    """The process's own writable memory that no file backs; of ``resident`` mappings nearly all is in use."""
    found: Ranges = []
    own = False
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/smaps" if resident else "/proc/self/maps").read_text("utf-8").splitlines():
            words = line.split()
            if "-" in words[0]:  # addresses, rights, offset, device, inode, and what lies there if it has a name
                own = words[1] == "rw-p" and words[5:] in ([], ["[heap]"])
                if own:
                    start, end = (int(word, 16) for word in words[0].split("-"))
                    found.append((start, end))
            elif own and words[0] == "Rss:" and int(words[1]) * 1024 < _RESIDENT * (found[-1][1] - found[-1][0]):
                found.pop()
    return found


def _without(ranges: Sequence[tuple[int, int]], others: Sequence[tuple[int, int]]) -> Ranges:
    """What of the ranges is in none of the others; both in order."""
    left: Ranges = []
    for first, last in ranges:
        for start, end in others:
            if start < last and end > first:
                if start > first:
                    left.append((first, start))
                first = max(first, min(end, last))
        if last > first:
            left.append((first, last))
    return left


def _common(ranges: Sequence[tuple[int, int]], others: Sequence[tuple[int, int]]) -> Ranges:
    """What both have."""
    both = ((max(a, c), min(b, d)) for a, b in ranges for c, d in others)
    return [(start, end) for start, end in both if end > start]
