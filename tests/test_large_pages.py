"""Weights move to large pages a moment after a session was opened: the same numbers, no more memory, never an error."""

from __future__ import annotations

import ctypes
import mmap
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinnace.runtime.engine.inputs import example_inputs
from pinnace.runtime.engine.session import load
from pinnace.runtime.machine import large_pages

RANGES = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 5)), max_size=5)
linux = pytest.mark.skipif(sys.platform != "linux", reason="madvise of Linux")


def ordered(drawn: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Make ranges that do not overlap, in order, of starts and lengths."""
    made: list[tuple[int, int]] = []
    for start, length in sorted(drawn):
        if not made or start >= made[-1][1]:
            made.append((start, start + length))
    return made


def numbers(ranges: list[tuple[int, int]]) -> set[int]:
    return {number for start, end in ranges for number in range(start, end)}


@given(RANGES, RANGES)
def test_ranges(one: list[tuple[int, int]], other: list[tuple[int, int]]) -> None:
    a, b = ordered(one), ordered(other)
    assert numbers(large_pages._without(a, b)) == numbers(a) - numbers(b)
    assert numbers(large_pages._common(a, b)) == numbers(a) & numbers(b)


def memory(size: int) -> tuple[mmap.mmap, tuple[int, int]]:
    made = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = ctypes.addressof(ctypes.c_char.from_buffer(made))
    return made, (start, start + size)


def large(place: tuple[int, int]) -> int:
    """Bytes of large pages in the mapping that begins at or before the place."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text("utf-8").splitlines():
        words = line.split()
        if "-" in words[0]:
            start, end = (int(word, 16) for word in words[0].split("-"))
            inside = start < place[1] and end > place[0]
        elif inside and words[0] == "AnonHugePages:":
            found += int(words[1]) * 1024
    return found


@linux
def test_memory_in_use_moves_and_keeps_what_it_holds() -> None:
    made, place = memory(64 << 20)
    for start in range(0, len(made), 4096):
        made[start : start + 8] = start.to_bytes(8, "little")
    before = large(place)
    moved = large_pages.move([place])
    if not moved:
        pytest.skip("this kernel moves nothing")
    assert moved >= 56 << 20
    assert large(place) >= before + moved or large(place) >= 60 << 20
    assert all(made[i : i + 8] == i.to_bytes(8, "little") for i in range(0, len(made), 4096))


@linux
def test_memory_that_was_never_used_stays_so() -> None:
    made, place = memory(1 << 30)
    made[:8] = b"12345678"
    assert large_pages.move([place]) == 0
    assert large_pages.move([(1 << 46, (1 << 46) + (64 << 20))]) == 0  # not there


def test_a_session_gives_the_same_numbers(bundle_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    done, moved = threading.Event(), []
    move = large_pages.move

    def watched(ranges: large_pages.Ranges) -> int:
        moved.append(move(ranges))
        done.set()
        return moved[0]

    monkeypatch.setattr(large_pages, "move", watched)
    monkeypatch.setattr(large_pages, "DELAY", 0.0)
    monkeypatch.setenv(large_pages.VARIABLE, "0")
    session = load(bundle_of("bert-glossary-qa"), threads=1)
    feeds = example_inputs(session.bundle.manifest, {spec.name: spec.dtype for spec in session.inputs})
    want = session.run(feeds)
    assert not any(thread.name == "pinnace-large-pages" for thread in threading.enumerate())
    monkeypatch.delenv(large_pages.VARIABLE)
    again = load(bundle_of("bert-glossary-qa"), threads=1, spin=True)
    for _ in range(3):
        for name, values in again.run(feeds).items():
            np.testing.assert_array_equal(values, want[name])
    if sys.platform == "linux":
        assert done.wait(30)
    for name, values in again.run(feeds).items():
        np.testing.assert_array_equal(values, want[name])


def test_nothing_can_go_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> str:
        raise PermissionError

    monkeypatch.setattr(Path, "read_text", refuse)
    with large_pages.for_new_memory():
        pass
    assert large_pages.move([(0, 1 << 30)]) == 0
