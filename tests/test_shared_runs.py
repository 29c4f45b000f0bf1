"""Calls under way at once share runs: right rows to right owners, in turn, within each call's limits and faults."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pinnace.errors import DeadlineExceeded, InputError, MachineError
from pinnace.runtime.batching import plan_batches
from pinnace.runtime.call_options import CallOptions
from pinnace.runtime.cancellation import Cancellation
from pinnace.runtime.pipelines import pipeline
from pinnace.runtime.shared_runs import Outputs, SharedRuns

PLAN = partial(plan_batches, token_budget=640)


class Machine:
    """Runs rows, which are numbers, and says what it ran; it stands still until it may go on."""

    def __init__(self, at_once: int = 1) -> None:
        self.shared = SharedRuns(PLAN, at_once)
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
        return self.shared.batches(rows, rows, PLAN(rows), partial(self.run, options), options, alone=alone)

    def call(self, rows: list[int], alone: bool = False, **options: Any) -> Future[list[int]]:
        """Call in a thread."""
        before, started = len(self.shared._calls), CallOptions(**options).started()

        def whole() -> list[int]:
            found = dict.fromkeys(range(len(rows)), 0)
            for places, outputs in self.parts(rows, started, alone):
                found |= dict(zip(places, outputs["twice"].tolist(), strict=True))
            return list(found.values())

        future = self._pool.submit(whole)
        wait_until(lambda: future.done() or (len(self.shared._calls) > before and self.shared._running > 0))
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
    assert (made.shared._calls, made.shared._running) == ([], 0)


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
    assert machine.shared._running == 2
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
