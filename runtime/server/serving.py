"""A service from its start to its end: a socket, models opened behind it, signals, and a graceful end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Final

import uvicorn

from pinnace.errors import MachineError
from pinnace.runtime.server.app import Record, Service
from pinnace.runtime.server.models import Model
from pinnace.runtime.server.settings import Settings

# What stopped work needs to be answered, and its connection to be closed.
_CLOSING_SECONDS: Final = 5.0


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
    """

    def __init__(
        self,
        bundles: Mapping[str, str],
        settings: Settings,
        log: Callable[[Record], None],
        fault: Callable[[BaseException], None],
        ready: Callable[[str], None],
    ) -> None:
        self._bundles, self._settings, self._ready = dict(bundles), settings, ready
        self.service = Service(settings, log, fault)
        self._socket = _listen(settings.host, settings.port)
        config = uvicorn.Config(
            self.service.app(), http="h11", ws="none", loop="asyncio", lifespan="off", log_config=None,
            log_level="critical", access_log=False, server_header=False,
            timeout_graceful_shutdown=int(settings.grace + _CLOSING_SECONDS) + 1,
        )  # fmt: skip
        self._server = _Server(config)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._problem: BaseException | None = None
        self._asked = 0

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
            self._loop.call_later(self._settings.grace if self._asked == 1 else 0, self.service.stop)

    @contextlib.contextmanager
    def _signals(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        """Let SIGTERM and SIGINT ask for the end; in a thread, where there are no signals, `end` alone does."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
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


def _listen(host: str, port: int) -> socket.socket:
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
