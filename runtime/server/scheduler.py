"""Continuous batching for many requests: a thread steps the running rows; others enter and leave between steps."""

from __future__ import annotations

import collections
import queue
import threading
from collections.abc import Iterable, Sequence
from typing import Final

from pinnace.errors import InputError, MachineError, PinnaceError
from pinnace.runtime.engine.cancellation import CANCELLED, RunLimit
from pinnace.runtime.generation.decoder import Decoder, Stopped
from pinnace.runtime.generation.row import Row, Token
from pinnace.runtime.generation.slots import Reading, Slots

# What a request reads: a token of one of its rows, the error that ended them, or None once they have been taken out.
Told = Token | BaseException | None
# Prompts are read by so many tokens at once, one long or several short ones, and the rows that run step between.
PROMPT_PIECE: Final = 128


class Scheduler:
    """Runs the rows of many requests together, each exactly as it is alone.

    Prompts are read in pieces, and the rows that run make a step after each. A row that is no longer wanted leaves
    at once: the run under way is stopped, which changes nothing, and done again without it. Where a step fails, the
    request that came last gets the error, and the others go on without it.

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
        self._reading: Reading | None = None  # rows whose prompt is being read; they count as running
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
                self._read()
                self._step()
            except Stopped:
                continue
            except BaseException as error:  # a library's panic must not end the thread that all requests need
                self._slots, self._reading = Slots(self._decoder, self._limit), None
                self._fail(dict.fromkeys(self._owners[row] for row in self._running), error)

    def _let_leave(self) -> None:
        with self._lock:
            leaving, self._leaving = self._leaving, []
        for rows in leaving:
            if rows.open:
                self._forget(rows)
                rows.told.put(None)

    def _let_enter(self) -> None:
        rows = self._next()
        if not rows:
            return
        try:
            tokens = list(self._slots.enter(rows))
        except Stopped:
            self._put_back(rows)
            raise
        except PinnaceError as error:  # none of them has entered
            owners = dict.fromkeys(self._owners[row] for row in rows)
            if len(owners) == 1:
                self._fail(owners, error)
            else:
                self._put_back(rows)
                self._alone = len(owners)
            return
        self._tell(rows, tokens)

    def _read(self) -> None:
        """Read a piece of the long prompt that is under way; its rows enter behind its end."""
        rows = self._reading.rows if self._reading is not None else self._long()
        if not rows:
            return
        try:
            reading = self._reading = self._reading or Reading(self._decoder, rows, self._limit)
            logits = reading.read(PROMPT_PIECE)
            if logits is None:
                return
            tokens = list(self._slots.admit(reading, logits))
        except PinnaceError as error:
            self._reading = None
            self._fail([self._owners[rows[0]]], error)
            return
        self._reading = None
        self._tell(rows, tokens)

    def _long(self) -> Sequence[Row]:
        """Take the rows of a long prompt whose turn has come: of one request, and with the same prompt."""
        with self._lock:
            taken: list[Row] = []
            while (row := self._first()) is not None and self._reads_in_pieces(row):
                if taken and (row.prompt is not taken[0].prompt or self._owners[row] is not self._owners[taken[0]]):
                    break
                self._take(taken)
            return taken

    def _step(self) -> None:
        try:
            tokens = list(self._slots.step())
        except PinnaceError as error:  # all rows are as before
            last = next(row for row in reversed(self._running) if row in self._slots.rows)
            self._fail([self._owners[last]], error)
            return
        self._tell(self._slots.rows, tokens)

    def _next(self) -> list[Row]:
        """Take the rows that enter now from those that wait: as many as there are slots, memory and tokens for."""
        with self._lock:
            taken: list[Row] = []
            tokens = 0
            while (row := self._first()) is not None and not self._reads_in_pieces(row):
                if not taken or row.prompt is not taken[-1].prompt:  # rows with the same prompt share one run of it
                    tokens += len(row.prompt)
                apart = self._alone and taken and self._owners[row] is not self._owners[taken[-1]]
                if apart or (taken and tokens > PROMPT_PIECE):
                    break
                self._take(taken)
            if taken:
                self._alone = max(0, self._alone - 1)
            return taken

    def _first(self) -> Row | None:
        """The row that has waited longest, where a slot and the memory have room for it."""
        if self._waiting and len(self._running) < self._most and self._fits(self._waiting[0]):
            return self._waiting[0]
        return None

    def _reads_in_pieces(self, row: Row) -> bool:
        return len(row.prompt) > PROMPT_PIECE and self._decoder.splits(len(row.prompt))

    def _take(self, taken: list[Row]) -> None:
        row = self._waiting.popleft()
        taken.append(row)
        self._running[row] = None
        self._owners[row].entered = True

    def _fits(self, row: Row) -> bool:
        """Whether the memory has room for one row more; the first was judged when its request was read."""
        if not self._running:
            return True
        together = (row, *self._running)
        longest = max(len(one.prompt) + one.limit for one in together)
        try:
            self._decoder.check_memory(len(together), longest, max(len(one.prompt) for one in together))
        except (InputError, MachineError):
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

    def _fail(self, owners: Iterable[Rows], error: BaseException) -> None:
        for owner in list(owners):
            self._forget(owner)
            owner.told.put(error)

    def _forget(self, rows: Rows) -> None:
        """Take a request's rows out of all lists, of the batch, and of the prompt that is being read."""
        with self._lock:
            for row in rows.rows:
                if self._owners.pop(row, None) is None:
                    continue
                if row not in self._running:
                    self._waiting.remove(row)
                    continue
                del self._running[row]
                if row in self._slots.rows:
                    self._slots.leave(row)
                elif self._reading is not None and row in self._reading.rows:
                    self._reading = None
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
