"""When a row ends: an end token, a stop string (also across the borders of tokens), its length, or the clock."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from typing import Literal, TypeAlias

StopReason: TypeAlias = Literal["eos", "stop_string", "length", "time"]


class StopStrings:
    """Watches the text of one row, piece by piece, for strings that end it.

    Text that could still become a stop string is held back, so that a stream never shows the start of one.

    Attributes:
        matched: the stop string that was found, or None.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = tuple(strings)
        self._held = ""
        self.matched: str | None = None

    def feed(self, piece: str) -> str:
        """Take the next piece of text; return what is now sure to stand before any stop string.

        After a match everything further is swallowed. Of several matches the one that begins first counts, and of
        those that begin together the longest.
        """
        if self.matched is not None or not self._strings:
            return "" if self._strings else piece
        text = self._held + piece
        found = [(place, -len(string), string) for string in self._strings if (place := text.find(string)) >= 0]
        if found:
            place, _, self.matched = min(found)
            self._held = ""
            return text[:place]
        keep = self._unsure(text)
        passed, self._held = text[: len(text) - keep], text[len(text) - keep :]
        return passed

    def flush(self) -> str:
        """Return the text held back, at the end of a row that no stop string ended."""
        held, self._held = self._held, ""
        return held

    def _unsure(self, text: str) -> int:
        """How many of the last characters begin a stop string."""
        longest = min(max(map(len, self._strings)) - 1, len(text))
        for count in range(longest, 0, -1):
            if any(string.startswith(text[-count:]) for string in self._strings):
                return count
        return 0


class Deadline:
    """A time limit that starts when it is made.

    Args:
        seconds: the limit; None for no limit.
    """

    def __init__(self, seconds: float | None) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds

    @property
    def passed(self) -> bool:
        """Whether the time is over."""
        return self._end is not None and time.monotonic() >= self._end


class RowStop:
    """Decides after each new token whether its row ends.

    Args:
        ends: token ids that end a row.
        limit: most new tokens.
        strings: stop strings; each row needs its own `StopStrings`.
        deadline: the request's time limit.
        special: ids of the stop strings that are special tokens, of which the text says nothing.
    """

    def __init__(
        self,
        ends: Collection[int],
        limit: int,
        strings: StopStrings | None = None,
        deadline: Deadline | None = None,
        special: Collection[int] = (),
    ) -> None:
        self._ends = frozenset(ends)
        self._special = frozenset(special)
        self._limit = limit
        self._deadline = deadline or Deadline(None)
        self.strings = strings or StopStrings(())

    def check(self, token: int, new_tokens: int) -> StopReason | None:
        """Say why the row ends with ``token``, or None where it goes on.

        Args:
            token: the newest token; its text, where there are stop strings, has been fed to ``strings``.
            new_tokens: how many the row has generated, that one included.
        """
        if token in self._ends:
            return "eos"
        if self.strings.matched is not None or token in self._special:
            return "stop_string"
        if new_tokens >= self._limit:
            return "length"
        return "time" if self._deadline.passed else None
