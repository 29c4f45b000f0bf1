"""How far a command is in its input or its steps: a bar on a terminal, nothing or lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

from pinnace.cli.output import Console

T = TypeVar("T")

_WIDTH: Final = 24
_EVERY: Final = 0.2  # seconds between two drawings


class Progress:
    """Draws a bar while answers come.

    Args:
        console: where to draw; nothing is drawn where it is not a terminal.
        size: bytes of the input, None if unknown.
        done: answers that were there already.

    Attributes:
        read: bytes of the input that were read; whoever reads it says so.
        skipped: those of them whose answers were there already.
    """

    def __init__(self, console: Console, size: int | None, done: int = 0) -> None:
        self._console, self._size, self._done = console, size, done
        self._begun = time.monotonic()
        self._drawn = 0.0
        self.read = self.skipped = 0

    def watch(self, answers: Iterator[T]) -> Iterator[T]:
        """Pass answers on, and draw."""
        for count, answer in enumerate(answers, 1):
            yield answer
            if (now := time.monotonic()) >= self._drawn + _EVERY:
                self._drawn = now
                self._console.stage(self.text(count, now - self._begun))

    def text(self, count: int, seconds: float) -> str:
        """Say how far it is.

        Args:
            count: answers since the start.
            seconds: since the start.
        """
        said = f"{self._done + count:,} answered, {count / max(seconds, 1e-9):,.0f}/s"
        if not self._size:
            return said
        share = min(1.0, self.read / self._size)
        new = self.read - self.skipped
        left = seconds * max(0, self._size - self.read) / new if new > 0 else 0.0
        return f"{bar(share)}  {said}, {_clock(left)} left"


def bar(share: float) -> str:
    """Draw a share of 0 to 1."""
    return f"[{'█' * round(share * _WIDTH):<{_WIDTH}}] {share:4.0%}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def stages(console: Console) -> Callable[[str], None]:
    """Return what takes lines of progress: a line that knows its ``share`` gets a bar, on a terminal."""

    def say(line: str) -> None:
        share = getattr(line, "share", None)
        console.stage(line if share is None or not console.live else f"{bar(share)}  {line}")

    return say
