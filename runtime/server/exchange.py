"""One request and its answer: read, admitted, worked on, sent, counted and logged."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Iterator
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
            Refused: as `read_body` and `parse_object`; 408 where it does not come in time.
            ClientGone: the client closed its connection.
        """
        settings = self.service.settings
        reading = read_body(self.request.headers, self.request.stream(), settings.max_request_bytes)
        try:
            return parse_object(await asyncio.wait_for(reading, settings.timeout))
        except ClientDisconnect:
            raise ClientGone from None
        except TimeoutError:
            raise Refused(408, "the body did not come in time", headers={"Connection": "close"}) from None

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
        done = self._work = Work(Call(), lambda call: work(model.view(call), call), model.executor, model.release)
        self.service.works.add(done)
        loop = asyncio.get_running_loop()
        late = DeadlineExceeded(
            f"the request was stopped after {timeout:g} s; ask for less, or let --timeout allow more"
        )
        clock = loop.call_later(max(0.0, timeout - self.seconds), done.stop, late)
        watching = asyncio.create_task(self._watch(done))
        try:
            while (item := await done.next(_END)) is not _END:
                yield item
        finally:
            done.call.cancel()  # nothing where it has ended
            clock.cancel()
            watching.cancel()
            self.service.works.discard(done)

    async def result(self, work: Callable[[Any, Call], Any]) -> Any:
        """Do the work in a thread and return what it returns; arguments and errors are those of `items`."""
        async with contextlib.aclosing(self.items(lambda pipe, call: iter([work(pipe, call)]))) as items:
            return await anext(items)

    async def reply(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        """Send an answer in JSON, which is written in a thread unless it is short.

        Raises:
            NumericalError: it holds NaN or infinity; nothing was sent.
            Refused: 413, it is larger than `MAX_ANSWER_BYTES`; nothing was sent.
        """
        await self._reply_bytes(await write_answer(content), "application/json", status, headers)

    async def reply_text(
        self, text: str, media_type: str, status: int = 200, headers: dict[str, str] | None = None
    ) -> None:
        """Send an answer that is complete."""
        await self._reply_bytes(text.encode(), media_type, status, headers)

    async def _reply_bytes(self, body: bytes, media_type: str, status: int, headers: dict[str, str] | None) -> None:
        await self.begin(status, media_type, {"content-length": str(len(body)), **(headers or {})})
        await self.send(body, more=False)

    async def begin(self, status: int, media_type: str, headers: dict[str, str] | None = None) -> None:
        """Send the status and the headers."""
        self.status, self.begun = status, True
        told = {"content-type": media_type, **(headers or {})}
        encoded = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in told.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": encoded})

    async def send(self, body: bytes, *, more: bool = True) -> None:
        """Send a part of the body."""
        await self._send({"type": "http.response.body", "body": body, "more_body": more})

    async def _watch(self, work: Work) -> None:
        """Wait for the client to go away: the body has been read, so nothing else can come."""
        while (await self.request.receive())["type"] != "http.disconnect":
            pass
        work.stop(ClientGone())
