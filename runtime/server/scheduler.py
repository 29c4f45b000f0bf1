"""Continuous batching for many requests: a thread steps the running rows; others enter and leave between steps."""

from __future__ import annotations

import collections
import queue
import threading
from collections.abc import Iterable, Sequence
from typing import Final

from pinnace.errors import InputError, PinnaceError
from pinnace.runtime.cancellation import CANCELLED, RunLimit
from pinnace.runtime.decoder import Decoder, Stopped
from pinnace.runtime.generation_row import Row, Token
from pinnace.runtime.slots import Slots

# What a request reads: a token of one of its rows, the error that ended them, or None once they have been taken out.
Told = Token | BaseException | None


class Scheduler:
    """Runs the rows of many requests together, each exactly as it is alone.

    A row that is no longer wanted leaves at once: the step under way is stopped, which changes nothing, and done again
    without it. Where a step fails, the request that came last gets the error, and the others go on without it.

    Args:
        decoder: the model.
        slots: most rows that run together; others wait for their turn.
    """

    def __init__(self, decoder: Decoder, slots: int) -> None:
        self._decoder = decoder
        self._most: Final = slots
        self._limit = _StepLimit()
        self._slots = Slots(decoder, self._limit)
        self._lock = threading.Lock()
        self._come = threading.Condition(self._lock)
        self._waiting: collections.deque[Row] = collections.deque()
        self._owners: dict[Row, Rows] = {}  # of waiting and running rows
        self._running: dict[Row, None] = {}  # in the order of their entering
        self._leaving: list[Rows] = []
        self._alone = 0  # so many requests enter each by itself, since together they failed
        threading.Thread(target=self._work, name="pinnace-scheduler", daemon=True).start()

    @property
    def waiting(self) -> int:
        """Rows that wait for a slot."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Rows that generate now."""
        return len(self._running)

    def submit(self, rows: Sequence[Row]) -> Rows:
        """Let new rows enter when there is room."""
        made = Rows(self, rows)
        with self._lock:
            for row in rows:
                self._owners[row] = made
            self._waiting.extend(rows)
            self._come.notify()
        return made

    def leave(self, rows: Rows) -> None:
        """Take a request's rows out; it is told so with None, after the tokens that they got before."""
        with self._lock:
            if not rows.open or rows in self._leaving:
                return
            self._leaving.append(rows)
            if rows.entered:
                self._limit.interrupt()
            self._come.notify()

    def _work(self) -> None:
        while True:
            with self._come:
                while not (self._waiting or self._running or self._leaving):
                    self._come.wait()
            self._limit.reset()
            self._let_leave()
            try:
                self._let_enter()
                self._step()
            except Stopped:
                continue
            except BaseException as error:  # a library's panic must not end the thread that all requests need
                self._slots = Slots(self._decoder, self._limit)
                self._fail(dict.fromkeys(self._owners[row] for row in self._running), error, entered=False)

    def _let_leave(self) -> None:
        with self._lock:
            leaving, self._leaving = self._leaving, []
        for rows in leaving:
            if rows.open:
                self._forget(rows, entered=True)
                rows.told.put(None)

    def _let_enter(self) -> None:
        while rows := self._next():
            owners = dict.fromkeys(self._owners[row] for row in rows)
            try:
                tokens = list(self._slots.enter(rows))
            except Stopped:
                self._put_back(rows)
                raise
            except PinnaceError as error:  # none of them has entered
                if len(owners) == 1:
                    self._fail(owners, error, entered=False)
                else:
                    self._put_back(rows)
                    self._alone = len(owners)
                continue
            self._tell(rows, tokens)

    def _step(self) -> None:
        if not self._running:
            return
        try:
            tokens = list(self._slots.step())
        except PinnaceError as error:  # all rows are as before
            self._fail([self._owners[next(reversed(self._running))]], error, entered=True)
            return
        self._tell(self._slots.rows, tokens)

    def _next(self) -> list[Row]:
        """Take the rows that enter now from those that wait: as many as there are slots and memory for."""
        with self._lock:
            taken: list[Row] = []
            while self._waiting and len(self._running) < self._most:
                row = self._waiting[0]
                if taken and self._alone and self._owners[row] is not self._owners[taken[-1]]:
                    break
                if not self._fits(row):
                    break
                taken.append(self._waiting.popleft())
                self._running[row] = None
                self._owners[row].entered = True
            self._alone = max(0, self._alone - 1)
            return taken

    def _fits(self, row: Row) -> bool:
        """Whether the memory has room for one row more; the first was judged when its request was read."""
        if not self._running:
            return True
        longest = max(len(one.prompt) + one.limit for one in (row, *self._running))
        try:
            self._decoder.check_memory(len(self._running) + 1, longest)
        except InputError:
            return False
        return True

    def _put_back(self, rows: Sequence[Row]) -> None:
        with self._lock:
            for row in reversed(rows):
                del self._running[row]
                self._waiting.appendleft(row)

    def _tell(self, rows: Iterable[Row], tokens: Iterable[Token]) -> None:
        for row, token in zip(rows, tokens, strict=True):
            owner = self._owners[row]
            if token.reason is not None:
                with self._lock:
                    del self._running[row], self._owners[row]
                    owner.open -= 1
            owner.told.put(token)

    def _fail(self, owners: Iterable[Rows], error: BaseException, *, entered: bool) -> None:
        for owner in list(owners):
            self._forget(owner, entered=entered)
            owner.told.put(error)

    def _forget(self, rows: Rows, *, entered: bool) -> None:
        """Take a request's rows out of all lists, and those that have ``entered`` out of the batch."""
        with self._lock:
            for row in rows.rows:
                if self._owners.pop(row, None) is None:
                    continue
                if row not in self._running:
                    self._waiting.remove(row)
                    continue
                del self._running[row]
                if entered:
                    self._slots.leave(row)
            rows.open = 0


class Rows:
    """The rows of one request; they take the place of ``RunOptions`` where a limit ends their generation.

    Attributes:
        rows: the rows.
        told: what comes of them.
        open: how many have not ended.
        entered: whether any of them runs, or has run.
    """

    def __init__(self, scheduler: Scheduler, rows: Sequence[Row]) -> None:
        self.rows = rows
        self.told: queue.SimpleQueue[Told] = queue.SimpleQueue()
        self.open = len(rows)
        self.entered = False
        self._scheduler = scheduler

    @property
    def terminate(self) -> bool:
        """Whether all have ended."""
        return not self.open

    @terminate.setter
    def terminate(self, _value: bool) -> None:
        self._scheduler.leave(self)


class _StepLimit(RunLimit):
    """The limit of all steps: it stops the one under way, again and again."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._interrupted = False

    def interrupt(self) -> None:
        """Stop the step under way, or the next one at its start."""
        with self._lock:
            self._interrupted = self.options.terminate = True

    def reset(self) -> None:
        """Let steps run again."""
        with self._lock:
            self._interrupted = self.options.terminate = False

    def reason(self) -> str | None:
        """Why the step must end now, None while it may go on."""
        return CANCELLED if self._interrupted else None
