"""The task's own metric beside speed: each variant of ours answers labelled examples, after the clock."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pinnace.bench.plan import CandidatePlan, Plan
from pinnace.bench.processes import is_own
from pinnace.bench.rounds import CPU
from pinnace.compare import Evaluation
from pinnace.errors import UsageError
from pinnace.quantize.examples.source import Examples, mask_of, read_examples
from pinnace.runtime.pipelines.feeds import fixed_shape
from pinnace.spec import REFERENCE

if TYPE_CHECKING:
    from pinnace.quantize.judging.evaluate import Judge


@dataclasses.dataclass(frozen=True)
class Judged:
    """The task's metric on some examples.

    Attributes:
        data: what the examples are, in words.
        figures: candidate -> its figure and fp32's.
    """

    data: str
    figures: Mapping[str, Evaluation]


def read_data(path: str | Path, plan: Plan) -> Examples:
    """Read the examples, and look before the clock starts whether they can judge.

    Raises:
        UsageError: no such file, no candidate that can be judged, or a bundle without the variant to compare with.
        InputError: what is not an example of the bundle's task, with its line.
    """
    variants = list(_variants(plan.candidates))
    if not variants:
        raise UsageError("--data judges variants on the CPU, and none is measured there; add cpu to --device")
    for candidate in variants:
        if REFERENCE not in candidate.bundle.manifest.variants:
            raise UsageError(
                f"{candidate.bundle.path.name} has no {REFERENCE} variant to compare with; leave --data out"
            )
    task, bundle = plan.settings.task, variants[0].bundle
    tokens = fixed_shape(bundle.manifest).tokens or bundle.manifest.limits.sequence
    return read_examples(Path(path), task, mask_token=mask_of(bundle.path, task), tokens=tokens)


def judged(plan: Plan, examples: Examples, progress: Callable[[str], None]) -> Judged:
    """Measure the task's metric of every variant; threads do not change it, so each is judged once."""
    from pinnace.quantize.judging.evaluate import (
        Judge,  # opens onnxruntime here, which nothing needs before the clock stops
    )

    judges: dict[Path, Judge] = {}
    known: dict[tuple[Path, str], Evaluation] = {}
    found: dict[str, Evaluation] = {}
    for candidate in _variants(plan.candidates):
        bundle, precision = candidate.bundle, candidate.precision
        if bundle.path not in judges:
            progress(f"judging {bundle.path.name} on {len(examples)} examples")
            judges[bundle.path] = Judge(bundle.path, examples, candidate.threads)
        if (bundle.path, precision) not in known:
            known[bundle.path, precision] = judges[bundle.path].score(bundle, precision)
        found[candidate.name] = known[bundle.path, precision]
    kind = "labelled" if examples.labelled else "unlabelled"
    return Judged(f"{len(examples):,} {kind} examples of {examples.source}", found)


def _variants(candidates: Iterable[CandidatePlan]) -> Iterable[CandidatePlan]:
    return (candidate for candidate in candidates if is_own(candidate) and candidate.device == CPU)
