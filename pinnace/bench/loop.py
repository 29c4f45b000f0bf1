"""What runs inside a measured process: it answers requests, and its clock stands here, so that pipes do not count.

Only the standard library is imported, so that peers' environments can run it.
"""

from __future__ import annotations

import gc
import itertools
import json
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from pinnace.bench.machine import install_bytes, versions

Seen = Callable[[], None]
# The last part of a trial of the server scenario, in which a queue that never empties has grown.
_LAST_PART: Final = 0.1


@dataclass(frozen=True)
class Prepared:
    """A job that is ready to run. Its queries may be asked from several threads.

    Attributes:
        sizes: of each query: its texts (rows), and its tokens without padding.
        ask: answers the query of a number; a generator tells each step of new tokens as it comes.
        read: gives what is answered: rows of numbers or of tokens, or texts, to compare with other programs'. Of token
            ids Pinnace gives such rows for each output of its graph.
    """

    sizes: Sequence[tuple[int, int]]
    ask: Callable[[int, Seen], Any]
    read: Callable[[], list[Any]]


class Program(Protocol):
    """A program that is measured; ``distribution`` names its package, for the size of its installation."""

    distribution: str

    def prepare(self, job: Mapping[str, Any]) -> Prepared:
        """Build the queries of a job."""


class TimedJob:
    """A prepared job: its queries, and how they are timed."""

    def __init__(self, prepared: Prepared) -> None:
        self._query, self._queries = prepared.ask, prepared.sizes
        self._next = 0
        self._lock = threading.Lock()

    @property
    def tokens(self) -> float:
        """Tokens of a query, on average."""
        return sum(tokens for _, tokens in self._queries) / len(self._queries)

    def closed(self, seconds: float, least: int, concurrency: int) -> dict[str, Any]:
        """Ask one query behind another in each of ``concurrency`` threads, for so long and at least ``least`` in each.

        Returns:
            ``latency`` of each query, ``first_token`` and ``inter_token`` times of generators, ``seconds`` and ``cpu``
            in all, ``texts`` and ``tokens`` that were answered.
        """
        log = _Log()

        def ask(end: float) -> None:
            done = 0
            while done < least or time.perf_counter() < end:
                log.add(self._timed(self._take()))
                done += 1

        return log.measured(lambda start: _in_threads(lambda: ask(start + seconds), concurrency))

    def arriving(
        self, rate: float, count: int, bound: float, most_late: int, seed: int, concurrency: int
    ) -> dict[str, Any]:
        """Let queries arrive at random (Poisson), and answer each as soon as one of ``concurrency`` threads is free.

        A query's time runs from its arrival. The trial ends as soon as more than ``most_late`` queries took longer
        than ``bound`` seconds.

        Returns:
            As `closed`; ``stopped``: whether the trial ended early; ``behind``: the shortest wait in seconds in the
            trial's last part. A queue that empties now and then makes it nothing, however long single queries wait.
        """
        arrivals, log = _arrivals(rate, count, seed), _Log()
        waiting, waits, late = iter(enumerate(arrivals)), [0.0] * count, 0
        stopped = threading.Event()

        def serve(start: float) -> None:
            nonlocal late
            while not stopped.is_set():
                with self._lock:
                    place, arrival = next(waiting, (count, 0.0))
                if place == count:
                    return
                if (left := start + arrival - time.perf_counter()) > 0:
                    time.sleep(left)
                waits[place] = time.perf_counter() - start - arrival
                index, size = self._take()
                self._query(index, _unheard)
                taken = time.perf_counter() - start - arrival
                log.add((taken, [], size))
                with self._lock:
                    late += taken > bound
                    if late > most_late:
                        stopped.set()

        found = log.measured(lambda start: _in_threads(lambda: serve(start), concurrency))
        behind = min(waits[-max(1, int(_LAST_PART * count)) :])
        return {**found, "stopped": stopped.is_set(), "behind": max(0.0, behind)}

    def _take(self) -> tuple[int, tuple[int, int]]:
        with self._lock:
            index, self._next = self._next, (self._next + 1) % len(self._queries)
        return index, self._queries[index]

    def _timed(self, taken: tuple[int, tuple[int, int]]) -> tuple[float, list[float], tuple[int, int]]:
        index, size = taken
        steps: list[float] = []
        clock = time.perf_counter
        start = clock()
        self._query(index, lambda: steps.append(clock()))
        end = clock()
        return end - start, [step - start for step in steps], size


class _Log:
    """Times of queries, gathered from several threads."""

    def __init__(self) -> None:
        self._rows: list[tuple[float, list[float], tuple[int, int]]] = []

    def add(self, row: tuple[float, list[float], tuple[int, int]]) -> None:
        self._rows.append(row)  # appending to a list is safe among threads

    def measured(self, act: Callable[[float], None]) -> dict[str, Any]:
        """Do it and sum up; it is told when the clock started, since collecting garbage takes time before."""
        gc.collect()
        cpu, start = time.process_time(), time.perf_counter()
        act(start)
        seconds, used = time.perf_counter() - start, time.process_time() - cpu
        stepped = [steps for _, steps, _ in self._rows if steps]
        return {
            "latency": [latency for latency, _, _ in self._rows],
            "first_token": [steps[0] for steps in stepped],
            "inter_token": [after - before for steps in stepped for before, after in itertools.pairwise(steps)],
            "seconds": seconds,
            "cpu": used,
            "texts": sum(texts for _, _, (texts, _) in self._rows),
            "tokens": sum(tokens for _, _, (_, tokens) in self._rows),
        }


def _arrivals(rate: float, count: int, seed: int) -> list[float]:
    """Seconds at which queries arrive: Poisson's, given that so many arrive at this rate, which is then exact."""
    draw = random.Random(seed)  # noqa: S311 - arrivals, not secrets
    times = list(itertools.accumulate(draw.expovariate(1.0) for _ in range(count)))
    return [time * count / rate / times[-1] for time in times]


def _unheard() -> None:
    """A step that nobody times."""


def _in_threads(act: Callable[[], None], count: int) -> None:
    """Do it ``count`` times at once; what fails in a thread fails here."""
    if count == 1:
        act()
        return
    failed: list[BaseException] = []

    def guarded() -> None:
        try:
            act()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=guarded) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


def serve(load: Callable[[], Program]) -> None:
    """Load, then answer each line of JSON on standard input with one on standard output, until it ends."""
    # What libraries print must not mix with the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    start = time.perf_counter()
    program = load()
    answer({"load_s": time.perf_counter() - start, "import_s": getattr(program, "import_s", None)})
    work: dict[str, TimedJob] = {}
    for line in sys.stdin:
        request = json.loads(line)
        operation = request.pop("op")
        if operation == "prepare":
            name, job = request["name"], request["job"]
            prepared = program.prepare(job)
            work[name] = TimedJob(prepared)
            first = time.perf_counter()
            prepared.ask(0, _unheard)
            answer({"first_inference_s": time.perf_counter() - first, "tokens": work[name].tokens})
        elif operation == "facts":
            found = {"versions": versions(), "install_bytes": install_bytes(program.distribution)}
            answer(found)
        elif operation == "outputs":
            answer({"outputs": program.prepare(request["job"]).read()})
        else:
            answer(getattr(work[request.pop("name")], operation)(**request))
