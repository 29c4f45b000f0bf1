"""Room in memory for so many runs at once: where the memory is limited, calls wait for each other's runs."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Final

from pinnace.runtime.pipelines.call_options import CallOptions

_GLANCE: Final = 0.05  # seconds between two looks at the timeout and the switch of a call that waits


class Room:
    """Room in memory for so many runs at once, whoever calls.

    Args:
        runs: how many.
    """

    def __init__(self, runs: int) -> None:
        self._free = threading.BoundedSemaphore(runs)

    @contextlib.contextmanager
    def taken(self, options: CallOptions) -> Iterator[None]:
        """Hold the room of one run for the length of the block.

        Raises:
            DeadlineExceeded: the call's timeout passed while it waited, or it was cancelled.
        """
        while not self._free.acquire(timeout=_GLANCE):
            options.seconds_left()
        try:
            yield
        finally:
            self._free.release()
