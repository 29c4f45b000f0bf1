"""From what was measured to the result: measures with intervals, work, shares of the machine's limits, accuracy."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from pinnace.bench import estimates
from pinnace.bench.agreement import agreement, agrees
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
    Result,
    Samples,
    Work,
)
from pinnace.bench.rounds import CPU, Raw
from pinnace.errors import CheckFailed
from pinnace.runtime import threads

Block = Mapping[str, Any]
_NO_ENERGY: Final = "the machine does not tell its energy to this user (RAPL)"
_NO_STEPS: Final = "the program tells no times of single tokens here"
_NOT_CPU: Final = "the limits are the processor's, and this ran on another device"
_NOT_COUNTED: Final = "the work of this program is not counted"


def summarize(
    plan: Plan, raw: Raw, run: str, started: str, seconds: float, load: float, judged: Judged | None = None
) -> Result:
    """Turn what was measured into a result."""
    seed = plan.settings.seed
    points = tuple(
        _point(candidate, point, raw, seed)
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


def _point(candidate: CandidatePlan, point: PointPlan, raw: Raw, seed: int) -> Point:
    key = (candidate.name, point.key)
    blocks = raw.blocks.get(key, [])
    measures: dict[str, Measure] = {}
    if point.scenario == "server":
        found = [rate for rate in raw.highest[key] if rate is not None]
        why = "no rate kept the bound: a single query takes longer"
        measures["highest_rate"] = estimates.from_blocks(found, seed, why)
    if point.scenario == "single-stream":
        measures |= estimates.latency([block["latency"] for block in blocks], seed)
    work = _work(point, raw.costs.get(candidate.name), blocks)
    if blocks:
        kinds = {**RATES, **(TOKEN_RATES if point.job["kind"] == PROMPT else TOKENS)}
        for name, per_block in kinds.items():
            found = [value for block in blocks if (value := per_block(block, point)) is not None]
            measures[name] = estimates.from_blocks(found, seed, _NO_ENERGY if name == "energy_j" else _NO_STEPS)
        measures |= _shares(candidate, point, blocks, work, raw, seed)
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
        "prompt_tokens_per_s": lambda block, at: _rate(at.batch * (at.prompt or 0), _middle(block, "first_token")),
        "decode_tokens_per_s": lambda block, at: _rate(at.batch, _middle(block, "inter_token")),
    }
)


def _work(point: PointPlan, cost: Any, blocks: Sequence[Block]) -> Work | None:
    if cost is None:
        return None
    if point.job["kind"] == PROMPT:
        prompt, output = point.prompt or 0, point.output_tokens or 0
        cached = cost.token_bytes * (prompt + output / 2)
        return Work(point.batch * cost.flops(prompt), cost.weight_bytes + point.batch * cached, point.batch * prompt)
    if point.job["kind"] == IDS:
        length = point.length or 0
        return Work(point.batch * cost.flops(length), cost.weight_bytes, point.batch * length)
    queries = sum(len(block["latency"]) for block in blocks)
    if not queries:
        return None
    # Texts of unlike length: as if all had the mean one, which leaves out a little of attention's square.
    texts = sum(block["texts"] for block in blocks) / queries
    tokens = sum(block["tokens"] for block in blocks) / queries
    return Work(texts * cost.flops(round(tokens / texts)), cost.weight_bytes, round(tokens))


def _shares(
    candidate: CandidatePlan, point: PointPlan, blocks: Sequence[Block], work: Work | None, raw: Raw, seed: int
) -> dict[str, Measure]:
    """How near each round comes to what the machine did in the same round."""
    names = ("gemm_fraction", "memory_fraction")
    if work is None:
        return dict.fromkeys(names, Measure(None, absent=_NOT_CPU if candidate.device != CPU else _NOT_COUNTED))
    limits = raw.limits[candidate.threads]
    multiplied, read = [], []
    for block, (gemm, memory) in zip(blocks, limits, strict=False):
        if point.job["kind"] == PROMPT:
            first, between = _middle(block, "first_token"), _middle(block, "inter_token")
        else:
            first = between = block["seconds"] / max(1, len(block["latency"]))
        multiplied += [work.flops / first / gemm] if first else []
        read += [work.bytes / between / memory] if between else []
    return {
        name: estimates.from_blocks(values, seed, _NO_STEPS)
        for name, values in zip(names, (multiplied, read), strict=True)
    }


def _accuracies(plan: Plan, raw: Raw) -> tuple[dict[str, Accuracy], dict[str, bool]]:
    """Compare everyone's outputs with those of the first fp32 candidate of ours."""
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
        pair = (raw.outputs[name.name, shared[0].key] for name in (candidate, reference))
        label = f"{candidate.name} does the job of {reference.name}"
        try:
            found[candidate.name] = agreement(reference.name, *pair)
        except CheckFailed as error:
            checks[f"{label}: {error}"] = False
            continue
        # Another bundle may be another model; its agreement is told, and is no error.
        if candidate is not reference and candidate.bundle is reference.bundle:
            checks[label] = agrees(found[candidate.name], candidate.precision)
    return found, checks


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
