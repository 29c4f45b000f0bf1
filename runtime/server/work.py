"""One request's work: done in a thread, awaited in the event loop, and stopped from either side."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from pinnace.runtime.engine.cancellation import Cancellation

_END: Final = object()


class Call(Cancellation):
    """The switch that ends one request's runs, and what they have read and written so far.

    Attributes:
        tokens_in: tokens given to the model.
        tokens_out: tokens that it generated.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tokens_in = self.tokens_out = 0


class Work:
    """Runs an iterator in a thread and hands its items to the event loop. Made and read in the loop.

    Args:
        call: what ends the iterator's runs.
        items: makes the iterator; called in the thread.
        executor: lends the thread.
    """

    def __init__(self, call: Call, items: Callable[[Call], Iterator[Any]], executor: ThreadPoolExecutor) -> None:
        self.call = call
        self._loop = asyncio.get_running_loop()
        self._told: asyncio.Queue[tuple[Any, BaseException | None]] = asyncio.Queue()
        self._thread = executor.submit(self._run, items)

    async def next(self, otherwise: Any = None) -> Any:
        """Return the next item, or ``otherwise`` after the last.

        Raises:
            BaseException: what the iterator raised, or what `stop` was given.
        """
        item, error = await self._told.get()
        if error is not None:
            raise error
        return otherwise if item is _END else item

    def stop(self, error: BaseException) -> None:
        """End the work now; whoever awaits an item gets ``error``, however long the thread needs to notice."""
        self._told.put_nowait((None, error))
        self.call.cancel()

    def when_ended(self, do: Callable[[], None]) -> None:
        """Call ``do`` when the thread has done with it: now, where it has already."""
        self._thread.add_done_callback(lambda _: do())

    def _run(self, items: Callable[[Call], Iterator[Any]]) -> None:
        try:
            for item in items(self.call):
                self._tell(item, None)
            self._tell(_END, None)
        except BaseException as error:  # a library's panic too belongs to this request alone
            self._tell(None, error)

    def _tell(self, item: Any, error: BaseException | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits any more
            self._loop.call_soon_threadsafe(self._told.put_nowait, (item, error))
