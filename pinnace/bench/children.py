"""Programs that are measured, each in a process of its own. Only the standard library is imported: peers run it too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from pinnace.bench.machine import chosen_cpus
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


@dataclass(frozen=True)
class Run:
    """One finished child: wall time in seconds, peak resident memory in bytes, and what it printed."""

    wall: float
    peak: int
    output: str


class ChildFailed(MachineError):
    """A measured program ended with an error; the text has its last words, ``said`` the last line of them."""

    def __init__(self, words: Sequence[str], code: int, said: str) -> None:
        super().__init__(f"{' '.join(words)}\nended with {code}:\n{said[-_SAID:]}")
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        self.said = (lines[-1] if lines else f"ended with {code}")[:200]


def environment(threads: int, **more: str) -> dict[str, str]:
    """Environment variables of a child: this process's, quiet, off-line, with so many threads."""
    return {**os.environ, **QUIET, **dict.fromkeys(THREAD_VARIABLES, str(threads)), **more}


def _pinned(threads: int, pinned: bool = True) -> Callable[[], None] | None:
    """What a child does before it starts: keep to as many CPUs as it has threads."""
    if not pinned or not hasattr(os, "sched_setaffinity"):
        return None
    cpus = chosen_cpus(threads)
    return lambda: os.sched_setaffinity(0, cpus)


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
        ChildFailed: the program failed; what it said is shown.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        start = time.perf_counter()
        child = subprocess.Popen(
            [str(word) for word in words], stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=folder,
            env=environment(threads, **variables), preexec_fn=_pinned(threads),
        )  # fmt: skip
        _, status, usage = os.wait4(child.pid, 0)
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
        ChildFailed: it ended; what it said is shown.
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
        self._child = subprocess.Popen(
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
