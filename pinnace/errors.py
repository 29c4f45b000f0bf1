"""Every error a user can meet: what happened, what was got, what was expected, what to do.

Each class carries the exit code of the command line, so that the two never disagree.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class PinnaceError(Exception):
    """Base of all errors of Pinnace; the text is complete and fit for a terminal."""

    exit_code = 1


class CheckFailed(PinnaceError):
    """A check ran and the result is not acceptable: parity, accuracy, verify, a number that is NaN."""

    exit_code = 1


class NumericalError(CheckFailed, ArithmeticError):
    """A model produced NaN or infinity where a number was needed, or options left nothing to choose from.

    Attributes:
        results: where rows of a batch failed and others did not, all that the call would have returned; else None.
    """

    results: Any = None


class UsageError(PinnaceError, ValueError):
    """The caller asked for something that does not exist or does not fit: a word, an option, an input."""

    exit_code = 2


class InputError(UsageError):
    """An input tensor or text that the model cannot take: name, got, expected, remedy."""


class ConfigError(PinnaceError, ValueError):
    """A config.json with a wrong type, an impossible combination or an unknown key."""

    exit_code = 3


class CheckpointError(PinnaceError):
    """A checkpoint folder that is missing, unsafe, damaged or does not hold what the model needs."""

    exit_code = 3


class BundleError(PinnaceError):
    """A bundle that is missing, unsafe, damaged or altered."""

    exit_code = 3


class MissingExtra(PinnaceError, ImportError):
    """An optional dependency is not installed; the text has the exact ``pip install`` line."""

    exit_code = 4

    def __init__(self, extra: str, needed_for: str) -> None:
        super().__init__(f"{needed_for} needs packages that are not installed.\n  pip install 'pinnace[{extra}]'")
        self.extra = extra


class MachineError(PinnaceError):
    """The machine cannot do it: disk, memory, provider, or another process holds the folder."""

    exit_code = 5


class DeadlineExceeded(MachineError, TimeoutError):
    """A run was stopped because its time limit passed or it was cancelled."""


def unknown_word(kind: str, got: str, choices: Iterable[str]) -> UsageError:
    """Build the error for a word that is not in a table: it lists the choices and names the nearest.

    Args:
        kind: what the word stands for, such as ``"task"``.
        got: the word as the user wrote it.
        choices: every valid word.
    """
    known = sorted(choices)
    near = nearest_word(got, known)
    hint = f" Did you mean {near!r}?" if near else ""
    return UsageError(f"unknown {kind} {got!r}.{hint}\n  known: {', '.join(known)}")


def nearest_word(word: str, known: Iterable[str], cutoff: float = 0.5) -> str | None:
    """Return the known word that is most like one which was not found, capitals aside; None where none is.

    Args:
        word: as the user wrote it.
        known: what it could have been.
        cutoff: how like it must be, from 0 to 1.
    """
    import difflib  # for texts of errors alone; it takes 2 ms

    small = {each.lower(): each for each in known}
    found = difflib.get_close_matches(word.lower(), list(small), n=1, cutoff=cutoff)
    return small[found[0]] if found else None
