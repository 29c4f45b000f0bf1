"""What is to be measured: every candidate, and every place of the sweep, from what was asked and what the bundle is."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pinnace.bench.jobs import IDS, PROMPT, TEXTS
from pinnace.bench.request import Request, check_request, decoder_sizes
from pinnace.bench.results import Settings
from pinnace.errors import UsageError
from pinnace.runtime.bundles.bundle import Bundle
from pinnace.runtime.machine.threads import thread_count

PROGRAM: Final = "pinnace"
# What two bundles are called whose folders have one name.
AFTER, BEFORE = "after", "before"


@dataclasses.dataclass(frozen=True)
class CandidatePlan:
    """A process to be measured; ``options`` is what its program is opened with."""

    name: str
    program: str
    python: str | None
    bundle: Bundle
    precision: str
    device: str
    threads: int
    options: Mapping[str, Any]

    @property
    def place(self) -> tuple[str, str, int]:
        """What two bundles are compared at: variant, device and number of threads."""
        return self.precision, self.device, self.threads


@dataclasses.dataclass(frozen=True)
class PointPlan:
    """A place of the sweep and its job."""

    scenario: str
    batch: int
    length: int | None
    prompt: int | None
    output_tokens: int | None
    concurrency: int
    job: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Names the point in a process that has prepared several."""
        sizes = (self.batch, self.length, self.prompt, self.output_tokens, self.concurrency)
        return "/".join(map(str, (self.scenario, *sizes)))


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that a run measures."""

    candidates: tuple[CandidatePlan, ...]
    points: tuple[PointPlan, ...]
    settings: Settings


def make_plan(path: str | Path, request: Request, texts: Path) -> Plan:
    """Spread the request over candidates and points.

    Args:
        path: of the bundle.
        request: what was asked.
        texts: the file of the request's texts, where it has any.

    Raises:
        UsageError: sizes that the bundle does not take, an unknown scenario, precision or peer, a server scenario
            without its bound, a model for a peer that is not asked for, or two bundles that have nothing to compare.
        BundleError: no bundle, or a damaged one.
    """
    bundles = [Bundle.open(place) for place in (path, *([request.against] if request.against else ()))]
    check_request(bundles[0], request)
    for other in bundles[1:]:
        if other.manifest.task != bundles[0].manifest.task:
            raise UsageError(
                f"{other.path.name} is for {other.manifest.task} and {bundles[0].path.name} for "
                f"{bundles[0].manifest.task}; compare bundles of one task"
            )
    own = [_own(bundle, request, label) for bundle, label in zip(bundles, _labels(bundles), strict=True)]
    _check_pairs(own)
    candidates = [*itertools.chain.from_iterable(own), *_peers(bundles[0], request)]
    settings = Settings(
        task=bundles[0].manifest.task,
        scenarios=request.scenarios,
        inputs=request.inputs or "random ids",
        seed=request.seed,
        rounds=request.rounds,
        starts=min(request.starts, request.rounds),
        round_s=request.round_s,
        latency_bound_s=request.latency_bound_s if "server" in request.scenarios else None,
        percentile=request.percentile,
        pinned=True,
    )
    return Plan(tuple(candidates), tuple(_points(bundles[0], request, texts)), settings)


def _check_pairs(own: Sequence[Sequence[CandidatePlan]]) -> None:
    """Two bundles, where there are two, must have a variant in common."""
    one, *others = [{plan.place for plan in plans} for plans in own]
    if any(one.isdisjoint(other) for other in others):
        named = [f"{plans[0].bundle.path.name} has {', '.join(sorted({p.precision for p in plans}))}" for plans in own]
        raise UsageError(f"the two bundles have no variant in common: {'; '.join(named)}. Give --precision")


def _labels(bundles: Sequence[Bundle]) -> list[str]:
    """What tells two bundles apart; one alone needs no name."""
    names = [bundle.path.absolute().name for bundle in bundles]
    if len(names) == 1:
        return [""]
    return names if len(set(names)) == len(names) else [AFTER, BEFORE]


def _own(bundle: Bundle, request: Request, label: str) -> list[CandidatePlan]:
    asked = dict.fromkeys(bundle.precision(word) for word in request.precisions)
    precisions = list(asked or bundle.manifest.variants)
    counts = request.threads or (thread_count(),)
    found = []
    for precision, device, threads in itertools.product(precisions, request.devices, counts):
        words = [PROGRAM] * bool(request.peers) + [label] * bool(label) + [precision]
        words += [device] * (len(request.devices) > 1) + [f"{threads} threads"] * (len(counts) > 1)
        options = _options(bundle, precision, device, threads, str(bundle.path), request)
        found.append(CandidatePlan(" ".join(words), PROGRAM, None, bundle, precision, device, threads, options))
    return found


def _peers(bundle: Bundle, request: Request) -> list[CandidatePlan]:
    precision = "fp32" if "fp32" in bundle.manifest.variants else bundle.precision()
    counts = request.threads or (thread_count(),)
    found = []
    for (program, python), threads in itertools.product(request.peers.items(), counts):
        model = request.peer_models.get(program, str(bundle.path))
        name = f"{program} {threads} threads" if len(counts) > 1 else program
        options = _options(bundle, precision, "cpu", threads, model, request)
        found.append(CandidatePlan(name, program, python, bundle, precision, "cpu", threads, options))
    return found


def _options(bundle: Bundle, precision: str, device: str, threads: int, model: str, request: Request) -> dict[str, Any]:
    manifest = bundle.manifest
    return {
        "model": str(Path(model).expanduser().absolute()),
        "precision": precision,
        "device": device,
        "threads": threads,
        "task": manifest.task,
        "texts": bool(request.texts),
        "graph": bundle.variant(precision).graph,
        "pooling": dataclasses.asdict(manifest.pooling) if manifest.pooling else None,
        "length": _text_length(bundle),
        "width": next((spec.shape[-1] for spec in manifest.outputs if isinstance(spec.shape[-1], int)), 0),
    }


def _text_length(bundle: Bundle) -> int:
    """Tokens to which texts are cut: as the sentence-transformers folder says, else as the model takes."""
    longest = bundle.manifest.limits.sequence
    try:
        said = json.loads((bundle.path / "sentence_bert_config.json").read_text("utf-8")).get("max_seq_length")
    except (OSError, ValueError, AttributeError):
        said = None
    return min(said, longest) if isinstance(said, int) and said > 0 else longest


def _points(bundle: Bundle, request: Request, texts: Path) -> list[PointPlan]:
    points = []
    for scenario, concurrency, place in itertools.product(
        request.scenarios, request.concurrency, _places(bundle, request, texts)
    ):
        batch, length, prompt, output, job = place
        # Offline hands over all texts at once; the other scenarios ask for one query after another.
        if job["kind"] == TEXTS and scenario == "offline":
            batch, job = len(request.texts), {**job, "batch": None}
        points.append(PointPlan(scenario, batch, length, prompt, output, concurrency, job))
    return list({point.key: point for point in points}.values())


def _places(
    bundle: Bundle, request: Request, texts: Path
) -> list[tuple[int, int | None, int | None, int | None, dict[str, Any]]]:
    manifest = bundle.manifest
    inputs = [spec.name for spec in manifest.inputs]
    common = {"vocabulary": manifest.limits.vocabulary, "seed": request.seed, "inputs": inputs}
    if request.texts:
        return [
            (batch, None, None, None, {"kind": TEXTS, "path": str(texts), "batch": batch, "options": request.options})
            for batch in request.batches
        ]
    if manifest.cache is not None:
        return [
            (
                batch,
                None,
                prompt,
                output,
                {**common, "kind": PROMPT, "batch": batch, "prompt": prompt, "output": output},
            )
            for batch, prompt, output in itertools.product(request.batches, *decoder_sizes(bundle, request))
        ]
    shape = next(spec.shape for spec in manifest.inputs if spec.name == "input_ids")
    fixed = [size for size in shape[-1:] if isinstance(size, int)]
    lengths = (
        [size for size in request.lengths if isinstance(size, int)] or fixed or [min(128, manifest.limits.sequence)]
    )
    rows = [shape[0]] if isinstance(shape[0], int) else request.batches
    return [
        (batch, length, None, None, {**common, "kind": IDS, "batch": batch, "length": length})
        for batch, length in itertools.product(rows, lengths)
    ]
