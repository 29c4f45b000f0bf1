"""Calls that are under way at once share runs: rows that wait join the next run where they fit."""

from __future__ import annotations

import collections
import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

from pinnace.arrays import Array
from pinnace.runtime.machine.forks import renew_in_children
from pinnace.runtime.pipelines.call_options import CallOptions

# Rows of other calls that a run looks at: more than fill a batch, and no work to choose from.
CANDIDATES: Final = 64

Outputs: TypeAlias = Mapping[str, Array]
Part: TypeAlias = tuple[list[int], Outputs]
Plan: TypeAlias = Callable[[list[int]], list[list[int]]]


class SharedRuns:
    """Runs the rows of many calls: each call in its own thread, and in each run rows of all calls that wait.

    Short rows of eight callers cost little more than those of one, since a run has costs of its own. A row's result
    does not depend on its mates, and where a run of several calls fails, each runs its rows anew by itself.

    Args:
        at_once: how many runs may be under way.
    """

    def __init__(self, at_once: int) -> None:
        self.at_once = at_once
        self.renew()
        renew_in_children(self)

    def renew(self) -> None:
        """Forget all calls, as in a forked child, which has none of its parent's threads."""
        self._lock = threading.Lock()
        self._calls: list[_Call] = []  # whose turn is next comes first

    @property
    def waiting(self) -> int:
        """Rows that wait for a run."""
        with self._lock:
            return sum(len(job) for call in self._calls for job in call.jobs)

    @property
    def running(self) -> int:
        """Rows of the runs under way."""
        with self._lock:
            return sum(len(call.taken) for call in self._calls)

    def batches(
        self,
        rows: Sequence[Any],
        lengths: Sequence[int],
        jobs: list[list[int]],
        run: Callable[[list[Any]], Outputs],
        plan: Plan,
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
            plan: groups rows of these lengths into batches.
            options: the call's options, their clock running.
            alone: share no run with other calls.

        Yields:
            Places in ``rows`` and the outputs of these rows, padded at the right.

        Raises:
            DeadlineExceeded: the call's timeout has passed, or it was cancelled.
            PinnaceError: as ``run``.
        """
        call = _Call(rows, lengths, jobs, plan, alone)
        with self._lock:
            self._calls.append(call)
        try:
            while (part := self._next(call, run, options)) is not None:
                yield part
        finally:
            # Ctrl-C may have come anywhere above, between any two of its steps.
            with self._lock:
                self._settle(call, {})
                self._calls = [other for other in self._calls if other is not call]
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
                self._take(call)
                if not call.taken:
                    call.waits = True
                    call.woken.clear()
            if call.taken:
                self._run(call, run)
            else:
                call.wait(options)

    @property
    def _free(self) -> bool:
        """Whether another run may begin."""
        return sum(bool(call.taken) for call in self._calls) < self.at_once

    def _take(self, call: _Call) -> None:
        """Take the rows of this call's next run, its own and others'; none while it is not its turn."""
        ahead = itertools.takewhile(lambda other: other is not call, self._calls)
        if not call.jobs or not self._free or any(other.wants_turn for other in ahead):
            return
        own = [(call, place) for place in call.jobs.popleft()]
        mates = [] if call.alone else [mate for mate in self._calls if mate is not call and not mate.alone]
        others = ((mate, place) for mate in mates for job in mate.jobs for place in job)
        candidates = own + list(itertools.islice(others, CANDIDATES))
        if len(candidates) > len(own):
            batches = call.plan([owner.lengths[place] for owner, place in candidates])
            chosen = set(next(batch for batch in batches if 0 in batch))
            if left := [place for i, (_, place) in enumerate(own) if i not in chosen]:
                call.jobs.appendleft(left)
            candidates = [candidate for i, candidate in enumerate(candidates) if i in chosen]
        call.taken = candidates
        for owner, place in candidates:
            if owner is not call:
                owner.lend(place)
        self._calls = [*(other for other in self._calls if other is not call), call]
        self._wake()

    def _run(self, call: _Call, run: Callable[[list[Any]], Outputs]) -> None:
        """Run the rows that were taken, and hand the outputs to their owners, or the rows back to them."""
        lines: dict[_Call, list[int]] = collections.defaultdict(list)  # of the batch
        for line, (owner, _) in enumerate(call.taken):
            lines[owner].append(line)
        parts: dict[_Call, Outputs] = {}
        try:
            outputs = run([owner.rows[place] for owner, place in call.taken])
            parts = {call: outputs} if len(lines) == 1 else {owner: _lines(outputs, at) for owner, at in lines.items()}
        except Exception:
            if len(lines) == 1:
                raise
        finally:
            with self._lock:
                self._settle(call, parts)
                self._wake()

    def _settle(self, call: _Call, parts: Mapping[_Call, Outputs]) -> None:
        """Hand the outputs of a call's run to the owners of its rows, or the rows back; once more changes nothing."""
        places: dict[_Call, list[int]] = collections.defaultdict(list)
        for owner, place in call.taken:
            if owner is call or place in owner.away:
                places[owner].append(place)
        for owner, those in places.items():
            if owner in parts:
                owner.done.append((those, parts[owner]))
            else:
                owner.take_back(those)
            owner.away.difference_update(those)
            owner.woken.set()
        call.taken = []

    def _wake(self) -> None:
        """Wake the call whose turn it is."""
        if self._free:
            for call in self._calls:
                if call.wants_turn:
                    call.woken.set()
                    break


class _Call:
    """One call's rows: those that wait for a run, those in a run of another call, and the outputs of those that ran.

    Attributes:
        taken: the rows of its run under way, its own and others', each with its owner.
        away: its rows in runs of others.
    """

    def __init__(
        self, rows: Sequence[Any], lengths: Sequence[int], jobs: list[list[int]], plan: Plan, alone: bool
    ) -> None:
        self.rows = rows
        self.lengths = lengths
        self.jobs = collections.deque(jobs)
        self.plan = plan
        self.alone = alone
        self.taken: list[tuple[_Call, int]] = []
        self.away: set[int] = set()
        self.done: collections.deque[Part] = collections.deque()
        self.waits = False
        self.woken = threading.Event()

    @property
    def wants_turn(self) -> bool:
        """Whether its thread waits to run its rows."""
        return self.waits and bool(self.jobs)

    def lend(self, place: int) -> None:
        """Give a row that waits to a run of another call."""
        self.away.add(place)
        jobs = [[one for one in job if one != place] for job in self.jobs]
        self.jobs = collections.deque(job for job in jobs if job)

    def take_back(self, places: list[int]) -> None:
        """Have rows wait again, for runs of their own; of those that were not lent to the end some still wait."""
        self.alone = True
        waiting = {place for job in self.jobs for place in job}
        if back := [place for place in places if place not in waiting]:
            self.jobs.appendleft(back)

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
