"""Calls under way at once share runs: right rows to right owners, in turn, within each call's limits and faults."""

from __future__ import annotations

import gc
import linecache
import os
import random
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pinnace.errors import DeadlineExceeded, InputError, MachineError
from pinnace.runtime.engine.cancellation import Cancellation
from pinnace.runtime.pipelines.batching import plan_batches
from pinnace.runtime.pipelines.call_options import CallOptions
from pinnace.runtime.pipelines.shared_runs import Outputs, SharedRuns, _Call
from pinnace.runtime.pipelines.table import pipeline

PLAN = partial(plan_batches, token_budget=640)


class Machine:
    """Runs rows, which are numbers, and says what it ran; it stands still until it may go on."""

    def __init__(self, at_once: int = 1) -> None:
        self.shared = SharedRuns(at_once)
        self.runs: list[list[int]] = []
        self._permits = threading.Semaphore(0)
        self.bad: set[int] = set()
        self._pool = ThreadPoolExecutor(16)

    def go_on(self, runs: int = 1000) -> None:
        """Let so many runs end."""
        self._permits.release(runs)

    def run(self, options: CallOptions, rows: list[int]) -> Outputs:
        """Double the numbers."""
        left = options.seconds_left()
        self.runs.append(sorted(rows))
        if not self._permits.acquire(timeout=30 if left is None else left):
            raise DeadlineExceeded("stopped")
        if self.bad & set(rows):
            raise MachineError("too much")
        return {"twice": 2 * np.asarray(rows)}

    def parts(self, rows: list[int], options: CallOptions, alone: bool = False) -> Iterator[tuple[list[int], Outputs]]:
        """One call: the numbers are the rows' lengths too."""
        return self.shared.batches(rows, rows, PLAN(rows), partial(self.run, options), PLAN, options, alone=alone)

    def call(self, rows: list[int], alone: bool = False, **options: Any) -> Future[list[int]]:
        """Call in a thread."""
        before, started = len(self.shared._calls), CallOptions(**options).started()

        def whole() -> list[int]:
            found = dict.fromkeys(range(len(rows)), 0)
            for places, outputs in self.parts(rows, started, alone):
                found |= dict(zip(places, outputs["twice"].tolist(), strict=True))
            return list(found.values())

        future = self._pool.submit(whole)
        wait_until(lambda: future.done() or (len(self.shared._calls) > before and self.shared.running > 0))
        return future


def wait_until(true: Callable[[], bool]) -> None:
    """Wait for other threads."""
    ends = time.monotonic() + 20
    while not true():
        assert time.monotonic() < ends
        time.sleep(0.001)


@pytest.fixture
def machine() -> Iterator[Machine]:
    """A machine that goes on at the end, whatever the test has done."""
    made = Machine()
    yield made
    made.go_on()
    made._pool.shutdown()
    assert (made.shared._calls, made.shared.running) == ([], 0)


def test_what_waits_runs_together_where_it_fits(machine: Machine) -> None:
    first = machine.call([50])
    others = [machine.call(rows) for rows in ([30, 10], [12], [200], [11, 29])]
    machine.go_on()
    assert [other.result() for other in others] == [[60, 20], [24], [400], [22, 58]]
    assert first.result() == [100]
    assert machine.runs[0] == [50]
    assert sorted(machine.runs[1:]) == [[10, 11, 12], [29, 30], [200]]


def test_a_long_call_does_not_keep_others_waiting(machine: Machine) -> None:
    long = machine.call([600 + i for i in range(20)])
    short = machine.call([5])
    machine.go_on()
    assert short.result() == [10]
    assert long.result() == [2 * (600 + i) for i in range(20)]
    assert [5] in machine.runs[:3]


def test_calls_of_limited_batches_run_alone(machine: Machine) -> None:
    first = machine.call([7])
    others = [machine.call([8], alone=True), machine.call([8, 8])]
    machine.go_on()
    assert [call.result() for call in (first, *others)] == [[14], [16], [16, 16]]
    assert machine.runs == [[7], [8], [8, 8]]


def test_a_failure_is_its_owners(machine: Machine) -> None:
    machine.bad = {9}
    first = machine.call([1])
    good, bad, better = machine.call([8]), machine.call([9]), machine.call([10], timeout=1e12)
    machine.go_on()
    assert (first.result(), good.result(), better.result()) == ([2], [16], [20])
    with pytest.raises(MachineError):
        bad.result()
    assert machine.runs[:2] == [[1], [8, 9, 10]]
    assert sorted(machine.runs[2:]) == [[8], [9], [10]]
    assert machine.call([9, 4]).exception() is not None
    assert machine.call([4]).result() == [8]


def test_a_call_that_waits_ends_in_time(machine: Machine) -> None:
    switch = Cancellation()
    first = machine.call([1])
    late, cancelled = machine.call([2], timeout=0.05), machine.call([3], cancellation=switch)
    with pytest.raises(DeadlineExceeded, match="timeout of 0"):
        late.result()
    switch.cancel()
    with pytest.raises(DeadlineExceeded, match="cancelled"):
        cancelled.result()
    machine.go_on()
    assert first.result() == [2]
    assert machine.runs == [[1]]


def test_a_run_that_ends_with_its_call_gives_others_their_rows_back(machine: Machine) -> None:
    first = machine.call([1])
    limited = machine.call([2], timeout=0.3)
    other = machine.call([3])
    machine.go_on(1)
    assert first.result() == [2]
    wait_until(lambda: [2, 3] in machine.runs)
    with pytest.raises(DeadlineExceeded):
        limited.result()
    machine.go_on()
    assert other.result() == [6]
    assert machine.runs == [[1], [2, 3], [3]]


def test_rows_in_anothers_run_may_be_left_behind(machine: Machine) -> None:
    first = machine.call([1])
    runner, leaver = machine.call([2]), machine.call([3], timeout=0.3)
    machine.go_on(1)
    assert first.result() == [2]
    wait_until(lambda: [2, 3] in machine.runs)
    with pytest.raises(DeadlineExceeded):
        leaver.result()
    assert not runner.done()
    machine.go_on()
    assert runner.result() == [4]
    assert machine.call([5]).result() == [10]


def test_a_caller_may_stop_reading(machine: Machine) -> None:
    machine.go_on()
    for _, outputs in machine.parts([600, 20], CallOptions().started()):
        assert outputs["twice"].tolist() == [1200]
        break
    assert machine.call([5]).result() == [10]


def test_as_many_runs_as_the_machine_holds() -> None:
    machine = Machine(at_once=2)
    calls = [machine.call([number]) for number in (1, 2, 3, 4)]
    wait_until(lambda: len(machine.runs) == 2)
    assert sum(bool(call.taken) for call in machine.shared._calls) == 2
    machine.go_on()
    assert [call.result() for call in calls] == [[2], [4], [6], [8]]
    assert [sorted(run) for run in machine.runs[:2]] == [[1], [2]]
    machine._pool.shutdown()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_does_not_wait_for_its_parents_runs(machine: Machine) -> None:
    call = machine.call([1])
    child = os.fork()
    if child == 0:
        machine.go_on()
        parts = list(machine.parts([2], CallOptions().started()))
        os._exit(0 if parts[0][1]["twice"].tolist() == [4] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    machine.go_on()
    assert call.result() == [2]


@pytest.mark.parametrize("replicas", [1, 2])
def test_many_callers_get_what_one_gets(bundle_of: Callable[[str], Path], replicas: int) -> None:
    pipe = pipeline("token-classification", bundle_of("bert-glossary-ner"), threads=2, replicas=replicas)
    words = ["The", "galley", "met", "a", "small", "boat", "near", "the", "old", "harbour", "of", "Geneva"]
    numbers = random.Random(0)
    requests = [
        [" ".join(numbers.choices(words, k=numbers.randint(1, 40))) for _ in range(numbers.randint(1, 5))]
        for _ in range(60)
    ]
    alone = [pipe(request) for request in requests]
    options = [{}, {"timeout": 60}, {"cancellation": Cancellation()}, {"batch_size": 2}]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: pipe(requests[i], **options[i % 4]), range(len(requests))))
    for one, other in zip(alone, found, strict=True):
        assert [[(e["word"], e["start"], e["entity"]) for e in row] for row in one] == [
            [(e["word"], e["start"], e["entity"]) for e in row] for row in other
        ]
        scores = [[e["score"] for row in rows for e in row] for rows in (one, other)]
        np.testing.assert_allclose(scores[1], scores[0], atol=1e-5)
    with pytest.raises(InputError):
        pipe([1])


def interrupted_at(line: int, work: Callable[[], Any]) -> bool:
    """Press Ctrl-C at one of the lines that the sharing of runs executes, by its number; whether there are so many."""
    left = line

    def trace(frame: Any, event: str, _arg: Any) -> Any:
        nonlocal left
        code = frame.f_code
        if not code.co_filename.endswith("shared_runs.py") or code.co_name not in {"_next", "_take", "_run", "lend"}:
            return None if event == "call" and not code.co_filename.endswith("shared_runs.py") else trace
        # A signal does not come between a block's last line and the release of its lock, as this trace would.
        if event == "line" and not linecache.getline(code.co_filename, frame.f_lineno).lstrip().startswith("with "):
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def test_an_interrupted_call_leaves_its_place_to_others(machine: Machine) -> None:
    """Ctrl-C between any two lines: nothing counts as running for ever, and rows that were lent run elsewhere."""
    machine.go_on(100_000)
    line = 0
    while True:
        line += 1
        with ThreadPoolExecutor(1) as pool:
            # Another call stands in line before, with a row that may be taken along.
            other = list(machine.parts([7, 8], CallOptions().started())) if line % 2 else None
            if not interrupted_at(line, lambda: list(machine.parts([600, 3], CallOptions().started()))):
                break
            rows = pool.submit(lambda: list(machine.parts([5], CallOptions().started()))).result(timeout=20)
        assert rows[0][1]["twice"].tolist() == [10], line
        assert other is None or sum(len(places) for places, _ in other) == 2
        assert (machine.shared._calls, machine.shared.running) == ([], 0), line
    assert line > 20


def test_rows_that_an_interrupted_call_had_taken_along_run_elsewhere() -> None:
    """The call is interrupted at each step of taking another's rows."""
    shared = SharedRuns(1)
    options = CallOptions().started()
    for line in range(1, 200):
        mate = _Call([5], [5], [[0]], PLAN, False)
        shared._calls.append(mate)
        own = shared.batches([3], [3], [[0]], lambda rows: {"twice": 2 * np.asarray(rows)}, PLAN, options)
        more = interrupted_at(line, partial(next, own))
        del own  # which ends it
        assert shared.running == 0 and shared._free
        if not mate.done:
            assert (sorted(place for job in mate.jobs for place in job), mate.away) == ([0], set()), line
        shared._calls.remove(mate)
        if not more:
            break
    assert 10 < line < 199


def test_a_pipeline_is_freed_without_the_collector(bundle_of: Callable[[str], Path]) -> None:
    pipe = pipeline("token-classification", bundle_of("bert-glossary-ner"), threads=1)
    pipe("a galley")
    there: list[weakref.ref[Any]] = [weakref.ref(pipe), weakref.ref(pipe.session)]
    gc.collect()
    gc.disable()
    try:
        del pipe
        assert [one() for one in there] == [None, None]
    finally:
        gc.enable()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_that_is_forked_while_a_pipeline_opens_is_not_stuck(bundle_of: Callable[[str], Path]) -> None:
    pipe: Any = pipeline("token-classification", bundle_of("bert-glossary-ner"), threads=1)
    with pipe._lock:  # as a thread that opens it holds it
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            os._exit(0 if pipe("a galley") is not None else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_under_a_memory_limit_replicas_of_all_callers_run_no_more_at_once(
    bundle_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = bundle_of("bert-glossary-ner")
    pipe: Any = pipeline("token-classification", bundle, threads=2, replicas=2, memory_limit=2 << 30, batch_tokens=16)
    running, most, lock, run = 0, 0, threading.Lock(), pipe.session.run

    def slow(*given: Any, **options: Any) -> Any:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.02)
        with lock:
            running -= 1
        return run(*given, **options)

    monkeypatch.setattr(pipe.session, "run", slow)
    texts = [f"a galley met {i} boats near the harbour" for i in range(6)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: pipe(texts), range(4)))
    assert found[0] == found[3] and most == 2
    switch = Cancellation()
    switch.cancel()
    with pytest.raises(DeadlineExceeded):
        pipe(texts, cancellation=switch)
