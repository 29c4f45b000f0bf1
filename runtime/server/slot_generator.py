"""A generator whose rows run in a service's common batch rather than in one of the call's own."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Final

from pinnace.errors import UsageError
from pinnace.runtime.engine.cancellation import CANCELLED, RunLimit
from pinnace.runtime.generation.generator import Generator
from pinnace.runtime.generation.request import Request
from pinnace.runtime.generation.result import Generated
from pinnace.runtime.generation.row import Token
from pinnace.runtime.server.scheduler import Scheduler
from pinnace.runtime.server.work import Call

# Rows of one request. Each takes memory for its whole length, whether or not its turn has come.
MAX_ROWS: Final = 128


class SlotGenerator(Generator):
    """Generates as `Generator` does, each row the same, together with the rows of other requests.

    Beams, prompt lookup and shared beginnings run by themselves.
    """

    def __init__(self, generator: Generator, scheduler: Scheduler) -> None:
        vars(self).update(vars(generator))
        self._scheduler = scheduler
        self._call = Call()

    def counting(self, call: Call) -> SlotGenerator:
        """Return this generator for one request, whose tokens are counted in its ``call``."""
        made = copy.copy(self)
        made._call = call
        return made

    def _admit(self, request: Request) -> None:
        rows = len(request.prompts) * request.config.num_return_sequences
        if rows > MAX_ROWS:
            raise UsageError(f"the request asks for {rows:,} texts; expected at most {MAX_ROWS}. Send several requests")
        self._call.tokens_in += sum(map(len, request.prompts))

    def _tokens(self, request: Request, limit: RunLimit) -> Iterator[Token]:
        apart = request.config.prompt_lookup_num_tokens or request.prefix is not None
        for token in super()._tokens(request, limit) if apart else self._together(request, limit):
            self._call.tokens_out += token.id is not None
            yield token

    def _together(self, request: Request, limit: RunLimit) -> Iterator[Token]:
        rows = self._scheduler.submit(self._rows(request))
        left = len(rows.rows)
        try:
            with limit.stopping(rows):
                while left and (told := rows.told.get()) is not None:
                    if isinstance(told, BaseException):
                        raise told
                    left -= told.reason is not None
                    yield told
        finally:
            self._scheduler.leave(rows)
        if left:
            reason = limit.reason() or CANCELLED
            for row in rows.rows:
                if row.reason is None:
                    yield row.end(reason)

    def _beams(self, request: Request, limit: RunLimit) -> list[list[Generated]]:
        found = super()._beams(request, limit)
        self._call.tokens_out += sum(len(row.ids) for rows in found for row in rows)
        return found
