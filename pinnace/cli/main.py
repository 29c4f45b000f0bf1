"""The command line: finds the command, runs it, and turns every error into a line and an exit code."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pinnace import __version__
from pinnace.cli.commands import COMMANDS
from pinnace.cli.flags import ON, help_text, read_arguments
from pinnace.cli.output import Console, drop_what_is_buffered
from pinnace.errors import MachineError, PinnaceError, UsageError, unknown_word

INTERRUPTED: Final = 130
TERMINATED: Final = 128 + signal.SIGTERM
_MEMORY_WORDS: Final = (
    "not enough memory",
    "can't allocate memory",
    "out of memory",
    "bad_alloc",
    "failed to map segment",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments without the program's name; None takes those of the process.

    Returns:
        The exit code: 0 done, 1 a check failed, 2 usage, 3 bad checkpoint or bundle, 4 a missing extra, 5 the machine
        cannot, 130 interrupted, 143 terminated.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    console = Console()
    console.verbose = _wants_traceback(words)
    try:
        with _ending_tidily():
            return _dispatch(words, console)
    except PinnaceError as error:
        console.error(str(error), error)
        return error.exit_code
    except BrokenPipeError:
        drop_what_is_buffered(sys.stdout)  # whoever reads has read enough
        return 0
    except KeyboardInterrupt:
        console.error("interrupted")
        return INTERRUPTED
    except _TerminatedError:
        console.error("terminated")
        return TERMINATED
    except (SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # libraries in Rust raise panics that are no Exception
        return _unexpected(error, console)


_AGAIN_SECONDS: Final = 1.0


class _TerminatedError(BaseException):
    """The process was asked to end (SIGTERM): whatever is open is closed on the way out."""


@contextlib.contextmanager
def _ending_tidily() -> Iterator[None]:
    """Let SIGTERM, as containers and batch systems send it, and Ctrl-C remove temporary folders and child processes.

    A caller that has a handler of its own, or that runs commands in a thread, keeps what it has.
    """
    usual = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    ours = [number for number, handler in usual.items() if signal.getsignal(number) == handler]
    if threading.current_thread() is not threading.main_thread() or not ours or not hasattr(signal, "setitimer"):
        yield
        return
    errors: dict[int, type[BaseException]] = {signal.SIGTERM: _TerminatedError, signal.SIGINT: KeyboardInterrupt}
    asked: type[BaseException] | None = None

    def end(number: int, _frame: Any) -> None:
        nonlocal asked
        if number != signal.SIGINT and _is_ending(sys.exception()):
            return
        asked = errors.get(number, asked)
        # What is raised within a callback of the interpreter, after a fork say, is dropped there: then ask again.
        signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)
        if asked is not None:
            raise asked

    before = {number: signal.signal(number, end) for number in (*ours, signal.SIGALRM)}
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked is not None:  # it was dropped, and the command came to its end sooner than it was asked again
        raise asked


def _is_ending(handled: BaseException | None) -> bool:
    """Whether the end that was asked for is on its way, so that what is being closed must not be disturbed."""
    while handled is not None and not isinstance(handled, (_TerminatedError, KeyboardInterrupt)):
        handled = handled.__context__
    return handled is not None


def _dispatch(words: list[str], console: Console) -> int:
    # Flags that all commands share may stand before the command.
    place = next((i for i, word in enumerate(words) if not word.startswith("-")), len(words))
    before, name, rest = words[:place], words[place : place + 1], words[place + 1 :]
    if {"--version", "-V"} & {*before}:
        console.result(f"pinnace {__version__}")
        return 0
    if name == ["help"]:
        name, rest = rest[:1], [*rest[1:], "--help"]
    if not name:
        if before and not {"-h", "--help"} & {*before}:
            raise UsageError(f"{before[0]} comes with a command, one of {', '.join(COMMANDS)}, or see pinnace --help")
        console.result(overview())
        return 0
    if name[0] == "version":
        raise UsageError("unknown command 'version'. Did you mean pinnace --version?")
    if name[0] not in COMMANDS:
        raise unknown_word("command", name[0], COMMANDS)
    command = COMMANDS[name[0]]
    arguments = read_arguments(command, [*before, *rest], os.environ)
    if getattr(arguments, "help", False):
        console.result(help_text(command))
        return 0
    console.quiet, console.verbose, console.json = arguments.quiet, arguments.verbose, arguments.json
    module, _, function = command.run.partition(":")
    with _own_warnings(console):
        code: int = getattr(importlib.import_module(module), function)(arguments, console)
    console.out.flush()
    return code


def overview() -> str:
    """The help of ``pinnace`` itself."""
    width = max(map(len, COMMANDS))
    lines = [
        "Pinnace carries BERT and Apertus checkpoints to machines without PyTorch: export, verify, run.",
        "",
        "usage: pinnace COMMAND [arguments] [flags]",
        "",
        *(f"  {command.name:<{width}}  {command.summary}" for command in COMMANDS.values()),
        "",
        "Flags of a command: pinnace COMMAND --help. Version: pinnace --version.",
        "Start with: pinnace export bert --task qa",
    ]
    return "\n".join(lines)


def _wants_traceback(words: Sequence[str], environ: Mapping[str, str] = os.environ) -> bool:
    """Whether a traceback was asked for; an error in the arguments comes before these are read."""
    flags = words[: words.index("--")] if "--" in words else words
    return any(word in ("-v", "--verbose") for word in flags) or environ.get("PINNACE_VERBOSE", "").lower() in ON


@contextlib.contextmanager
def _own_warnings(console: Console) -> Iterator[None]:
    """Print warnings of Pinnace as one line; those of libraries only where ``--verbose`` asks for more."""
    package = Path(__file__).parent.parent
    own = {package, *(p.resolve() for p in package.iterdir() if p.is_symlink())}

    def show(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
    ) -> None:
        if console.verbose or not own.isdisjoint(Path(filename).parents):
            console.warn(str(message))

    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = show
        yield


def _unexpected(error: BaseException, console: Console) -> int:
    text = " ".join(str(error).split())[:300]
    if isinstance(error, MemoryError) or any(word in text.lower() for word in _MEMORY_WORDS):
        console.error(
            f"not enough memory: {text or 'the machine gave no more'}. Use a smaller model, or free some", error
        )
        return MachineError.exit_code
    if isinstance(error, OSError) and error.errno is not None:
        where = f" ({error.filename})" if error.filename else ""
        console.error(f"the machine refused: {error.strerror}{where}", error)
        return MachineError.exit_code
    hint = "" if console.verbose else "\n  This is a fault of Pinnace; -v shows where."
    console.error(f"unexpected {type(error).__name__}: {text}{hint}", error)
    return PinnaceError.exit_code
