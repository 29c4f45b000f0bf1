"""What the command line writes: results on standard output; logs, progress and errors on standard error."""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from pinnace.json_text import to_json

_RED, _YELLOW, _DIM, _PLAIN = "\x1b[31m", "\x1b[33m", "\x1b[2m", "\x1b[0m"


class Console:
    """Standard output and error of one command.

    Args:
        environ: the environment; ``NO_COLOR``, ``CI`` and ``TERM`` are honoured.

    Attributes:
        quiet: only results and errors.
        verbose: logs of every step, and tracebacks.
        json: results are one JSON object.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self.quiet = self.verbose = self.json = False
        # A stream that was closed before the start, as by >&-, is None.
        self.out: TextIO = sys.stdout or _nowhere()
        self.err: TextIO = sys.stderr or _nowhere()
        for stream in (self.out, self.err):
            # Names of files may hold bytes that are no text; they must not break a message.
            if callable(change := getattr(stream, "reconfigure", None)):
                change(errors="backslashreplace")
        terminal = self.err.isatty() and environ.get("TERM") != "dumb"
        self._colour = terminal and not environ.get("NO_COLOR")
        self._moving = terminal and not environ.get("CI")
        self._open_line = False
        self._started = time.monotonic()

    @property
    def live(self) -> bool:
        """Whether a line may be written over: on a terminal alone."""
        return self._moving and not self.quiet

    @property
    def seconds(self) -> float:
        """Seconds since the command began."""
        return time.monotonic() - self._started

    def result(self, text: str) -> None:
        """Print a result."""
        self.clear()
        self.out.write(text + "\n")

    def result_json(self, value: Any) -> None:
        """Print a result as one JSON object."""
        self.result(self.to_json(value, indent=2))

    def to_json(self, value: Any, indent: int | None = None) -> str:
        """Serialize a result.

        Raises:
            NumericalError: it holds NaN or infinity, which JSON does not have.
        """
        return to_json(value, indent, ascii_only=not is_utf8(self.out))

    def log(self, text: str) -> None:
        """Print a line for the reader at the terminal or of a log."""
        if not self.quiet:
            self._line(text)

    def detail(self, text: str) -> None:
        """Print a line that only ``--verbose`` shows."""
        if self.verbose and not self.quiet:
            self._line(self._coloured(_DIM, text))

    def stage(self, text: str) -> None:
        """Say what is done now: one line that is written over on a terminal, a line of a log elsewhere."""
        if self.live and not self.verbose:
            self.clear()
            self._write(self._coloured(_DIM, f"{self.seconds:5.1f} s  {text} ..."))
            self._open_line = True
        else:
            self.log(f"{self.seconds:5.1f} s  {text}")

    def clear(self) -> None:
        """Wipe the line that `stage` left open."""
        if self._open_line:
            self._write("\r\x1b[K")
            self._open_line = False

    def next(self, command: str, why: str = "") -> None:
        """Name the next useful command."""
        self.log(self._coloured(_DIM, f"next{f', {why}' if why else ''}: ") + command)

    def warn(self, text: str) -> None:
        """Print a warning."""
        self.log(self._coloured(_YELLOW, "warning: ") + text)

    def error(self, text: str, error: BaseException | None = None) -> None:
        """Print an error, with its traceback where ``--verbose`` asks for it."""
        if self.verbose and error is not None:
            self._line("".join(traceback.format_exception(error)).rstrip())
        self._line(self._coloured(_RED, "error: ") + text)

    def _line(self, text: str) -> None:
        self.clear()
        self._write(text + "\n")

    def _write(self, text: str) -> None:
        """Write to standard error; where that cannot be, as on a full disk, the command goes on without."""
        try:
            self.err.write(text)
            self.err.flush()
        except OSError:
            drop_what_is_buffered(self.err)
            self.err = _nowhere()

    def _coloured(self, colour: str, text: str) -> str:
        return f"{colour}{text}{_PLAIN}" if self._colour else text


def drop_what_is_buffered(stream: TextIO) -> None:
    """Lead a stream that cannot be written to nowhere, so that what it still holds does not fail at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _nowhere() -> TextIO:
    return Path(os.devnull).open("w", encoding="utf-8")  # open until the process ends


def is_utf8(stream: TextIO) -> bool:
    """Whether a stream takes every character."""
    return (stream.encoding or "").lower().replace("-", "").replace("_", "") == "utf8"
