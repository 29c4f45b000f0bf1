"""Stopping: stop strings found across any borders, never shown in part; end tokens, lengths and the clock."""

from __future__ import annotations

import random
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinnace.errors import UsageError
from pinnace.runtime.generation.beam_generation import BeamTexts
from pinnace.runtime.generation.stopping import Deadline, RowStop, StopStrings
from pinnace.runtime.generation.streaming import RowDecoder, RowText


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
    assert watch.matched == "STOP"


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
    assert watch.matched == "." and watch.flush() == ""


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


class Words:
    """A decoder that puts spaces between words, so that the first new one has a space only behind a prompt's."""

    def __init__(self) -> None:
        self.special_token_ids = {"<end>": 9}
        self.decoded = 0

    def decode(self, ids: list[int], *_options: bool) -> str:
        self.decoded += len(ids)
        return " ".join("ab\ufffd"[i % 3] * (1 + i // 3) for i in ids if i != 9)


def test_a_special_token_and_more_is_no_stop_string() -> None:
    decode = RowDecoder(Words())  # type: ignore[arg-type]
    decode.check_stops(["<end>", "end>"])
    with pytest.raises(UsageError, match=r"'<end> a' has the special token '<end>'.*give '<end>' alone"):
        decode.check_stops(["a", "<end> a"])


def seen_alone(decode: RowDecoder, prompt: list[int], tokens: list[int], strings: list[str]) -> bool:
    """Whether a row that is no beam ends with these tokens, or before."""
    text, watch = RowText(decode, prompt), StopStrings(strings)
    for token in tokens:
        watch.feed(text.push(token))
    return watch.matched is not None or tokens[-1] == 9


def test_beams_see_the_stop_strings_that_single_rows_see() -> None:
    decode = RowDecoder(Words())  # type: ignore[arg-type]
    assert seen_alone(decode, [1], [3], [" aa"])
    assert BeamTexts([" aa"], decode, np.array([1])).ended(0, np.array([3]))
    source = random.Random(0)
    strings, prompt = [" aa b", "bb", "<end>"], [4, 9]
    for _ in range(50):
        texts = BeamTexts(strings, decode, np.array(prompt))
        beams: list[list[int]] = [[]]
        for _ in range(8):
            candidates = [[*beam, source.randrange(10)] for beam in beams for _ in range(3)]
            for one in candidates:
                assert texts.ended(0, np.array(one)) == seen_alone(decode, prompt, one, strings)
            beams = source.sample(candidates, 2)
            beams += [[source.randrange(10) for _ in beams[0]]]  # one that nobody asked about


def test_a_beams_text_is_not_decoded_anew_for_each_token() -> None:
    words = Words()
    texts = BeamTexts(["never"], RowDecoder(words), np.array([1]))  # type: ignore[arg-type]
    tokens = np.array([0, 1, 4] * 100)
    for length in range(1, len(tokens) + 1):
        assert not texts.ended(0, tokens[:length])
    assert words.decoded < 10 * len(tokens)


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
