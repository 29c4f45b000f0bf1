"""Stopping: stop strings found across any borders, never shown in part; end tokens, lengths and the clock."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinnace.runtime.generation.stopping import Deadline, RowStop, StopStrings


def run(strings: list[str], pieces: list[str]) -> tuple[str, StopStrings]:
    watch = StopStrings(strings)
    shown = ""
    for piece in pieces:
        shown += watch.feed(piece)
    if watch.matched is None:
        shown += watch.flush()
    return shown, watch


@pytest.mark.parametrize(
    "pieces", [["one STOP two"], ["one S", "TOP two"], list("one STOP two"), ["one STO", "P", "x"]]
)
def test_a_stop_string_is_found_across_borders(pieces: list[str]) -> None:
    shown, watch = run(["STOP"], pieces)
    assert shown == "one "
    assert (watch.matched, watch.start, watch.end) == ("STOP", 4, 8)


def test_the_start_of_a_stop_string_is_held_back_and_let_go() -> None:
    watch = StopStrings(["\n\nUser:"])
    assert watch.feed("Hi\n") == "Hi"
    assert watch.feed("\n") == ""
    assert watch.feed("Us") == ""
    assert watch.feed("ual") == "\n\nUsual"
    assert watch.feed("\n") == ""
    assert watch.flush() == "\n"
    assert watch.flush() == ""


def test_a_start_within_a_failed_start() -> None:
    """In "aab", the second a may begin the match that the first one does not."""
    assert run(["ab"], list("xaab!"))[0] == "xa"
    assert run(["aabaac"], list("aabaabaac"))[0] == "aab"


def test_of_several_matches_the_first_and_then_the_longest_counts() -> None:
    assert run(["b", "ab"], ["xab"])[1].matched == "ab"
    assert run(["a", "ab"], ["xab"])[1].matched == "ab"
    assert run(["c", "b"], ["abc"])[1].matched == "b"


def test_nothing_follows_a_match() -> None:
    watch = StopStrings(["."])
    assert watch.feed("a.b") == "a"
    assert watch.feed("c.d") == ""
    assert (watch.start, watch.end) == (1, 2)


def test_without_stop_strings_all_text_passes_at_once() -> None:
    watch = StopStrings([])
    assert watch.feed("abc") == "abc"
    assert watch.flush() == ""


@given(
    st.text("ab", max_size=40), st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3), st.randoms()
)
def test_any_cutting_shows_what_stands_before_the_first_match(
    text: str, strings: list[str], source: random.Random
) -> None:
    pieces, rest = [], text
    while rest:
        size = source.randint(1, 5)
        pieces.append(rest[:size])
        rest = rest[size:]
    # The match that is completed first, as a stream sees it: piece by piece, then by place.
    seen = ""
    expected = text
    for piece in pieces:
        seen += piece
        places = [seen.find(string) for string in strings if string in seen]
        if places:
            expected = text[: min(places)]
            break
    shown, watch = run(strings, pieces)
    assert shown == expected
    assert (watch.matched is None) == (expected == text and not any(string in text for string in strings))


def test_reasons_in_their_order() -> None:
    stop = RowStop([2, 9], 5, StopStrings(["x"]))
    assert stop.check(1, 1) is None
    assert stop.check(9, 5) == "eos"
    assert stop.check(1, 5) == "length"
    stop.strings.feed("axb")
    assert stop.check(1, 5) == "stop_string"
    assert stop.check(2, 1) == "eos"


def test_the_clock() -> None:
    assert not Deadline(None).passed
    assert not Deadline(60).passed
    deadline = Deadline(0.01)
    stop = RowStop([], 100, deadline=deadline)
    assert stop.check(1, 1) is None or deadline.passed
    time.sleep(0.02)
    assert stop.check(1, 2) == "time"
    assert stop.check(1, 100) == "length"


def test_a_clock_that_jumps_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    deadline = Deadline(60)
    monkeypatch.setattr(time, "time", lambda: 4e9)
    assert not deadline.passed
