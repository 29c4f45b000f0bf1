"""Encoders' requests at work together: answered as alone, and stopped only where nobody waits any more."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pinnace.errors import DeadlineExceeded, InputError
from pinnace.runtime.pipelines import pipeline
from pinnace.runtime.server.batcher import Batcher
from pinnace.runtime.server.work import Call
from tests.conftest import same
from tests.serving import PATIENCE


class Gate:
    """Holds a pipeline's first call until it is opened, and counts the inputs of each."""

    def __init__(self, pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        self.reached, self.opened = threading.Event(), threading.Event()
        answer = type(pipe).answer

        def watched(given: Any, items: Any, options: Any) -> Any:
            self.sizes.append(len(items))
            self.reached.set()
            assert self.opened.wait(PATIENCE)
            options.seconds_left()
            return answer(given, items, options)

        monkeypatch.setattr(type(pipe), "answer", watched)


def behind(batcher: Batcher, count: int) -> None:
    while batcher.waiting < count:
        time.sleep(0.005)


def test_what_waits_is_answered_together_and_as_alone(
    bundle_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = pipeline("fill-mask", bundle_of("tiny-mlm"), threads=1)
    texts = [f"the {'plant ' * i}[MASK]" for i in range(6)]
    want = [pipe(text) for text in texts]
    two = pipe(texts[0], top_k=2)
    gate, batcher = Gate(pipe, monkeypatch), Batcher(pipe)

    def ask(call: Call, *given: str, **options: Any) -> list[Any]:
        return batcher.answer(call, [pipe.check_input(one, "the input") for one in given], pipe._read_options(options))

    calls = [Call() for _ in range(9)]
    with ThreadPoolExecutor(9) as pool:
        first = pool.submit(ask, calls[0], texts[0])
        assert gate.reached.wait(PATIENCE)
        asked: list[tuple[list[str], dict[str, Any]]] = [
            ([texts[1]], {}), (texts[2:4], {}), ([texts[0]], {"top_k": 2}), (["no place"], {}), ([texts[4]], {}),
        ]  # fmt: skip
        rest, come = [], 0
        for call, (given, options) in zip(calls[1:], asked, strict=False):
            rest.append(pool.submit(ask, call, *given, **options))
            behind(batcher, come := come + len(given))
        gone = pool.submit(ask, calls[6], texts[5])
        behind(batcher, come + 1)
        calls[6].cancel()
        with pytest.raises(DeadlineExceeded, match="cancelled"):
            gone.result(PATIENCE)
        gate.opened.set()
        assert same(first.result(PATIENCE), [want[0]])
        assert same(rest[0].result(PATIENCE), [want[1]]) and same(rest[1].result(PATIENCE), want[2:4])
        assert same(rest[2].result(PATIENCE), [two]) and same(rest[4].result(PATIENCE), [want[4]])
        with pytest.raises(InputError, match=r"\[MASK\]") as alone:
            rest[3].result(PATIENCE)
    with pytest.raises(InputError) as said:
        pipe("no place")
    assert str(alone.value) == str(said.value)
    # One; then all with equal options, which fail together and are answered each by itself; then the other options.
    assert gate.sizes[:7] == [1, 5, 1, 2, 1, 1, 1]
    assert batcher.waiting == 0 and calls[1].tokens_in > 0


def test_a_run_ends_when_nobody_waits_for_it(bundle_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = pipeline("embed", bundle_of("tiny-embed"), threads=1)
    want = pipe("good")
    gate, batcher = Gate(pipe, monkeypatch), Batcher(pipe)
    calls = [Call() for _ in range(4)]
    options = pipe._read_options({})
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(batcher.answer, calls[0], ["first"], options)]
        assert gate.reached.wait(PATIENCE)
        for count in (1, 2):
            asked.append(pool.submit(batcher.answer, calls[count], ["good"], options))
            behind(batcher, count)
        calls[0].cancel()  # the only one of its run
        with pytest.raises(DeadlineExceeded):
            asked[0].result(PATIENCE)
        gate.opened.set()
        calls[1].cancel()  # its mate goes on
        with contextlib.suppress(DeadlineExceeded):
            asked[1].result(PATIENCE)
        assert same(asked[2].result(PATIENCE), [want])
