"""Micro-batches: what has come while a run was under way is answered together by the next one."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import threading
from concurrent.futures import Future
from typing import Any, Final

from pinnace.errors import DeadlineExceeded
from pinnace.runtime.call_options import CallOptions
from pinnace.runtime.cancellation import Cancellation
from pinnace.runtime.pipeline_base import Pipeline
from pinnace.runtime.server.views import view
from pinnace.runtime.server.work import Call

# Inputs of several requests that one call takes together: full batches for small ones, and none waits long for others'.
MERGED: Final = 64


class Batcher:
    """Answers inputs of many requests with one pipeline, in one thread, those with equal options together.

    Each request gets what it would get alone: a row's result does not depend on its batch mates, and where a call of
    several requests fails, each is answered anew by itself.

    Args:
        pipe: a pipeline of an encoder.
    """

    def __init__(self, pipe: Pipeline[Any]) -> None:
        self._lengths: list[int] = []
        self._pipe = view(pipe, batches=self._counting(pipe))
        self._lock = threading.Lock()
        self._come = threading.Condition(self._lock)
        self._waiting: collections.deque[_Job] = collections.deque()
        self._group: _Group | None = None
        threading.Thread(target=self._work, name="pinnace-batcher", daemon=True).start()

    @property
    def waiting(self) -> int:
        """Inputs that wait for the next run."""
        with self._lock:
            return sum(len(job.items) for job in self._waiting)

    @property
    def running(self) -> int:
        """Inputs of the run under way."""
        with self._lock:
            return 0 if self._group is None else sum(len(job.items) for job in self._group.jobs)

    def answer(self, call: Call, items: list[Any], options: CallOptions) -> list[Any]:
        """Answer checked inputs, as `Pipeline.answer` does, when their turn comes.

        Raises:
            DeadlineExceeded: the call was cancelled.
            PinnaceError: as the pipeline.
        """
        plain = dataclasses.replace(options, cancellation=None)
        job = _Job(self, call, items, plain)
        with self._lock:
            self._waiting.append(job)
            self._come.notify()
        with call.watching(job):
            return job.results.result()

    def leave(self, job: _Job) -> None:
        """Stop waiting for a job; its run is stopped where nobody else waits for it."""
        with self._lock:
            if job in self._waiting:
                self._waiting.remove(job)
            if not job.results.done():
                job.results.set_exception(DeadlineExceeded("the call was cancelled"))
            if self._group is not None and all(mate.results.done() for mate in self._group.jobs):
                self._group.run.cancel()

    def _work(self) -> None:
        while True:
            with self._come:
                self._group = None
                while not self._waiting:
                    self._come.wait()
                group = self._group = _Group(self._take())
            self._answer(group)

    def _take(self) -> list[_Job]:
        """Take the job that came first, and those behind it with equal options while there is room."""
        first = self._waiting.popleft()
        taken, size = [first], len(first.items)
        for job in list(self._waiting):
            if size + len(job.items) <= MERGED and job.options == first.options:
                self._waiting.remove(job)
                taken.append(job)
                size += len(job.items)
        return taken

    def _answer(self, group: _Group) -> None:
        jobs = group.jobs
        options = dataclasses.replace(jobs[0].options, cancellation=group.run)
        self._lengths.clear()
        try:
            results = list(self._pipe.answer([item for job in jobs for item in job.items], options))
        except BaseException as error:  # a library's panic must not end the thread that all requests need
            self._failed(jobs, error)
            return
        first = 0
        for job, tokens in zip(jobs, self._tokens(jobs), strict=True):
            job.finish(results[first : first + len(job.items)], None, tokens)
            first += len(job.items)

    def _tokens(self, jobs: list[_Job]) -> list[int]:
        """Tokens of each job's rows in the last run; 0 where the rows of several jobs cannot be told apart."""
        if len(jobs) == 1:
            return [sum(self._lengths)]
        ends = list(itertools.accumulate(job.rows for job in jobs))
        if ends[-1] != len(self._lengths):
            return [0] * len(jobs)
        return [sum(self._lengths[end - job.rows : end]) for job, end in zip(jobs, ends, strict=True)]

    def _failed(self, jobs: list[_Job], error: BaseException) -> None:
        if len(jobs) == 1:
            jobs[0].finish([], error)
            return
        for job in jobs:
            if not job.results.done():
                with self._lock:
                    group = self._group = _Group([job])
                self._answer(group)

    def _counting(self, pipe: Pipeline[Any]) -> Any:
        """The pipeline's `batches`, which also notes the rows' tokens."""

        def batches(encodings: Any, options: Any) -> Any:
            self._lengths += [len(encoding) for encoding in encodings]
            return pipe.batches(encodings, options)

        return batches


class _Job:
    """One request's inputs; it takes the place of ``RunOptions`` in the request's `Call`."""

    def __init__(self, batcher: Batcher, call: Call, items: list[Any], options: CallOptions) -> None:
        self.items, self.options = items, options
        self.results: Future[list[Any]] = Future()
        self._batcher, self._call = batcher, call

    @property
    def rows(self) -> int:
        """Rows that the inputs become, where that is certain: one each, or one for each document of a query."""
        return sum(len(item[1]) if isinstance(item, tuple) and isinstance(item[1], list) else 1 for item in self.items)

    @property
    def terminate(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.results.done()

    @terminate.setter
    def terminate(self, _value: bool) -> None:
        self._batcher.leave(self)

    def finish(self, results: list[Any], error: BaseException | None, tokens: int = 0) -> None:
        """Hand over results or an error, unless the request has left."""
        with self._batcher._lock:
            if self.results.done():
                return
            self._call.tokens_in += tokens
            if error is None:
                self.results.set_result(results)
            else:
                self.results.set_exception(error)


class _Group:
    """The jobs of one run, and the switch that stops it."""

    def __init__(self, jobs: list[_Job]) -> None:
        self.jobs = jobs
        self.run = Cancellation()
