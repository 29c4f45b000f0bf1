"""Stopping work that is under way: by the user, from any thread, or because its time is over."""

from __future__ import annotations

import contextlib
import threading
import time
import types
from collections.abc import Iterator
from typing import Any, Final

from pinnace.errors import DeadlineExceeded, UsageError
from pinnace.runtime.engine.ort import onnxruntime

CANCELLED: Final = "cancelled"
TIME: Final = "time"


class Cancellation:
    """A switch that ends calls: at the next operator of the graph. Any thread may use it; it does not go back.

    A generation returns what it has; every other call fails with `DeadlineExceeded`.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a signal's handler may cancel in the thread that holds it
        self._cancelled = False
        self._runs: list[Any] = []

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled

    def cancel(self) -> None:
        """End every call that was given this switch."""
        with self._lock:
            self._cancelled = True
            for options in self._runs:
                options.terminate = True

    def watch(self, options: Any) -> None:
        """Stop the runs of these ``RunOptions`` when cancelled."""
        with self._lock:
            self._runs.append(options)
            if self._cancelled:
                options.terminate = True

    def forget(self, options: Any) -> None:
        """Let go of ``RunOptions`` that were watched."""
        with self._lock:
            self._runs = [run for run in self._runs if run is not options]

    @contextlib.contextmanager
    def watching(self, options: Any) -> Iterator[None]:
        """Stop the runs of these ``RunOptions`` when cancelled, for the length of the block."""
        self.watch(options)
        try:
            yield
        finally:
            self.forget(options)

    def check(self) -> None:
        """Go on only if not cancelled.

        Raises:
            DeadlineExceeded: `cancel` was called.
        """
        if self._cancelled:
            raise DeadlineExceeded("the call was cancelled")


def check_cancellation(value: Any) -> None:
    """Check that an option is a switch, or None.

    Raises:
        UsageError: it is not.
    """
    if value is not None and not isinstance(value, Cancellation):
        raise UsageError(f"cancellation is {value!r}; expected a pinnace Cancellation, or None")


class RunLimit:
    """The limits of one call: a context that holds the ``RunOptions`` of all its runs.

    One timer serves the whole call, for starting one for each token would cost more than the token's own Python.

    Args:
        cancellation: the user's switch, if there is one.
        max_time: seconds after which the call ends in order, with what it has so far.
        timeout: seconds after which the call fails.

    Raises:
        UsageError: the switch is none.
    """

    def __init__(
        self, cancellation: Cancellation | None = None, max_time: float | None = None, timeout: float | None = None
    ) -> None:
        check_cancellation(cancellation)
        self.options: Any = onnxruntime.RunOptions()
        # No graph capture. Unsaid, it is looked for at every run, and not finding it takes 60 us.
        self.options.add_run_config_entry("gpu_graph_id", "-1")
        self._cancellation = cancellation
        now = time.monotonic()
        self._timeout = timeout
        self._ends = None if max_time is None else now + max_time
        self._fails = None if timeout is None else now + timeout
        self._first = 0.0
        self._over = False
        self._timer: threading.Timer | None = None
        self._others: list[Any] = []

    def __enter__(self) -> RunLimit:
        if self._cancellation is not None:
            self._cancellation.watch(self.options)
        first = min((moment for moment in (self._ends, self._fails) if moment is not None), default=None)
        if first is not None:
            self._first = first
            wait = min(max(first - time.monotonic(), 0.0), threading.TIMEOUT_MAX)
            self._timer = threading.Timer(wait, self._stop)
            self._timer.daemon = True
            self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._cancellation is not None:
            self._cancellation.forget(self.options)

    @contextlib.contextmanager
    def stopping(self, other: Any) -> Iterator[None]:
        """Set ``terminate`` of something else too when the call must end, for the length of the block."""
        self._others.append(other)
        if self._over:  # the timer may have looked before it was there
            other.terminate = True
        watching = contextlib.nullcontext() if self._cancellation is None else self._cancellation.watching(other)
        try:
            with watching:
                yield
        finally:
            self._others = [kept for kept in self._others if kept is not other]

    def reason(self) -> str | None:
        """Return why the call must end now, None while it may go on.

        Raises:
            DeadlineExceeded: the time after which it fails is over.
        """
        if self._cancellation is not None and self._cancellation.cancelled:
            return CANCELLED
        # The timer may fire a moment before the clock says so, and then it is right: it has stopped the run.
        now = max(time.monotonic(), self._first) if self._over else time.monotonic()
        if self._fails is not None and now >= self._fails:
            raise DeadlineExceeded(
                f"the generation was stopped after its timeout of {self._timeout:g} s. Allow more time, or ask for "
                "fewer tokens; with max_time it ends in order and keeps what it has"
            )
        return TIME if self._ends is not None and now >= self._ends else None

    def _stop(self) -> None:
        self._over = True
        for stopped in (self.options, *self._others):
            stopped.terminate = True
