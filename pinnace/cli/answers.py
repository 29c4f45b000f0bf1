"""The file of answers of ``pinnace run``: it appears whole, and what an interrupted run had answered can be kept."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

from pinnace.errors import InputError, MachineError, UsageError
from pinnace.json_text import to_json

# How the line of an input that could not be answered begins.
ERROR_MARK: Final = '{"error": '
_SUFFIX: Final = ".partial"
_LEFTOVER: Final = re.compile(r"\.[0-9a-f]{12}\.partial$")
_HEAD_BYTES: Final = 1 << 16
_BLOCK: Final = 1 << 20


class Kept(NamedTuple):
    """What an interrupted run left: lines of answers, and those of them that are errors."""

    answers: int = 0
    failed: int = 0


class AnswersFile:
    """Answers, one a line, in a partial file beside the target, which takes the target's place at the end.

    The partial file's name holds a hash of what is asked and of whom, so that answers of different runs never mix.

    Args:
        target: the file to make.
        facts: what decides the answers: bundle, task, options, input.
        resume: go on with the partial file of the same run, and keep it if this one is interrupted too.

    Attributes:
        kept: what was there already.
    """

    def __init__(self, target: Path, facts: Mapping[str, Any], *, resume: bool) -> None:
        key = hashlib.sha256(to_json(facts, ascii_only=True).encode()).hexdigest()[:12]
        self._target, self._resume = target, resume
        self._partial = target.with_name(f"{target.name[:100]}.{key}{_SUFFIX}")
        self.kept = Kept()

    @contextlib.contextmanager
    def opened(self) -> Iterator[IO[str]]:
        """Open the partial file behind its last whole line; after the block it is the target.

        Raises:
            UsageError: the folder cannot be written.
            MachineError: the disk is full, or another process writes these answers.
            InputError: that of the block; where answers are kept, it says so.
        """
        try:
            # Read too, for the lines are counted; never through a link that someone else has laid.
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
            descriptor = os.open(self._partial, flags, 0o666)
        except OSError as error:
            raise UsageError(f"cannot write --output {self._target}: {error.strerror}") from None
        try:
            with os.fdopen(descriptor, "r+", encoding="utf-8", errors="backslashreplace") as file:
                self._lock(file)
                size, count = whole_lines(file.fileno()) if self._resume else (0, 0)
                file.truncate(size)
                self.kept = Kept(count, sum(line.startswith(ERROR_MARK) for line in file))
                file.seek(size)
                try:
                    yield file
                except InputError as error:
                    raise self._with_kept(error, file) from None
                file.flush()
                os.fsync(file.fileno())
                self._partial.replace(self._target)
                self._clean_up()
        except OSError as error:
            self._forget()
            raise MachineError(f"cannot write {self._target}: {error.strerror}; {self._kept()}") from None
        except BaseException:
            self._forget()
            raise

    def _lock(self, file: IO[str]) -> None:
        if not _locked(file):
            self._resume = True  # the other process's file stays
            raise MachineError(f"another process writes {self._partial}; wait for it, or end it")

    def _forget(self) -> None:
        if not self._resume:
            self._partial.unlink(missing_ok=True)

    def _clean_up(self) -> None:
        """Remove what earlier runs of the same target left when they were killed."""
        for path in self._target.parent.iterdir():
            if path.name.startswith(f"{self._target.name[:100]}.") and _LEFTOVER.search(path.name):
                with contextlib.suppress(OSError), path.open("rb") as file:
                    if _locked(file):
                        path.unlink()

    def _with_kept(self, error: InputError, file: IO[str]) -> InputError:
        """The error of a bad line; where the answers to those before it are kept, with how to go on."""
        file.flush()
        count = whole_lines(file.fileno())[1]
        if not self._resume or not count:
            return error
        # `input_facts` tells a new file under the old name from this one.
        return InputError(
            f"{error}\n  {count:,} answers are kept in {self._partial}. Run again with --resume: with --on-error write "
            "too, or with the line mended in place (a new file under the same name, as sed -i makes, is another input)"
        )

    def _kept(self) -> str:
        return "--resume goes on from what is there" if self._resume else "nothing was changed"


def input_facts(source: str) -> dict[str, Any]:
    """What tells one input file from another: its place, its inode and how it begins. More lines may follow later.

    Raises:
        UsageError: standard input, which cannot be read again from its beginning, or no such file.
    """
    if source == "-":
        raise UsageError("--resume reads the input again from its beginning; give --input FILE, not standard input")
    try:
        with Path(source).open("rb") as file:
            facts = os.fstat(file.fileno())
            # The first line stays what it is where lines are added.
            head = hashlib.sha256(file.readline(_HEAD_BYTES)).hexdigest()
    except OSError as error:
        raise UsageError(f"cannot read {source}: {error.strerror}") from None
    return {"path": str(Path(source).absolute()), "inode": [facts.st_dev, facts.st_ino], "begins": head}


def _locked(file: IO[Any]) -> bool:
    """Lock a file for this process, unless another one has."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def whole_lines(descriptor: int) -> tuple[int, int]:
    """Return the bytes up to the end of the last whole line of a file, and how many lines those are."""
    size = lines = offset = 0
    while block := os.pread(descriptor, _BLOCK, offset):
        if found := block.count(b"\n"):
            lines += found
            size = offset + block.rindex(b"\n") + 1
        offset += len(block)
    return size, lines
