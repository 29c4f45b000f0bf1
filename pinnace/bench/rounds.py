"""The run itself: candidates in processes of their own take turns, A B C A B C, so that a slow minute hits all."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from pinnace.bench.children import ChildFailed
from pinnace.bench.jobs import IDS, PROMPT
from pinnace.bench.plan import CandidatePlan, Plan, PointPlan
from pinnace.bench.processes import LimitMeter, Meter, Workplace, is_own
from pinnace.bench.profile.flops import RowCost
from pinnace.bench.rate_search import (
    RateSearch,
    most_late,
    never_holds,
    queries_needed,
    search_from,
    steps_up,
    trial_queries,
    tried,
)
from pinnace.bench.results import RatePoint
from pinnace.bench.worker import PEERS

Progress = Callable[[str], None]
CPU: Final = "cpu"
_CURVE_POINTS: Final = 4
_IDLE_QUERIES: Final = 5
_WARM_SECONDS: Final = 0.3


@dataclasses.dataclass
class Raw:
    """All that was measured, before it is judged. Keys are candidates' names and points' keys.

    Attributes:
        starts: of a candidate by measure: one value for each fresh process.
        facts: of a candidate: its versions and the size of its installation.
        blocks: of a candidate at a point: what each round gave, in order.
        curves: of a candidate at a point of the server scenario: the rates that were tried.
        highest: of the same: the highest rate held, for each start; None where none was.
        limits: FLOP/s and bytes/s of each round, by threads.
        costs: of a candidate: what its graph costs.
        outputs: of a candidate by point: what it answered, one list for each output; a peer tells its first.
        missing: of a candidate: why it was not measured.
    """

    starts: dict[str, dict[str, list[float]]] = dataclasses.field(default_factory=lambda: defaultdict(_lists))
    facts: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    blocks: dict[tuple[str, str], list[dict[str, Any]]] = dataclasses.field(default_factory=lambda: defaultdict(list))
    curves: dict[tuple[str, str], list[RatePoint]] = dataclasses.field(default_factory=lambda: defaultdict(list))
    highest: dict[tuple[str, str], list[float | None]] = dataclasses.field(default_factory=lambda: defaultdict(list))
    limits: dict[int, list[tuple[float, float]]] = dataclasses.field(default_factory=lambda: defaultdict(list))
    costs: dict[str, RowCost] = dataclasses.field(default_factory=dict)
    outputs: dict[tuple[str, str], list[Any]] = dataclasses.field(default_factory=dict)
    missing: dict[str, str] = dataclasses.field(default_factory=dict)


def _lists() -> dict[str, list[float]]:
    return defaultdict(list)


def measure(plan: Plan, progress: Progress) -> Raw:
    """Measure a plan.

    Args:
        plan: candidates, points and settings.
        progress: told what is done now.

    Raises:
        ChildFailed: a process of Pinnace itself ended with an error. A peer's is noted in ``missing``.
        UsageError: a server scenario whose percentile is no share between none and all.
    """
    if any(point.scenario == "server" for point in plan.points):
        queries_needed(plan.settings.percentile)
    with tempfile.TemporaryDirectory(prefix="pinnace-bench-") as name:
        return _Runner(plan, Workplace(Path(name)), progress).run()


def does(candidate: CandidatePlan, point: PointPlan) -> bool:
    """Whether a program can do a point's kind of job at all."""
    return is_own(candidate) or point.job["kind"] in PEERS[candidate.program]


class _Runner:
    def __init__(self, plan: Plan, place: Workplace, progress: Progress) -> None:
        self._plan, self._place, self._progress = plan, place, progress
        self._raw = Raw()
        self._shapes: dict[int, tuple[int, int, int]] = {}

    def run(self) -> Raw:
        settings = self._plan.settings
        for candidate in self._plan.candidates:
            if is_own(candidate) and candidate.device == CPU:
                self._progress(f"counting what a row costs: {candidate.name}")
                self._raw.costs[candidate.name] = self._place.cost(candidate)
            if not any(does(candidate, point) for point in self._plan.points):
                self._raw.missing[candidate.name] = f"{candidate.program} has no such job"
        shares = [len(range(start, settings.rounds, settings.starts)) for start in range(settings.starts)]
        for start, rounds in enumerate(shares):
            self._cold_starts(start)
            self._start(start, rounds)
        return self._raw

    def _present(self) -> list[CandidatePlan]:
        return [plan for plan in self._plan.candidates if plan.name not in self._raw.missing]

    def _cold_starts(self, start: int) -> None:
        for plan in self._present():
            point = next(point for point in self._plan.points if does(plan, point))
            self._progress(f"start {start + 1} of {self._plan.settings.starts}, cold: {plan.name}")
            with self._forgiving(plan):
                run = self._place.cold_start(plan, _smallest(point))
                self._raw.starts[plan.name]["cold_start_s"].append(run.wall)

    def _start(self, start: int, rounds: int) -> None:
        """One fresh process of each candidate, and its share of the rounds."""
        with contextlib.ExitStack() as stack:
            meters, warm = [], {}
            for plan in self._present():
                self._progress(f"start {start + 1} of {self._plan.settings.starts}, loading: {plan.name}")
                with self._forgiving(plan):
                    meter = Meter(self._place, plan)
                    stack.callback(meter.server.close)
                    warm[plan.name] = self._load(meter, first=start == 0)
                    meters.append(meter)
            limits = {}
            for threads in sorted({meter.plan.threads for meter in meters}):
                limits[threads] = LimitMeter(self._place, threads, self._shapes.get(threads))
                stack.callback(limits[threads].server.close)
                self._shapes[threads] = limits[threads].shape
            closed = [point for point in self._plan.points if point.scenario != "server"]
            for number in range(rounds):
                self._progress(f"start {start + 1} of {self._plan.settings.starts}, round {number + 1} of {rounds}")
                for threads, limit in limits.items():
                    self._raw.limits[threads].append(limit.measure())
                for point in closed:
                    for meter in self._able(meters, point):
                        with self._forgiving(meter.plan):
                            found = meter.block(point, self._plan.settings.round_s)
                            self._raw.blocks[meter.plan.name, point.key].append(found)
            for point in self._plan.points:
                if point.scenario == "server":
                    self._search(self._able(meters, point), point, warm)
            for meter in self._alive(meters):
                for name, value in meter.rest().items():
                    if value is not None:
                        self._raw.starts[meter.plan.name][name].append(value)
                if start == 0:
                    with self._forgiving(meter.plan):
                        self._outputs(meter)

    def _load(self, meter: Meter, first: bool) -> dict[str, dict[str, Any]]:
        """Prepare all points, warm up, and at the first start ask for facts; what the warm-up gave."""
        name, warm = meter.plan.name, {}
        starts = self._raw.starts[name]
        starts["load_s"].append(meter.ready["load_s"])
        if meter.ready["import_s"] is not None:
            starts["import_s"].append(meter.ready["import_s"])
        able = [point for point in self._plan.points if does(meter.plan, point)]
        for number, point in enumerate(able):
            prepared = meter.prepare(point)
            if number == 0:
                starts["first_inference_s"].append(prepared["first_inference_s"])
            warm[point.key] = meter.block(point, _WARM_SECONDS)
        if first:
            self._raw.facts[name] = meter.server.ask(op="facts")
        return warm

    def _outputs(self, meter: Meter) -> None:
        """Ask what is answered at each point, when nothing is measured any more."""
        for point in self._plan.points:
            if does(meter.plan, point):
                answered = meter.server.ask(op="outputs", job=dict(point.job))["outputs"]
                several = is_own(meter.plan) and point.job["kind"] == IDS
                self._raw.outputs[meter.plan.name, point.key] = answered if several else [answered]

    def _able(self, meters: Sequence[Meter], point: PointPlan) -> list[Meter]:
        return [meter for meter in self._alive(meters) if does(meter.plan, point)]

    def _alive(self, meters: Sequence[Meter]) -> list[Meter]:
        return [meter for meter in meters if meter.plan.name not in self._raw.missing]

    def _search(self, meters: Sequence[Meter], point: PointPlan, warm: dict[str, dict[str, Any]]) -> None:
        """Find each candidate's highest rate; their trials take turns."""
        searches = {}
        for meter in meters:
            if not self._is_hopeless(meter, point):
                searches[meter.plan.name] = self._new_search(meter.plan.name, point, warm[meter.plan.name][point.key])
        while waiting := [m for m in meters if m.plan.name in searches and not searches[m.plan.name].done]:
            for meter in waiting:
                search = searches[meter.plan.name]
                self._progress(f"server: {meter.plan.name} at {search.rate:.3g} queries/s")
                trial, served = self._trial(meter, point, search.rate)
                search.tell(trial.held, served)
        for meter in meters:
            name = meter.plan.name
            best = searches[name].found if name in searches else None
            if best and not self._raw.highest[name, point.key]:
                for rate in steps_up(best, _CURVE_POINTS):
                    self._trial(meter, point, rate)
            self._raw.highest[name, point.key].append(best)

    def _is_hopeless(self, meter: Meter, point: PointPlan) -> bool:
        """Whether a single query takes longer than the bound while the machine does nothing else."""
        settings = self._plan.settings
        assert settings.latency_bound_s is not None
        idle = meter.server.ask(op="closed", name=point.key, seconds=0.0, least=_IDLE_QUERIES, concurrency=1)
        return never_holds(idle["latency"], settings.percentile, settings.latency_bound_s)

    def _new_search(self, name: str, point: PointPlan, warm: dict[str, Any]) -> RateSearch:
        earlier = self._raw.highest[name, point.key]
        seed = f"{self._plan.settings.seed}/{name}/{point.key}/{len(earlier)}"
        capacity = len(warm["latency"]) / warm["seconds"]
        return search_from(capacity, [rate for rate in earlier if rate], random.Random(seed))  # noqa: S311 - no secret

    def _trial(self, meter: Meter, point: PointPlan, rate: float) -> tuple[RatePoint, float]:
        settings = self._plan.settings
        bound = settings.latency_bound_s
        assert bound is not None
        count = trial_queries(rate, settings.percentile, bound)
        start = len(self._raw.highest[meter.plan.name, point.key])
        found = meter.server.ask(
            op="arriving", name=point.key, rate=rate, count=count, bound=bound,
            most_late=most_late(count, settings.percentile), seed=settings.seed + start, concurrency=point.concurrency,
        )  # fmt: skip
        trial, served = tried(rate, count, settings.percentile, found)
        self._raw.curves[meter.plan.name, point.key].append(trial)
        return trial, served

    @contextlib.contextmanager
    def _forgiving(self, plan: CandidatePlan) -> Any:
        """A peer that fails is left out, and the result says why."""
        try:
            yield
        except ChildFailed as error:
            if is_own(plan):
                raise
            self._raw.missing[plan.name] = error.said


def _smallest(point: PointPlan) -> dict[str, Any]:
    """The job of a cold start: one text, or one prompt and one new token.

    Rows of token ids stay as they are, since a graph may have been exported for so many.
    """
    job = dict(point.job)
    if job["kind"] != IDS:
        job["batch"] = 1
    if job["kind"] == PROMPT:
        job["output"] = 1
    return job
