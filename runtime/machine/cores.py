"""Runs of all sessions of a process share its cores: those that find none free wait their turn, but not for long."""

from __future__ import annotations

import collections
import contextlib
import os
import threading
from collections.abc import Iterator
from typing import Final

from pinnace.runtime.machine import threads

# A run that has waited so many seconds starts anyway: the queue is a courtesy, and one endless run must not be a lock.
PATIENCE: Final = 1.0


class _Place:
    """A place in the line: the cores that its run wants, and whether they are lent."""

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self.turn = threading.Event()


class CoreQueue:
    """So many cores, lent to runs in the order in which they ask.

    Eight callers on two cores would otherwise hold eight runs' memory at once and switch between them.

    Args:
        cores: how many; at least 1.
    """

    def __init__(self, cores: int) -> None:
        self._cores = cores
        self._free = cores
        self._line: collections.deque[_Place] = collections.deque()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def lent(self, count: int, patience: float = PATIENCE) -> Iterator[None]:
        """Hold cores for the length of the block.

        Args:
            count: how many; more than there are counts as all of them.
            patience: seconds to wait for them before going on without.
        """
        place = _Place(min(count, self._cores))
        with self._lock:
            self._line.append(place)
            self._admit()
        try:
            if not place.turn.wait(patience):
                with self._lock:
                    if not place.turn.is_set():
                        self._line.remove(place)
                        self._lend(place)
            yield
        finally:
            with self._lock:
                if place.turn.is_set():
                    self._free += place.wanted
                else:  # interrupted while it waited
                    self._line.remove(place)
                self._admit()

    def _admit(self) -> None:
        """Wake those whose turn it is, and nobody else: a thread that wakes for nothing takes a core from a run."""
        while self._line and self._free >= self._line[0].wanted:
            self._lend(self._line.popleft())

    def _lend(self, place: _Place) -> None:
        self._free -= place.wanted
        place.turn.set()


_queue: CoreQueue | None = None
_making: threading.Lock = threading.Lock()


def queue() -> CoreQueue:
    """Return the queue of this process, with as many cores as it is granted."""
    global _queue
    with _making:
        if _queue is None:
            _queue = CoreQueue(threads.granted_cores())
        return _queue


def _after_fork() -> None:
    global _queue, _making
    _queue, _making = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
