"""Calls that are under way at once share runs: rows that wait join the next run where they fit."""

from __future__ import annotations

import collections
import contextlib
import itertools
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

from pinnace.runtime.call_options import CallOptions
from pinnace.runtime.scores import Array

# Rows of other calls that a run looks at: more than fill a batch, and no work to choose from.
CANDIDATES: Final = 64

Outputs: TypeAlias = Mapping[str, Array]
Part: TypeAlias = tuple[list[int], Outputs]


class SharedRuns:
    """Runs the rows of many calls: each call in its own thread, and in each run rows of all calls that wait.

    Short rows of eight callers cost little more than those of one, since a run has costs of its own. A row's result
    does not depend on its mates, and where a run of several calls fails, each runs its rows anew by itself.

    Args:
        plan: groups rows of these lengths into batches.
        at_once: how many runs may be under way.
    """

    def __init__(self, plan: Callable[[list[int]], list[list[int]]], at_once: int) -> None:
        self._plan = plan
        self.at_once = at_once
        self.begin()
        _ALL.add(self)

    def begin(self) -> None:
        """Forget all calls, as in a forked child, which has none of its parent's threads."""
        self._lock = threading.Lock()
        self._calls: list[_Call] = []  # whose turn is next comes first
        self._running = 0
        self._rows_running = 0

    @property
    def waiting(self) -> int:
        """Rows that wait for a run."""
        with self._lock:
            return sum(len(job) for call in self._calls for job in call.jobs)

    @property
    def running(self) -> int:
        """Rows of the runs under way."""
        return self._rows_running

    def batches(
        self,
        rows: Sequence[Any],
        lengths: Sequence[int],
        jobs: list[list[int]],
        run: Callable[[list[Any]], Outputs],
        options: CallOptions,
        *,
        alone: bool = False,
    ) -> Iterator[Part]:
        """Run a call's rows.

        Args:
            rows: what ``run`` takes, one for each row of the graph's batch.
            lengths: tokens of each.
            jobs: their places in batches, the longest row of each first: how the call would run by itself.
            run: makes the outputs of rows, within the call's limits.
            options: the call's options, their clock running.
            alone: share no run with other calls.

        Yields:
            Places in ``rows`` and the outputs of these rows, padded at the right.

        Raises:
            DeadlineExceeded: the call's timeout has passed, or it was cancelled.
            PinnaceError: as ``run``.
        """
        call = _Call(rows, lengths, jobs, alone)
        with self._lock:
            self._calls.append(call)
        try:
            while (part := self._next(call, run, options)) is not None:
                yield part
        finally:
            with self._lock:
                self._calls.remove(call)
                self._wake()

    def _next(self, call: _Call, run: Callable[[list[Any]], Outputs], options: CallOptions) -> Part | None:
        """Return a part that is done, after a run in this thread or in another's; None when all were returned."""
        while True:
            with self._lock:
                call.waits = False
                if call.done:
                    self._wake()
                    return call.done.popleft()
                if not call.jobs and not call.away:
                    return None
                taken = self._take(call)
                if taken is None:
                    call.waits = True
                    call.woken.clear()
            if taken is None:
                call.wait(options)
            else:
                self._run(call, taken, run)

    def _take(self, call: _Call) -> list[tuple[_Call, int]] | None:
        """Take the rows of this call's next run, its own and others'; None while it is not its turn."""
        ahead = itertools.takewhile(lambda other: other is not call, self._calls)
        if not call.jobs or self._running >= self.at_once or any(other.wants_turn for other in ahead):
            return None
        own = [(call, place) for place in call.jobs.popleft()]
        mates = [] if call.alone else [mate for mate in self._calls if mate is not call and not mate.alone]
        others = ((mate, place) for mate in mates for job in mate.jobs for place in job)
        candidates = own + list(itertools.islice(others, CANDIDATES))
        if len(candidates) > len(own):
            batches = self._plan([owner.lengths[place] for owner, place in candidates])
            chosen = set(next(batch for batch in batches if 0 in batch))
            if left := [place for i, (_, place) in enumerate(own) if i not in chosen]:
                call.jobs.appendleft(left)
            candidates = [candidate for i, candidate in enumerate(candidates) if i in chosen]
        for owner, place in candidates:
            if owner is not call:
                owner.lend(place)
        self._running += 1
        self._rows_running += len(candidates)
        self._calls.remove(call)
        self._calls.append(call)
        self._wake()
        return candidates

    def _run(self, call: _Call, taken: list[tuple[_Call, int]], run: Callable[[list[Any]], Outputs]) -> None:
        """Run rows, and hand the outputs to their owners, or the rows back to them."""
        places: dict[_Call, list[int]] = collections.defaultdict(list)
        lines: dict[_Call, list[int]] = collections.defaultdict(list)  # of the batch
        for line, (owner, place) in enumerate(taken):
            places[owner].append(place)
            lines[owner].append(line)
        parts: dict[_Call, Outputs] = {}
        try:
            outputs = run([owner.rows[place] for owner, place in taken])
            parts = {call: outputs} if len(lines) == 1 else {owner: _lines(outputs, at) for owner, at in lines.items()}
        except Exception:
            if len(lines) == 1:
                raise
        finally:
            with self._lock:
                self._running -= 1
                self._rows_running -= len(taken)
                for owner, those in places.items():
                    if owner is not call:
                        owner.away -= len(those)
                    if owner in parts:
                        owner.done.append((those, parts[owner]))
                    else:
                        owner.alone = True
                        owner.jobs.appendleft(those)
                    owner.woken.set()
                self._wake()

    def _wake(self) -> None:
        """Wake the call whose turn it is."""
        if self._running < self.at_once:
            for call in self._calls:
                if call.wants_turn:
                    call.woken.set()
                    break


class _Call:
    """One call's rows: those that wait for a run, those in a run of another call, and the outputs of those that ran."""

    def __init__(self, rows: Sequence[Any], lengths: Sequence[int], jobs: list[list[int]], alone: bool) -> None:
        self.rows = rows
        self.lengths = lengths
        self.jobs = collections.deque(jobs)
        self.alone = alone
        self.away = 0
        self.done: collections.deque[Part] = collections.deque()
        self.waits = False
        self.woken = threading.Event()

    @property
    def wants_turn(self) -> bool:
        """Whether its thread waits to run its rows."""
        return self.waits and bool(self.jobs)

    def lend(self, place: int) -> None:
        """Give a row that waits to a run of another call."""
        jobs = [[one for one in job if one != place] for job in self.jobs]
        self.jobs = collections.deque(job for job in jobs if job)
        self.away += 1

    def wait(self, options: CallOptions) -> None:
        """Wait until something has changed, within the call's limits."""
        switch = options.cancellation
        with contextlib.nullcontext() if switch is None else switch.watching(self):
            left = options.seconds_left()
            self.woken.wait(None if left is None else min(left, threading.TIMEOUT_MAX))
        options.seconds_left()

    @property
    def terminate(self) -> bool:
        """Whether the wait is over. The cancellation sets it, as it sets that of ``RunOptions``."""
        return self.woken.is_set()

    @terminate.setter
    def terminate(self, _value: bool) -> None:
        self.woken.set()


def _lines(outputs: Outputs, lines: list[int]) -> Outputs:
    return {name: values[lines] for name, values in outputs.items()}


_ALL: Final[weakref.WeakSet[SharedRuns]] = weakref.WeakSet()


def _after_fork() -> None:
    for shared in list(_ALL):
        shared.begin()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
