"""One request and its answer: read, admitted, worked on, sent, counted and logged."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

from starlette.requests import ClientDisconnect, Request
from starlette.types import Send

from pinnace.errors import DeadlineExceeded
from pinnace.runtime.server.answer import write_answer
from pinnace.runtime.server.body import parse_object, read_body
from pinnace.runtime.server.failures import ClientGone, Refused
from pinnace.runtime.server.models import Model, find_model
from pinnace.runtime.server.work import Call, Work

if TYPE_CHECKING:
    from pinnace.runtime.server.app import Service

_END: Final = object()
# A long answer goes out in such pieces, each when its reader has taken most of those before.
_PIECE_BYTES: Final = 64 << 10


class Exchange:
    """One request.

    Args:
        service: who answers.
        request: as it came.
        send: sends the answer.

    Attributes:
        model: the model that it is for; None before that is known.
        status: the status of the answer, 0 before there is one.
        begun: whether the answer is under way, so that its status cannot change any more.
    """

    def __init__(self, service: Service, request: Request, send: Send) -> None:
        self.service, self.request = service, request
        self.model: Model | None = None
        self.status = 0
        self.begun = False
        self._send = send
        self._started = time.monotonic()
        self._work: Work | None = None
        self._clock: asyncio.Timeout | None = None
        self._stopped: Exception | None = None
        self._sent = False

    @property
    def seconds(self) -> float:
        """Seconds since the request came."""
        return time.monotonic() - self._started

    @property
    def call(self) -> Call:
        """The switch and the counts of its work; one without counts where there is none."""
        return Call() if self._work is None else self._work.call

    async def read(self) -> dict[str, Any]:
        """Read the request's JSON.

        Raises:
            Refused: as `read_body` and `parse_object`; 408 where it does not come in time; what `stop` was given.
            ClientGone: the client closed its connection.
        """
        most = self.service.settings.max_request_bytes
        try:
            async with self._in_time(
                lambda: Refused(408, "the body did not come in time", headers={"Connection": "close"})
            ):
                body = await read_body(self.request.headers, self.request.stream(), most)
        except ClientDisconnect:
            raise ClientGone from None
        return parse_object(body)

    def choose(self, name: Any, task: str | None = None) -> Model:
        """Find the model; arguments and errors are those of `find_model`."""
        self.model = find_model(self.service.models, name, task)
        return self.model

    async def items(self, work: Callable[[Any, Call], Iterator[Any]]) -> AsyncGenerator[Any, None]:
        """Do the work in a thread and yield what it yields.

        It ends when the client goes away, the request's time is over or the service ends.

        Args:
            work: called in a thread with the pipeline and the request's `Call`.

        Raises:
            Refused: the model takes no more requests, or the service ends.
            ClientGone: the client closed its connection.
            DeadlineExceeded: the time is over.
            BaseException: what the work raised.
        """
        if self.model is None:
            raise RuntimeError("a model is chosen before there is work for it")
        model, timeout = self.model, self.service.settings.timeout
        model.admit()
        done = self._work = Work(Call(), lambda call: work(model.view(call), call), model.executor)
        loop = asyncio.get_running_loop()
        clock = loop.call_later(max(0.0, timeout - self.seconds), done.stop, self._late())
        watching = asyncio.create_task(self._watch(done))
        try:
            while (item := await done.next(_END)) is not _END:
                yield item
        finally:
            done.call.cancel()  # nothing where it has ended
            clock.cancel()
            watching.cancel()

    async def result(self, work: Callable[[Any, Call], Any]) -> Any:
        """Do the work in a thread and return what it returns; arguments and errors are those of `items`."""
        async with contextlib.aclosing(self.items(lambda pipe, call: iter([work(pipe, call)]))) as items:
            return await anext(items)

    async def reply(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        """Send an answer in JSON, which is written in a thread unless it is short.

        Raises:
            NumericalError: it holds NaN or infinity; nothing was sent.
            Refused: 413, it is larger than `MAX_ANSWER_BYTES`; nothing was sent. Or what `stop` was given.
            DeadlineExceeded: the time is over.
        """
        async with self._in_time(self._late):
            body = await write_answer(content)
        del content  # as large as the body, which may take long to send
        await self._reply_bytes(body, "application/json", status, headers)

    async def reply_text(
        self, text: str, media_type: str, status: int = 200, headers: dict[str, str] | None = None
    ) -> None:
        """Send an answer that is complete."""
        await self._reply_bytes(text.encode(), media_type, status, headers)

    async def _reply_bytes(self, body: bytes, media_type: str, status: int, headers: dict[str, str] | None) -> None:
        await self.begin(status, media_type, {"content-length": str(len(body)), **(headers or {})})
        last = max(0, len(body) - 1) // _PIECE_BYTES * _PIECE_BYTES
        for start in range(0, last, _PIECE_BYTES):
            await self.send(body[start : start + _PIECE_BYTES])
        await self.send(body[last:], more=False)

    async def begin(self, status: int, media_type: str, headers: dict[str, str] | None = None) -> None:
        """Send the status and the headers."""
        self.status, self.begun = status, True
        told = {"content-type": media_type, **(headers or {})}
        encoded = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in told.items()]
        async with self._in_time(self._late):
            await self._send({"type": "http.response.start", "status": status, "headers": encoded})

    async def send(self, body: bytes, *, more: bool = True) -> None:
        """Send a part of the body, once its reader has taken most of what was sent before.

        Raises:
            DeadlineExceeded: the time is over, and the reader has not.
            Refused: what `stop` was given.
        """
        async with self._in_time(self._late):
            await self._send({"type": "http.response.body", "body": body, "more_body": more})
        self._sent = not more

    def stop(self, error: Exception) -> None:
        """End it now: what it waits for raises ``error``, and what is sent from now on waits for no reader."""
        self._stopped = error
        if self._work is not None:
            self._work.stop(error)
        if self._clock is not None and not self._clock.expired():
            self._clock.reschedule(0)

    def close(self) -> None:
        """Give its place back, as soon as its work has ended. An answer without its end takes the connection along."""
        if self.model is not None and self._work is not None:
            self._work.when_ended(self.model.release)
        if self.begun and not self._sent:
            self.request.scope["state"]["abort"]()

    @contextlib.asynccontextmanager
    async def _in_time(self, late: Callable[[], Exception]) -> AsyncIterator[None]:
        """Wait for what is inside until the time is over, then raise what ``late`` makes; or what `stop` was given.

        What need not be waited for is done even then, so that a late request gets its error.
        """
        left = self.service.settings.timeout - self.seconds
        try:
            async with asyncio.timeout(0 if self._stopped else left) as self._clock:
                yield
        except TimeoutError:
            raise self._stopped or late() from None
        finally:
            self._clock = None

    def _late(self) -> DeadlineExceeded:
        timeout = self.service.settings.timeout
        return DeadlineExceeded(
            f"the request was stopped after {timeout:g} s; ask for less, or let --timeout allow more"
        )

    async def _watch(self, work: Work) -> None:
        """Wait for the client to go away: the body has been read, so nothing else can come."""
        while (await self.request.receive())["type"] != "http.disconnect":
            pass
        work.stop(ClientGone())
