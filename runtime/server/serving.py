"""A service from its start to its end: a socket, models opened behind it, signals, and a graceful end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from pinnace.errors import MachineError, UsageError
from pinnace.runtime.server.app import Record, Service
from pinnace.runtime.server.models import Model
from pinnace.runtime.server.settings import Settings

# What stopped requests need to be answered, and their connections to be closed; and so when asked a second time.
_CLOSING_SECONDS, _CLOSING_AT_ONCE_SECONDS = 5.0, 0.5
# Connections that wait to be taken. Python tries as many at a time, even where there are no file descriptors for them.
_BACKLOG: Final = 128
_SECONDS_BETWEEN_WARNINGS: Final = 60.0


class Serving:
    """Serves bundles until a signal or `end` asks for the end.

    Args:
        bundles: name to path.
        settings: those of the service.
        log: gets one record for each request.
        fault: gets every error that is the service's own.
        ready: called with the address when the models are open.

    Raises:
        MachineError: the address cannot be listened on.
        UsageError: it is empty.
    """

    def __init__(
        self,
        bundles: Mapping[str, str],
        settings: Settings,
        log: Callable[[Record], None],
        fault: Callable[[BaseException], None],
        ready: Callable[[str], None],
    ) -> None:
        self._bundles, self._settings, self._fault, self._ready = dict(bundles), settings, fault, ready
        self.service = Service(settings, log, fault)
        self._socket = _listen(settings.host, settings.port)
        config = uvicorn.Config(
            self.service.app(), http=_Connection, ws="none", loop="asyncio", lifespan="off", log_config=None,
            log_level="critical", access_log=False, server_header=False, backlog=_BACKLOG,
            timeout_graceful_shutdown=int(settings.grace + _CLOSING_SECONDS) + 1,
        )  # fmt: skip
        self._server = _Server(config)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._problem: BaseException | None = None
        self._asked = 0
        self._next_warning = 0.0

    @property
    def address(self) -> str:
        """Where it listens, as ``http://127.0.0.1:8000``."""
        host, port = self._socket.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def run(self) -> None:
        """Serve until the end.

        Raises:
            PinnaceError: a bundle cannot be opened.
        """
        asyncio.run(self._serve())
        if self._problem is not None:
            raise self._problem

    def end(self) -> None:
        """Ask for the end, from any thread: requests under way get the grace, or none when asked again."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(self._end)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(self._loop_failed)
        # A thread of its own that nothing waits for: a service that is asked to end need not open its models first.
        threading.Thread(target=self._open, name="pinnace-open", daemon=True).start()
        with self._signals(self._loop):
            await self._server.serve(sockets=[self._socket])

    def _open(self) -> None:
        opened: Callable[[], None]
        try:
            models = {name: Model(name, path, self._settings) for name, path in self._bundles.items()}
        except BaseException as error:  # told by `run`, whatever it is
            problem = error
            opened = lambda: self._refuse(problem)  # noqa: E731
        else:
            opened = lambda: self._begin(models)  # noqa: E731
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(opened)

    def _begin(self, models: dict[str, Model]) -> None:
        if not self._asked:
            self.service.open(models)
            self._ready(self.address)

    def _refuse(self, problem: BaseException) -> None:
        self._problem = problem
        self._end()

    def _end(self) -> None:
        self._asked += 1
        self.service.end()
        self._server.should_exit = True
        if self._loop is not None:
            self._loop.call_later(self._settings.grace if self._asked == 1 else 0, self._stop, self._loop)

    def _stop(self, loop: asyncio.AbstractEventLoop) -> None:
        self.service.stop()
        loop.call_later(_CLOSING_SECONDS if self._asked == 1 else _CLOSING_AT_ONCE_SECONDS, self._abort)

    def _abort(self) -> None:
        """Close the connections of those who do not take what they were sent, and wait for nothing any more."""
        for connection in list(self._server.server_state.connections):
            if isinstance(connection, _Connection):
                connection.transport.abort()
        self._server.force_exit = True

    def _loop_failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Tell of connections that cannot be taken, not as often as the loop tries; and of all else as it does."""
        error = context.get("exception")
        if not isinstance(error, OSError) or "accept" not in context["message"]:
            loop.default_exception_handler(context)
        elif time.monotonic() >= self._next_warning:
            self._next_warning = time.monotonic() + _SECONDS_BETWEEN_WARNINGS
            self._fault(
                MachineError(
                    f"no more connections can be taken: {error.strerror}. Allow more files with ulimit -n, or let a "
                    "proxy hold the idle ones"
                )
            )

    @contextlib.contextmanager
    def _signals(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        """Let SIGTERM, SIGINT and SIGHUP ask for the end; in a thread, without signals, `end` alone does."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        # Of a terminal that is closed; nohup has it ignored, and it stays so.
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
            before[signal.SIGHUP] = signal.SIG_DFL
        for number in before:
            loop.add_signal_handler(number, self._end)
        try:
            yield
        finally:
            for number, handler in before.items():
                loop.remove_signal_handler(number)
                signal.signal(number, handler)


class _Server(uvicorn.Server):
    """uvicorn's server, which leaves signals to `Serving`: it would end the process as if it had failed."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take none."""
        yield


class _Connection(H11Protocol):
    """uvicorn's connection, which a request can abort: closing it would wait for a client that reads nothing."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Tell its requests how."""
        super().connection_made(transport)
        self.app_state = {**self.app_state, "abort": transport.abort}


def _listen(host: str, port: int) -> socket.socket:
    if not host:
        raise UsageError("--host is empty, as from a variable that is not set; give an address, such as 127.0.0.1")
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        made = socket.socket(family, kind, protocol)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(place)
        except OSError:
            made.close()
            raise
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise MachineError(f"cannot listen on {host}, port {port}: {reason}. Give another --host or --port") from None
    return made
