"""Runs one chat template in a limited process that is started when needed and replaced when it dies."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import threading
import time
import weakref
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from pinnace.errors import BundleError, InputError, MachineError
from pinnace.runtime.machine.forks import renew_in_children
from pinnace.runtime.tokenization.files import MAX_TEXT_CHARS

FUEL: Final = 1_000_000
"""Most steps of one rendering; a conversation of 1,000 messages takes fewer than 100,000."""
PROCESSOR_SECONDS: Final = 0.25
"""Most processor time of one rendering; a conversation of 1,000 messages takes about 0.003."""
WALL_SECONDS: Final = 0.7
"""Most time of one rendering, for a machine that is busy with other things."""
MEMORY: Final = 256 << 20
"""Most address space of the process, in bytes; about 20 MB are Python itself."""
_START_SECONDS: Final = 30.0

_LIMITS: Final = {
    "OutOfFuel": f"it takes more than {FUEL} steps",
    "Output": f"its text is longer than {MAX_TEXT_CHARS} characters",
    "Memory": "it needs too much memory",
}


class TemplateStopped(BundleError):
    """A rendering took more than it may: always where the template is wrong, or for a conversation that is too long."""


class ChatProcess:
    """One template's process. Threads take turns; a forked child starts its own.

    Args:
        template: the source.
    """

    def __init__(self, template: str) -> None:
        self._template = template
        self.renew()
        self._child: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._finalizer: weakref.finalize[..., ChatProcess] | None = None
        renew_in_children(self)

    def renew(self) -> None:
        """Make the lock anew, as in a forked child."""
        self._lock = threading.Lock()

    def render(self, variables: str) -> str:
        """Render with variables given as one line of JSON.

        Raises:
            InputError: the template refuses the messages, or cannot render them.
            TemplateStopped: it exceeds its steps, time, memory or output.
            BundleError: the template is wrong.
            MachineError: no process can be started.
        """
        with self._lock:
            answer = self._ask(variables)
        if answer is None:
            raise TemplateStopped(
                f"the chat template was stopped: it used more than {PROCESSOR_SECONDS} s of processor time or "
                f"{MEMORY >> 20} MiB of memory, or took {WALL_SECONDS} s.\n"
                "  Give fewer messages, use another template, or render the text yourself."
            )
        if "text" in answer:
            return str(answer["text"])
        if "refused" in answer:
            raise InputError(f"the chat template refuses the messages: {answer['refused']}")
        if answer["kind"] in _LIMITS:
            raise TemplateStopped(f"the chat template fails, {_LIMITS[answer['kind']]} ({answer['failed']}).")
        if answer["kind"] == "Syntax":
            raise BundleError(f"the chat template fails, it cannot be read ({answer['failed']}).")
        if answer["kind"] == "Lacking":
            raise InputError(
                f"the chat template uses something that Pinnace does not have: {answer['failed']}\n"
                "  Write the template without it, use another one, or render the text yourself."
            )
        also = (
            "\n  The template may also pass a method arguments that Pinnace does not have."
            if answer["kind"] == "InvalidOperation"
            else ""
        )
        raise InputError(
            f"the chat template cannot render the messages: {answer['failed']}\n"
            f"  Check that every message has the keys and types that the template reads.{also}"
        )

    def close(self) -> None:
        """End the process; the next rendering starts another."""
        with self._lock:
            self._end()

    def _ask(self, line: str) -> dict[str, Any] | None:
        """Send one line and wait for one; None where the process died or took too long."""
        answer: dict[str, Any] | None = None
        try:
            child = self._running()
            assert child.stdin is not None and child.stdout is not None  # noqa: S101 - both are pipes by construction
            child.stdin.write(line.encode() + b"\n")
            child.stdin.flush()
            if (reply := _read_line(child.stdout.fileno(), WALL_SECONDS)) is not None:
                answer = json.loads(reply)
        except BrokenPipeError:
            answer = None
        except BaseException:
            # Half an answer, or the line that tells of the start, must never be taken for that of the next question.
            self._end()
            raise
        if answer is None:
            self._end()
        return answer

    def _running(self) -> subprocess.Popen[bytes]:
        if self._child is not None and self._owner == os.getpid() and self._child.poll() is None:
            return self._child
        if self._owner == os.getpid():
            self._end()
        limits = {
            "template": self._template,
            "fuel": FUEL,
            "seconds": PROCESSOR_SECONDS,
            "memory": MEMORY,
            "output": MAX_TEXT_CHARS,
        }
        try:
            child = subprocess.Popen(
                [sys.executable, "-S", "-P", str(Path(__file__).with_name("worker.py"))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": _place_of_minijinja(), "RUST_BACKTRACE": "0"},
            )
        except OSError as error:
            raise MachineError(f"cannot start the process that renders chat templates: {error.strerror}") from error
        assert child.stdin is not None and child.stdout is not None  # noqa: S101 - both are pipes by construction
        self._finalizer = weakref.finalize(self, _kill, child, os.getpid())
        self._child, self._owner = child, os.getpid()
        try:
            child.stdin.write(json.dumps(limits).encode() + b"\n")
            child.stdin.flush()
            started = _read_line(child.stdout.fileno(), _START_SECONDS) is not None
        except OSError:  # it ended before it had read its template
            started = False
        if not started:
            raise MachineError("the process that renders chat templates does not start.")
        return child

    def _end(self) -> None:
        self._child = None
        if self._finalizer is not None:
            self._finalizer()


def _kill(child: subprocess.Popen[bytes], owner: int) -> None:
    # After a fork, the process belongs to the parent.
    if owner == os.getpid():
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue


def _place_of_minijinja() -> str:
    spec = find_spec("minijinja")
    assert spec is not None and spec.origin is not None  # noqa: S101 - the caller looked
    return str(Path(spec.origin).parent.parent)


def _read_line(pipe: int, seconds: float) -> bytes | None:
    """Read up to a newline; None at the end of the stream or when the time is over."""
    parts: list[bytes] = []
    end = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while selector.select(max(end - time.monotonic(), 0)):
            part = os.read(pipe, 1 << 16)
            if not part:
                return None
            parts.append(part)
            if part.endswith(b"\n"):
                return b"".join(parts)
    return None
