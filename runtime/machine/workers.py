"""Runs of many batches go on at once on a few threads that all pipelines of a process share."""

from __future__ import annotations

import collections
import itertools
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

from pinnace.runtime.machine import threads

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

Job = TypeVar("Job")
Result = TypeVar("Result")


class _Pool:
    """The threads of this process, started when the first job comes."""

    lock = threading.Lock()
    executor: ThreadPoolExecutor | None = None


def run_in_order(work: Callable[[Job], Result], jobs: Iterable[Job], at_once: int) -> Iterator[Result]:
    """Yield the result of each job in the order of the jobs, while the next ones run already.

    What the caller does with a result, it does while others are computed. When it stops early or a job fails, jobs that
    wait are dropped, and those that run are waited for.

    Args:
        work: what makes a result of a job; called from other threads.
        jobs: read as far as needed.
        at_once: how many jobs may be under way.
    """
    source = iter(jobs)
    executor = _executor()
    # One more than may run waits ready, so that no thread stands still while a result is looked at.
    line: collections.deque[Future[Result]] = collections.deque()
    running = threading.BoundedSemaphore(at_once)

    def limited(job: Job) -> Result:
        with running:
            return work(job)

    try:
        line.extend(executor.submit(limited, job) for job in itertools.islice(source, at_once + 1))
        while line:
            result = line.popleft().result()
            line.extend(executor.submit(limited, job) for job in itertools.islice(source, 1))
            yield result
    finally:
        for future in line:
            future.cancel()
        for future in line:
            if not future.cancelled():
                future.exception()


def _executor() -> ThreadPoolExecutor:
    with _Pool.lock:
        if _Pool.executor is None:
            from concurrent.futures import ThreadPoolExecutor  # 10 ms, which a single batch does not need

            # Sessions wait for cores themselves; a few threads more than cores keep small pipelines from starving.
            _Pool.executor = ThreadPoolExecutor(2 * threads.granted_cores(), thread_name_prefix="pinnace-worker")
        return _Pool.executor


def _after_fork() -> None:
    _Pool.lock, _Pool.executor = threading.Lock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
