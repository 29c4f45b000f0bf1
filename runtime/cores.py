"""Runs of all sessions of a process share its cores: those that find none free wait their turn, but not for long."""

from __future__ import annotations

import collections
import contextlib
import os
import threading
from collections.abc import Iterator
from typing import Final

from pinnace.runtime import threads

# A run that has waited so many seconds starts anyway: the queue is a courtesy, and one endless run must not be a lock.
PATIENCE: Final = 1.0


class CoreQueue:
    """So many cores, lent to runs in the order in which they ask.

    Eight callers on two cores would otherwise hold eight runs' memory at once and switch between them.

    Args:
        cores: how many; at least 1.
    """

    def __init__(self, cores: int) -> None:
        self._cores = cores
        self._free = cores
        self._line: collections.deque[object] = collections.deque()
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def lent(self, count: int, patience: float = PATIENCE) -> Iterator[None]:
        """Hold cores for the length of the block.

        Args:
            count: how many; more than there are counts as all of them.
            patience: seconds to wait for them before going on without.
        """
        wanted, ticket = min(count, self._cores), object()
        with self._changed:
            self._line.append(ticket)
            try:
                self._changed.wait_for(lambda: self._line[0] is ticket and self._free >= wanted, patience)
            finally:
                self._line.remove(ticket)
                self._free -= wanted
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._free += wanted
                self._changed.notify_all()


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
