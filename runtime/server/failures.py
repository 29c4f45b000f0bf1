"""Errors as HTTP answers: one status for each kind, in the form that OpenAI's clients read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pinnace.errors import DeadlineExceeded, MachineError, MissingExtra, NumericalError, PinnaceError, UsageError
from pinnace.runtime.chat.process import TemplateStopped

# Recorded, never sent: the client went away before it was answered.
_CLIENT_GONE: Final = 499
_RETRY_SECONDS: Final = 1
# Of a message, so many characters from its beginning and its end are sent: many repeat what they were given.
_HEAD, _TAIL = 1500, 500
_TYPES: Final = {401: "authentication_error", 429: "rate_limit_error"}


class Refused(PinnaceError):
    """A request that gets an error for its answer.

    Args:
        status: the HTTP status.
        message: what the client reads.
        code: a word for programs.
        param: the parameter that is wrong.
        headers: further headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param
        self.headers = dict(headers or {})
        if status in (429, 503):
            self.headers.setdefault("Retry-After", str(_RETRY_SECONDS))

    def body(self) -> dict[str, Any]:
        """The answer's JSON."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        text = str(self)
        if len(text) > _HEAD + _TAIL:
            text = f"{text[:_HEAD]} [...] {text[-_TAIL:]}"
        return {"error": {"message": text, "type": kind, "param": self.param, "code": self.code}}


class ClientGone(Exception):
    """The client closed its connection."""


def as_refused(error: BaseException) -> Refused:
    """Return the answer to an error.

    What a client did wrong it is told in full; of faults inside it learns the kind alone, for their texts name files.
    """
    if isinstance(error, Refused):
        return error
    if isinstance(error, ClientGone):
        return Refused(_CLIENT_GONE, "the client went away")
    # The bundle's template renders what others send, so it is this conversation that is too long for it.
    if isinstance(error, UsageError | TemplateStopped):
        return Refused(400, str(error))
    if isinstance(error, NumericalError):
        text = "there is no answer: the model gave NaN or infinity, or the options left no token to choose from"
        return Refused(500, text, code="numerical_error")
    if isinstance(error, DeadlineExceeded):
        return Refused(504, str(error), code="timeout")
    if isinstance(error, MachineError | MemoryError):
        return Refused(503, str(error) or "not enough memory for this request", code="machine")
    if isinstance(error, MissingExtra):
        return Refused(501, str(error), code="missing_extra")
    return Refused(500, "an internal error; the log of the service says more", code="internal_error")


def is_fault(error: BaseException) -> bool:
    """Whether an error is the service's own, to be looked into, rather than the client's or the clock's."""
    return as_refused(error).status in (500, 501) and not isinstance(error, Refused)
