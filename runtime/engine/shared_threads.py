"""One pool of threads for all sessions of a process, in place of one for each session."""

from __future__ import annotations

import os
from typing import Final

from pinnace.errors import MachineError, UsageError
from pinnace.runtime.engine.ort import onnxruntime
from pinnace.runtime.machine import threads

_FUNCTION: Final = "set_global_thread_pool_sizes"


class _State:
    """What this process has decided; ONNX Runtime lets it decide once.

    Attributes:
        count: threads of the shared pool, None where every session has its own.
        opened: whether a session was opened already.
        forked: whether this is a forked child, which has the pool but none of its threads.
    """

    count: int | None = None
    opened = False
    forked = False


def share_threads(count: int | None = None) -> int:
    """Let all sessions of this process run on one pool of threads. Call it before the first session is opened.

    ONNX Runtime then refuses sessions that want threads of their own, other libraries' sessions included. Its shared
    pool always waits busily for a few hundredths of a second after a run, and does not survive a fork.

    Args:
        count: threads of the pool; None takes ``PINNACE_THREADS`` or what this process is granted.

    Returns:
        Threads of the pool.

    Raises:
        UsageError: a session was opened already, or the pool has another size.
        MachineError: this onnxruntime cannot do it.
    """
    wanted = threads.thread_count(count)
    if _State.count == wanted:
        return wanted
    if _State.count is not None:
        raise UsageError(f"the shared pool has {_State.count} threads, got {wanted}; a process sets it once")
    if _State.opened:
        raise UsageError("share_threads() came after the first session was opened; call it at the start of the program")
    if not hasattr(onnxruntime, _FUNCTION):
        raise MachineError(
            f"this onnxruntime {onnxruntime.__version__} has no {_FUNCTION}, which a shared pool needs.\n"
            "  pip install --upgrade onnxruntime, or give each pipeline threads=1 and replicas=N"
        )
    getattr(onnxruntime, _FUNCTION)(wanted, 1)
    _State.count = wanted
    return wanted


def shared_count() -> int | None:
    """Return the threads of the shared pool, None where every session has its own."""
    return _State.count


def opening() -> None:
    """Note that a session is opened now.

    Raises:
        MachineError: a forked child would wait for ever for the threads of a pool that its parent shared.
    """
    _State.opened = True
    if _State.forked and _State.count is not None:
        raise MachineError(
            "this process was forked from one with shared threads, and a fork has none of them. "
            "Start workers with 'spawn' or 'forkserver', or call share_threads() in each worker only"
        )


def _after_fork() -> None:
    _State.forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
