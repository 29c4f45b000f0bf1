"""The processes of a run: where they run, what they are told, what the kernel says of them."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pinnace.bench import limits
from pinnace.bench.children import Run, Server, run_child
from pinnace.bench.machine import Energy, Usage
from pinnace.bench.plan import PROGRAM, CandidatePlan, PointPlan
from pinnace.bench.profile.flops import RowCost

_WORKER: Final = ("-m", "pinnace.bench.worker")
_LIMIT_SECONDS: Final = 0.15
_IDLE_SECONDS: Final = 1.0


class Workplace:
    """A folder in which measured programs run: it holds nothing but a link to this package.

    So a peer's Python, in whose environment Pinnace is not installed, finds the few files of it that need only the
    standard library, and none of this environment's packages.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / "pinnace").symlink_to(Path(__file__).resolve().parent.parent)

    def server(self, program: str, options: Mapping[str, Any], python: str | None = None) -> Server:
        """Start a program that serves."""
        words = [python or sys.executable, *_WORKER, program, json.dumps(dict(options))]
        return Server(words, threads=options["threads"], folder=self._folder, variables=self._variables(python))

    def cold_start(self, plan: CandidatePlan, job: Mapping[str, Any]) -> Run:
        """Start a program, let it answer once, and end it."""
        words = [plan.python or sys.executable, *_WORKER, plan.program, json.dumps(dict(plan.options))]
        words.append(json.dumps(dict(job)))
        return run_child(words, threads=plan.threads, folder=self._folder, variables=self._variables(plan.python))

    def cost(self, plan: CandidatePlan) -> RowCost:
        """Count what a row of a bundle's variant costs."""
        options = json.dumps({"model": str(plan.bundle.path), "precision": plan.precision})
        words = [sys.executable, "-m", "pinnace.bench.profile.flops", options]
        found = json.loads(run_child(words, threads=plan.threads, folder=self._folder).output)
        return RowCost(tuple(found["coefficients"]), found["weight_bytes"], found["token_bytes"])

    def _variables(self, python: str | None) -> dict[str, str]:
        # A peer's environment must not be mixed with this one's.
        return {} if python is None else {"PYTHONPATH": "", "PYTHONNOUSERSITE": "1"}


class Meter:
    """A running candidate, and the figures of its process."""

    def __init__(self, place: Workplace, plan: CandidatePlan) -> None:
        self.plan = plan
        self.server = place.server(plan.program, plan.options, plan.python)
        self._usage = Usage(self.server.pid)
        self._energy = Energy()
        self.ready = self.server.ready

    def prepare(self, point: PointPlan) -> dict[str, Any]:
        """Build a point's queries and answer the first."""
        return self.server.ask(op="prepare", name=point.key, job=dict(point.job))

    def block(self, point: PointPlan, seconds: float, least: int = 1) -> dict[str, Any]:
        """Ask queries for so long; what is given is that of `pinnace.bench.loop.TimedJob.closed`, and ``energy``."""
        before = self._energy.read()
        found = self.server.ask(
            op="closed", name=point.key, seconds=seconds, least=least, concurrency=point.concurrency
        )
        found["energy"] = self._energy.joules(before, self._energy.read()) if self._energy.there else None
        return found

    def rest(self) -> dict[str, float | None]:
        """What the process takes when nothing is asked of it: memory, its peak before, and CPU."""
        share = self._usage.idle_share(_IDLE_SECONDS)
        settled, peak = self._usage.memory()
        return {"idle_cpu": share, "settled_bytes": settled, "peak_bytes": peak}


class LimitMeter:
    """The machine's own rates with so many threads, measured in the candidates' rounds."""

    def __init__(self, place: Workplace, threads: int, shape: tuple[int, int, int] | None = None) -> None:
        self.server = place.server("limits", {"threads": threads})
        self.shape = shape or self._fastest()
        self._flop = self._prepare(limits.GEMM, self.shape)
        self._bytes = self._prepare(limits.MEMORY)

    def measure(self, seconds: float = _LIMIT_SECONDS) -> tuple[float, float]:
        """FLOP/s of the multiplication and bytes/s of memory."""
        return self._rate(limits.GEMM, self._flop, seconds), self._rate(limits.MEMORY, self._bytes, seconds)

    def _prepare(self, kind: str, shape: tuple[int, int, int] | None = None) -> float:
        return float(self.server.ask(op="prepare", name=kind, job={"kind": kind, "shape": shape})["tokens"])

    def _rate(self, kind: str, size: float, seconds: float) -> float:
        found = self.server.ask(op="closed", name=kind, seconds=seconds, least=2, concurrency=1)
        return size / float(statistics.median(found["latency"]))  # the statistic of `pinnace.bench.profile.limits`

    def _fastest(self) -> tuple[int, int, int]:
        """The shape that the machine multiplies fastest: the limit is the best that it can."""
        rates = {}
        for shape in limits.SHAPES:
            size = self._prepare(limits.GEMM, shape)
            rates[shape] = max(self._rate(limits.GEMM, size, 2 * _LIMIT_SECONDS) for _ in range(3))
        return max(rates, key=lambda shape: rates[shape])


def now() -> str:
    """The time in UTC, ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def is_own(plan: CandidatePlan) -> bool:
    """Whether a candidate runs a bundle of ours, whose graph can be counted."""
    return plan.program == PROGRAM
