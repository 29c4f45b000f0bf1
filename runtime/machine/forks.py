"""What begins anew in a forked child: locks that the parent's threads may hold, which nobody there would free."""

from __future__ import annotations

import contextlib
import os
import weakref
from typing import Final, Protocol


class Renewable(Protocol):
    """An object with locks."""

    def renew(self) -> None:
        """Make the locks anew, and forget what the parent's threads were doing."""


_ALL: Final[weakref.WeakSet[Renewable]] = weakref.WeakSet()


def renew_in_children(owner: Renewable) -> None:
    """Renew an object in every child that is forked while it lives."""
    _ALL.add(owner)


def _after_fork() -> None:
    # All are renewed, whatever one of them raises: a lock that stayed as it was would hang the child. Python prints it.
    with contextlib.ExitStack() as renewals:
        for owner in list(_ALL):
            renewals.callback(owner.renew)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
