"""From what was measured to the result: measures with intervals, work, shares of the machine's limits, accuracy."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from pinnace.bench import estimates
from pinnace.bench.agreement import agreement, agrees, together
from pinnace.bench.jobs import IDS, PROMPT
from pinnace.bench.judging import Judged
from pinnace.bench.machine import Energy, affinity, processor, versions
from pinnace.bench.measures import START
from pinnace.bench.plan import CandidatePlan, Plan, PointPlan
from pinnace.bench.processes import is_own
from pinnace.bench.results import (
    RESULTS_FORMAT,
    Accuracy,
    Candidate,
    Limit,
    Machine,
    Measure,
    Point,
    QueryWork,
    Result,
    Samples,
    Settings,
)
from pinnace.bench.rounds import CPU, Raw
from pinnace.errors import CheckFailed
from pinnace.runtime.machine import threads

Block = Mapping[str, Any]
_NO_ENERGY: Final = "the machine does not tell its energy to this user (RAPL)"
_NO_RATE: Final = "no rate kept the bound: a single query takes as long, or nearly"
_NO_STEPS: Final = "the program tells no times of single tokens here"
_NOT_CPU: Final = "the limits are the processor's, and this ran on another device"
_NOT_COUNTED: Final = "the work of this program is not counted"


def summarize(
    plan: Plan, raw: Raw, run: str, started: str, seconds: float, load: float, judged: Judged | None = None
) -> Result:
    """Turn what was measured into a result."""
    seed = plan.settings.seed
    points = tuple(
        _point(candidate, point, raw, plan.settings)
        for candidate in plan.candidates
        for point in plan.points
        if candidate.name not in raw.missing and _was_measured(raw, candidate, point)
    )
    accuracies, checks = _accuracies(plan, raw)
    if judged is not None:
        accuracies = _with_metric(accuracies, judged)
    candidates = tuple(
        _candidate(candidate, raw, accuracies.get(candidate.name), seed) for candidate in plan.candidates
    )
    return Result(
        format=RESULTS_FORMAT, run=run, started=started, seconds=round(seconds, 3), machine=machine_facts(load),
        versions=versions(), settings=plan.settings, limits=tuple(_limit(n, raw.limits[n]) for n in sorted(raw.limits)),
        candidates=candidates, points=points, checks=checks,
    )  # fmt: skip


def machine_facts(load: float) -> Machine:
    """The machine as a record; ``load`` was read before the run, which is itself load."""
    facts = processor()
    return Machine(
        processor=facts["processor"], features=tuple(facts["features"]), system=facts["system"], cpus=len(affinity()),
        quota=threads.cpu_quota(), memory_bytes=threads.memory_limit(), cache_bytes=threads.cache_per_core(),
        load=load, energy=Energy().there,
    )  # fmt: skip


def _limit(count: int, measured: Sequence[tuple[float, float]]) -> Limit:
    gemm, memory = (tuple(column) for column in zip(*measured, strict=True))
    return Limit(count, statistics.median(gemm), statistics.median(memory), gemm, memory)


def _was_measured(raw: Raw, candidate: CandidatePlan, point: PointPlan) -> bool:
    key = (candidate.name, point.key)
    return bool(raw.blocks.get(key) or raw.highest.get(key))


def _candidate(plan: CandidatePlan, raw: Raw, accuracy: Accuracy | None, seed: int) -> Candidate:
    starts, facts = raw.starts.get(plan.name, {}), raw.facts.get(plan.name, {})
    measures = {name: estimates.from_blocks(starts[name], seed) for name in START if starts.get(name)}
    if facts.get("install_bytes"):
        measures["install_bytes"] = Measure(float(facts["install_bytes"]))
    if is_own(plan):
        measures["bundle_bytes"] = Measure(float(_bundle_bytes(plan)))
    missing = raw.missing.get(plan.name, "")
    return Candidate(
        plan.name, plan.program, Path(plan.options["model"]).name, plan.precision, plan.device, plan.threads,
        facts.get("versions", {}), missing, {} if missing else measures, None if missing else accuracy,
    )  # fmt: skip


def _bundle_bytes(plan: CandidatePlan) -> int:
    variant, files = plan.bundle.variant(plan.precision), plan.bundle.manifest.files
    return sum(files[name].bytes for name in (variant.graph, *variant.weights))


def _point(candidate: CandidatePlan, point: PointPlan, raw: Raw, settings: Settings) -> Point:
    key, seed, starts = (candidate.name, point.key), settings.seed, settings.starts
    blocks = raw.blocks.get(key, [])
    measures: dict[str, Measure] = {}
    if point.scenario == "server":
        found = [rate for rate in raw.highest[key] if rate is not None]
        measures["highest_rate"] = estimates.from_blocks(found, seed, _NO_RATE)
    if point.scenario == "single-stream":
        measures |= estimates.latency([block["latency"] for block in blocks], seed, starts)
    work = _work(point, raw.costs.get(candidate.name), blocks)
    if blocks:
        kinds = {**RATES, **(TOKEN_RATES if point.job["kind"] == PROMPT else TOKENS)}
        for name, per_block in kinds.items():
            found = [value for block in blocks if (value := per_block(block, point)) is not None]
            why = _NO_ENERGY if name == "energy_j" else _NO_STEPS
            measures[name] = estimates.from_blocks(found, seed, why, starts)
        measures |= _shares(candidate, point, blocks, work, raw, settings)
    samples: dict[str, Samples] = {
        name: estimates.samples([block[name] for block in blocks])
        for name in ("latency", "first_token", "inter_token")
        if blocks and any(block[name] for block in blocks) and (name != "latency" or point.scenario == "single-stream")
    }
    curve = tuple(sorted(raw.curves.get(key, ()), key=lambda tried: tried.rate))
    return Point(
        candidate.name, point.scenario, point.batch, point.length, point.prompt, point.output_tokens,
        point.concurrency, measures, samples, work, curve,
    )  # fmt: skip


PerBlock = Callable[[Block, PointPlan], float | None]


def _each(block: Block, name: str) -> float | None:
    """An amount for each query of a block."""
    return None if block[name] is None else block[name] / max(1, len(block["latency"]))


def _middle(block: Block, name: str) -> float | None:
    return statistics.median(block[name]) if block[name] else None


def _rate(amount: float, seconds: float | None) -> float | None:
    return amount / seconds if seconds else None


def _prompt_rate(block: Block, point: PointPlan) -> float | None:
    """Tokens/s of the prompt: of one stream until its first token, of several streams over the whole time."""
    first = _middle(block, "first_token")
    if point.concurrency == 1 or first is None:
        return _rate(point.batch * (point.prompt or 0), first)
    return _rate(block["tokens"], block["seconds"])


def _decode_rate(block: Block, point: PointPlan) -> float | None:
    """New tokens/s: of one stream between two tokens, of several streams over the whole time."""
    between = _middle(block, "inter_token")
    if point.concurrency == 1 or between is None:
        return _rate(point.batch, between)
    return _rate(point.batch * len(block["inter_token"]), block["seconds"])


RATES: Final[Mapping[str, PerBlock]] = MappingProxyType(
    {
        "texts_per_s": lambda block, _: block["texts"] / block["seconds"],
        "cpu_s": lambda block, _: _each(block, "cpu"),
        "energy_j": lambda block, _: _each(block, "energy"),
    }
)
TOKENS: Final[Mapping[str, PerBlock]] = MappingProxyType(
    {"tokens_per_s": lambda block, _: block["tokens"] / block["seconds"]}
)
TOKEN_RATES: Final[Mapping[str, PerBlock]] = MappingProxyType(
    {
        "first_token_s": lambda block, _: _middle(block, "first_token"),
        "inter_token_s": lambda block, _: _middle(block, "inter_token"),
        "prompt_tokens_per_s": _prompt_rate,
        "decode_tokens_per_s": _decode_rate,
    }
)


def _work(point: PointPlan, cost: Any, blocks: Sequence[Block]) -> QueryWork | None:
    if cost is None:
        return None
    if point.job["kind"] == PROMPT:
        prompt, output = point.prompt or 0, point.output_tokens or 0
        cached = cost.token_bytes * (prompt + output / 2)
        return QueryWork(
            point.batch * cost.flops(prompt), cost.weight_bytes + point.batch * cached, point.batch * prompt
        )
    if point.job["kind"] == IDS:
        length = point.length or 0
        return QueryWork(point.batch * cost.flops(length), cost.weight_bytes, point.batch * length)
    queries = sum(len(block["latency"]) for block in blocks)
    if not queries:
        return None
    # Texts of unlike length: as if all had the mean one, which leaves out a little of attention's square.
    texts = sum(block["texts"] for block in blocks) / queries
    tokens = sum(block["tokens"] for block in blocks) / queries
    return QueryWork(texts * cost.flops(round(tokens / texts)), cost.weight_bytes, round(tokens))


def _shares(
    candidate: CandidatePlan,
    point: PointPlan,
    blocks: Sequence[Block],
    work: QueryWork | None,
    raw: Raw,
    settings: Settings,
) -> dict[str, Measure]:
    """How near each round comes to what the machine did in the same round."""
    names = ("gemm_fraction", "memory_fraction")
    if work is None:
        return dict.fromkeys(names, Measure(None, absent=_NOT_CPU if candidate.device != CPU else _NOT_COUNTED))
    limits = raw.limits[candidate.threads]
    multiplied, read = [], []
    for block, (gemm, memory) in zip(blocks, limits, strict=False):
        first, between = _seconds_of_work(block, point)
        multiplied += [work.flops / first / gemm] if first else []
        read += [work.bytes / between / memory] if between else []
    return {
        name: estimates.from_blocks(values, settings.seed, _NO_STEPS, settings.starts)
        for name, values in zip(names, (multiplied, read), strict=True)
    }


def _seconds_of_work(block: Block, point: PointPlan) -> tuple[float | None, float | None]:
    """Seconds for which a query multiplies, and for which it reads its weights once.

    A generator's are those of its prompt and of a new token. Several streams share the machine, so that theirs is the
    time of them all for each prompt and for each new token.
    """
    if point.job["kind"] != PROMPT:
        query = block["seconds"] / max(1, len(block["latency"]))
        return query, query
    first, between = block["first_token"], block["inter_token"]
    if point.concurrency == 1:
        return _middle(block, "first_token"), _middle(block, "inter_token")
    seconds = block["seconds"]
    return seconds / len(first) if first else None, seconds / len(between) if between else None


def _accuracies(plan: Plan, raw: Raw) -> tuple[dict[str, Accuracy], dict[str, bool]]:
    """Compare everyone's outputs at every point with those of the first fp32 candidate of ours; the worst counts."""
    present = [candidate for candidate in plan.candidates if candidate.name not in raw.missing]
    own = [candidate for candidate in present if is_own(candidate)]
    if not own:
        return {}, {}
    reference = next((candidate for candidate in own if candidate.precision == "fp32"), own[0])
    found: dict[str, Accuracy] = {}
    checks: dict[str, bool] = {}
    for candidate in present:
        shared = [
            point
            for point in plan.points
            if (candidate.name, point.key) in raw.outputs and (reference.name, point.key) in raw.outputs
        ]
        if not shared:
            continue
        label = f"{candidate.name} does the job of {reference.name}"
        parts, good = [], True
        try:
            for got, want in _outputs(candidate, reference, shared, raw):
                parts.append(agreement(reference.name, got, want))
                good = good and agrees(parts[-1], candidate.precision, want)
        except CheckFailed as error:
            checks[f"{label}: {error}"] = False
            continue
        found[candidate.name] = together(parts)
        # Another bundle may be another model; its agreement is told, and is no error.
        if candidate is not reference and candidate.bundle is reference.bundle:
            checks[label] = good
    return found, checks


def _outputs(
    candidate: CandidatePlan, reference: CandidatePlan, points: Sequence[PointPlan], raw: Raw
) -> Iterator[tuple[Sequence[Any], Sequence[Any]]]:
    """Each output at each point, of a candidate and of the reference; a peer's first one alone."""
    for point in points:
        got, want = (raw.outputs[one.name, point.key] for one in (candidate, reference))
        if candidate.bundle is reference.bundle and is_own(candidate) and len(got) != len(want):
            raise CheckFailed(f"{len(got)} outputs of the graph, the reference {reference.name} has {len(want)}")
        yield from zip(got, want, strict=False)


def _with_metric(accuracies: Mapping[str, Accuracy], judged: Judged) -> dict[str, Accuracy]:
    """Add the task's metric to what is known of each candidate's outputs."""
    found = dict(accuracies)
    for name, figure in judged.figures.items():
        known = found.get(name, Accuracy("", 0, None, None, None, None))
        # Of a generator's figures this is the one that grows with quality, as tables and plots take it.
        metric, reference = ("top1", 1.0) if figure.metric == "kl" else (figure.metric, figure.reference)
        value = None if math.isnan(figure.value) else figure.figure(metric)
        found[name] = dataclasses.replace(
            known, metric=metric, value=value, reference_value=reference, data=judged.data
        )
    return found
