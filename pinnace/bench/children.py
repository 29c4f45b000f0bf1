"""Programs that are measured, each in a process of its own. Only the standard library is imported: peers run it too."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from pinnace.bench.machine import chosen_cpus
from pinnace.bench.worker import REPORT
from pinnace.errors import MachineError

if TYPE_CHECKING:
    from typing import Self  # Python 3.11, and peers may have 3.10

# Every program gets the same threads and no network: an attempt to reach a hub would be measured as slowness.
QUIET: Final = {
    "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "ORT_DISABLE_TELEMETRY": "1", "TQDM_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore",
    "PYTHONHASHSEED": "0",
}  # fmt: skip
THREAD_VARIABLES: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "PINNACE_THREADS")
_SAID: Final = 3000  # characters of a failed program's messages that are shown
_END_SECONDS: Final = 10


@dataclass(frozen=True)
class Run:
    """One finished child: wall time in seconds, peak resident memory in bytes, and what it printed."""

    wall: float
    peak: int
    output: str


class ChildFailed(MachineError):
    """A measured program did not start, or ended with an error.

    An error of Pinnace in it keeps its text and its exit code. All that the program said is a note, which a traceback
    shows.

    Attributes:
        code: that it ended with; None where it did not start.
        output: all that it said.
        said: its last words, in one line.
    """

    def __init__(self, words: Sequence[str], code: int | None, output: str) -> None:
        self.code, self.output = code, output
        lines = [line.strip() for line in output.splitlines() if line.strip()]
        last = lines[-1][:_SAID] if lines else ""
        text, self.exit_code = _reported(lines)
        self.said = (" ".join(text.split()) or last or f"ended with {code}")[:200]
        if not text:
            ended = "did not start" if code is None else f"ended with {code}"
            text = ": ".join(filter(None, (f"{_shown(words)} {ended}", last)))
        super().__init__(text)
        self.add_note(f"{' '.join(words)}\nsaid:\n{output[-_SAID:]}")

    def of_command(self) -> Self:
        """Take text and exit code of the error line of a command of Pinnace, which is what failed."""
        text = f"\n{self.output}".partition("\nerror: ")[2].strip()
        if text and self.code is not None and 0 < self.code <= MachineError.exit_code:
            self.args, self.exit_code = (text,), self.code
        return self


def _reported(lines: Sequence[str]) -> tuple[str, int]:
    """Text and exit code of the error that a worker reported; no text where it did not."""
    line = next((line for line in reversed(lines) if line.startswith(REPORT)), "")
    try:
        said = json.loads(line.removeprefix(REPORT))
        return str(said["text"]), int(said["exit_code"])
    except (ValueError, KeyError, TypeError):
        return "", MachineError.exit_code


def _shown(words: Sequence[str]) -> str:
    """A program without its JSON, which is long."""
    return " ".join(word for word in words if not word.startswith("{"))


def environment(threads: int, **more: str) -> dict[str, str]:
    """Environment variables of a child: this process's, quiet, off-line, with so many threads."""
    return {**os.environ, **QUIET, **dict.fromkeys(THREAD_VARIABLES, str(threads)), **more}


def _pinned(threads: int, pinned: bool = True) -> Callable[[], None] | None:
    """What a child does before it starts: keep to as many CPUs as it has threads."""
    if not pinned or not hasattr(os, "sched_setaffinity"):
        return None
    cpus = chosen_cpus(threads)
    return lambda: os.sched_setaffinity(0, cpus)


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Hold SIGTERM and Ctrl-C back: raised between the fork and its return, they would leave a child nobody knows."""
    came: list[int] = []
    before = {}
    if threading.current_thread() is threading.main_thread():
        # What a signal does without a handler of Python's is left alone: the child inherits that one is ignored.
        known = [number for number in (signal.SIGTERM, signal.SIGINT) if callable(signal.getsignal(number))]
        before = {number: signal.signal(number, lambda got, _frame: came.append(got)) for number in known}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for got in came:
        signal.raise_signal(got)


def _start(words: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
    """Start a program.

    Raises:
        ChildFailed: it is not there, or the machine does not start it.
    """
    child: subprocess.Popen[Any] | None = None
    try:
        with _signals_held():
            child = subprocess.Popen(words, **options)
    except OSError as error:
        raise ChildFailed(words, None, f"{error.strerror}: {error.filename or words[0]}") from None
    except BaseException:
        if child is not None:
            _end(child)
        raise
    return child


def _end(child: subprocess.Popen[Any]) -> None:
    """End a child, which has a while to remove what it made."""
    child.terminate()
    try:
        child.wait(timeout=_END_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def run_child(
    words: Sequence[str | Path], *, threads: int = 1, folder: Path | None = None, variables: Mapping[str, str] = {}
) -> Run:
    """Run a program to its end and measure it from outside.

    The peak is the kernel's own figure for the child (`os.wait4`), so that it needs no help from the program. It does
    not hold memory of grandchildren that the child has not waited for.

    Args:
        words: the program and its arguments.
        threads: that it may use, and CPUs that it is held to.
        folder: in which it runs; None for this process's.
        variables: further variables of its environment.

    Raises:
        ChildFailed: the program did not start, or failed.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        start = time.perf_counter()
        child = _start(
            [str(word) for word in words], stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=folder,
            env=environment(threads, **variables), preexec_fn=_pinned(threads),
        )  # fmt: skip
        try:
            _, status, usage = os.wait4(child.pid, 0)
        except BaseException:
            _end(child)
            raise
        wall = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        if child.returncode:
            raise ChildFailed([str(word) for word in words], child.returncode, err.read().decode(errors="replace"))
        unit = 1 if sys.platform == "darwin" else 1024
        return Run(wall, usage.ru_maxrss * unit, out.read().decode())


class Server:
    """A child that loads once and then answers each line of JSON with a line of JSON, so that rounds can interleave.

    Args:
        words: the program and its arguments.
        threads: that it may use.
        folder: in which it runs; None for this process's.
        variables: further variables of its environment.
        pinned: hold it to as many CPUs as it has threads.

    Attributes:
        ready: its first line.

    Raises:
        ChildFailed: it did not start, or it ended.
    """

    def __init__(
        self,
        words: Sequence[str | Path],
        *,
        threads: int = 1,
        folder: Path | None = None,
        variables: Mapping[str, str] = {},
        pinned: bool = True,
    ) -> None:
        self._words = [str(word) for word in words]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the server
        self._child: subprocess.Popen[str] = _start(
            self._words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, cwd=folder,
            env=environment(threads, **variables), preexec_fn=_pinned(threads, pinned),
        )  # fmt: skip
        try:
            self.ready = self._answer()
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._child.pid

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request and wait for its answer.

        Raises:
            ChildFailed: it ended instead.
        """
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(json.dumps(request) + "\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended; its answer says why
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            self._child.wait()
            self._log.seek(0)
            raise ChildFailed(self._words, self._child.returncode, self._log.read().decode(errors="replace"))
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the child."""
        for stream in (self._child.stdin, self._child.stdout):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:
                    continue
        try:
            self._child.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
