"""The service: its addresses, who may use them, and what every request has in common."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeAlias

from starlette.requests import Request
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from pinnace.errors import DeadlineExceeded, NumericalError
from pinnace.runtime.server.completions import chat, completions
from pinnace.runtime.server.encoders import embeddings, pipelines, rerank
from pinnace.runtime.server.exchange import Exchange
from pinnace.runtime.server.failures import ClientGone, Refused, as_refused, is_fault
from pinnace.runtime.server.metrics import Metrics
from pinnace.runtime.server.models import Model
from pinnace.runtime.server.settings import Settings

Handler: TypeAlias = Callable[[Exchange], Awaitable[None]]
Record: TypeAlias = dict[str, Any]

_OPENING, _READY, _ENDING = "opening", "ready", "ending"
_GET: Final = ("GET", "HEAD")
_POST: Final = ("POST",)


class Service:
    """Answers requests with the models that it is given.

    Args:
        settings: how much it takes on.
        log: gets one record for each request.
        fault: gets every error that is the service's own.

    Attributes:
        models: name to model.
        exchanges: the requests under way.
    """

    def __init__(
        self, settings: Settings, log: Callable[[Record], None], fault: Callable[[BaseException], None]
    ) -> None:
        self.settings, self._log, self._fault = settings, log, fault
        self.models: dict[str, Model] = {}
        self.metrics = Metrics()
        self.exchanges: set[Exchange] = set()
        self._state = _OPENING
        self._since = int(time.time())

    def open(self, models: dict[str, Model]) -> None:
        """Begin to answer."""
        self.models, self.metrics, self._state = models, Metrics(models), _READY

    def end(self) -> None:
        """Take no more requests."""
        self._state = _ENDING

    def stop(self) -> None:
        """End all requests under way."""
        for exchange in list(self.exchanges):
            exchange.stop(_ending())

    def app(self) -> ASGIApp:
        """The ASGI application."""
        posts: dict[str, Handler] = {
            "/v1/chat/completions": chat, "/v1/completions": completions, "/v1/embeddings": embeddings,
            "/v1/rerank": rerank, "/v1/pipelines/{model}": pipelines,
        }  # fmt: skip
        gets: dict[str, Handler] = {
            "/v1/models": self._list_models, "/v1/models/{model}": self._show_model, "/metrics": self._show_metrics,
        }  # fmt: skip
        health: dict[str, Handler] = {"/healthz": _alive, "/readyz": self._show_state}
        endpoints = [
            *(_Endpoint(self, route, handler, _POST, work=True) for route, handler in posts.items()),
            *(_Endpoint(self, route, handler, _GET) for route, handler in gets.items()),
            *(_Endpoint(self, route, handler, _GET, guarded=False) for route, handler in health.items()),
        ]
        known = ", ".join(endpoint.route for endpoint in endpoints)

        async def nowhere(_exchange: Exchange) -> None:
            raise Refused(404, f"there is no such address; known: {known}")

        # A model's name may have slashes in it.
        routes = [Route(endpoint.route.replace("}", ":path}"), endpoint) for endpoint in endpoints]
        router = Router(routes, redirect_slashes=False, default=_Endpoint(self, "other", nowhere))

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            # HTTP lets a request name its whole address, as one to a proxy does.
            scope["path"] = re.sub(r"^https?://[^/]*", "", scope["path"], flags=re.IGNORECASE)
            await router(scope, receive, send)

        return app

    def check_key(self, request: Request) -> None:
        """Let only those in who know the key, where there is one.

        Raises:
            Refused: 401.
        """
        key = self.settings.api_key
        if key is not None:
            scheme, _, given = request.headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), key.encode()):
                raise Refused(
                    401, "the key is missing or wrong; send Authorization: Bearer KEY", code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )  # fmt: skip

    def check_ready(self) -> None:
        """Go on only while requests are answered.

        Raises:
            Refused: 503, not yet or no more.
        """
        if self._state == _OPENING:
            raise Refused(503, "the models are being opened; retry shortly", code="opening")
        if self._state == _ENDING:
            raise _ending()

    def finish(self, exchange: Exchange, route: str) -> None:
        """Count and log a request that has been answered."""
        model, call = exchange.model, exchange.call
        labels = {"route": route, "model": model.name if model else ""}
        self.metrics.requests.add(1, **labels, status=str(exchange.status))
        self.metrics.seconds.add(exchange.seconds, **labels)
        if model is not None:
            self.metrics.tokens_in.add(call.tokens_in, model=model.name)
            self.metrics.tokens_out.add(call.tokens_out, model=model.name)
        self._log(
            {
                "method": exchange.request.method, **labels, "status": exchange.status,
                "ms": round(exchange.seconds * 1000, 1), "tokens_in": call.tokens_in, "tokens_out": call.tokens_out,
            }
        )  # fmt: skip

    def failed(self, exchange: Exchange, error: BaseException) -> Refused:
        """Count and tell of an error, and return its answer."""
        if isinstance(error, NumericalError) and exchange.model is not None:
            self.metrics.numerical_errors.add(1, model=exchange.model.name)
        if is_fault(error):
            self._fault(error)
        return as_refused(error)

    async def _show_state(self, exchange: Exchange) -> None:
        self.check_ready()
        await exchange.reply({"status": "ready"})

    async def _list_models(self, exchange: Exchange) -> None:
        await exchange.reply({"object": "list", "data": [self._facts(model) for model in self.models.values()]})

    async def _show_model(self, exchange: Exchange) -> None:
        await exchange.reply(self._facts(exchange.choose(exchange.request.path_params["model"])))

    def _facts(self, model: Model) -> Record:
        return {
            "id": model.name, "object": "model", "created": self._since, "owned_by": "pinnace", "task": model.task,
        }  # fmt: skip

    async def _show_metrics(self, exchange: Exchange) -> None:
        models = self.models.values()
        gauges = (
            ("pinnace_requests_in_flight", "Requests at work or waiting", {m.name: m.requests for m in models}),
            ("pinnace_queue_depth", "Rows that wait for a run", {m.name: m.waiting for m in models}),
            ("pinnace_running_rows", "Rows of the runs under way", {m.name: m.running for m in models}),
        )
        await exchange.reply_text(self.metrics.text(gauges), "text/plain; version=0.0.4; charset=utf-8")


class _Endpoint:
    """One address: an ASGI application that turns whatever happens into an answer, a count and a line of the log.

    Args:
        service: who answers.
        route: the address as it is counted and told.
        handler: makes the answer.
        methods: those that it takes; none for all.
        work: only while the models are open.
        guarded: only for those who know the key.
    """

    def __init__(
        self,
        service: Service,
        route: str,
        handler: Handler,
        methods: Sequence[str] = (),
        *,
        work: bool = False,
        guarded: bool = True,
    ) -> None:
        self.route = route
        self._service, self._handler, self._methods = service, handler, methods
        self._work, self._guarded = work, guarded

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(self._service, Request(scope, receive), send)
        self._service.exchanges.add(exchange)
        try:
            if self._guarded:
                self._service.check_key(exchange.request)
            if self._methods and exchange.request.method not in self._methods:
                allowed = ", ".join(self._methods)
                raise Refused(405, f"this address takes {allowed}", headers={"Allow": allowed})
            if self._work:
                self._service.check_ready()
            await self._handler(exchange)
        except (asyncio.CancelledError, KeyboardInterrupt, SystemExit):
            exchange.status = 503
            raise
        except BaseException as error:  # a library's panic too is answered
            refused = self._service.failed(exchange, error)
            exchange.status = refused.status
            if not isinstance(error, ClientGone) and not exchange.begun:
                with contextlib.suppress(DeadlineExceeded, Refused):  # it reads nothing of what it was sent before
                    await exchange.reply(refused.body(), refused.status, refused.headers)
        finally:
            self._service.exchanges.discard(exchange)
            exchange.close()
            self._service.finish(exchange, self.route)


def _ending() -> Refused:
    return Refused(503, "the service is shutting down", code="ending", headers={"Connection": "close"})


async def _alive(exchange: Exchange) -> None:
    await exchange.reply({"status": "alive"})
