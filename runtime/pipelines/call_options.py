"""Options that every pipeline takes when it is called, and the clock of its timeout."""

from __future__ import annotations

import copy
import dataclasses
import time
from typing import ClassVar, Self, TypeVar

from pinnace.errors import DeadlineExceeded, UsageError
from pinnace.runtime.arguments import check_count, check_flag, check_seconds
from pinnace.runtime.engine.cancellation import Cancellation


@dataclasses.dataclass(frozen=True)
class CallOptions:
    """Options that every pipeline takes when it is called.

    Attributes:
        batch_size: most rows of one batch; None leaves it to the token budget.
        timeout: most seconds for a call, or for each piece of a stream; None waits for ever.
        cancellation: a switch to end the call from another thread.
    """

    batch_size: int | None = None
    timeout: float | None = None
    cancellation: Cancellation | None = None
    _until: ClassVar[float | None] = None  # the moment, of the monotonic clock, when the timeout passes

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type == "bool" or (field.type == "bool | None" and value is not None):  # annotations are texts
                check_flag(field.name, value)
        check_count("batch_size", self.batch_size)
        check_seconds("timeout", self.timeout)
        if self.cancellation is not None and not isinstance(self.cancellation, Cancellation):
            raise UsageError(f"cancellation is {self.cancellation!r}; expected a pinnace Cancellation, or None")

    def started(self) -> Self:
        """Return these options with the clock of their timeout running from now."""
        running = copy.copy(self)
        if self.timeout is not None:
            object.__setattr__(running, "_until", time.monotonic() + self.timeout)
        return running

    def ended_by(self, switch: Cancellation) -> Self:
        """Return these options with another switch, their clock running on."""
        changed = copy.copy(self)
        object.__setattr__(changed, "cancellation", switch)
        return changed

    def seconds_left(self) -> float | None:
        """Return what is left of the timeout, None where there is none.

        Raises:
            DeadlineExceeded: it has passed, or the call was cancelled.
        """
        if self.cancellation is not None:
            self.cancellation.check()
        return self.time_left()

    def time_left(self) -> float | None:
        """Return what is left of the timeout, for a call that has an end of its own for a cancellation.

        Raises:
            DeadlineExceeded: it has passed.
        """
        if self._until is None:
            return None
        if (left := self._until - time.monotonic()) <= 0:
            raise DeadlineExceeded(f"the call was stopped after its timeout of {self.timeout:g} s; allow more")
        return left


Options = TypeVar("Options", bound=CallOptions)
