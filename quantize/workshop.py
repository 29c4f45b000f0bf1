"""One bundle being quantized: its graph, data and judge, and everything that candidates share, worked out once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from pinnace.compare import Bound, Evaluation, miss, task_gate
from pinnace.errors import BundleError
from pinnace.quantize.calibration import Activations, observe
from pinnace.quantize.examples.random_inputs import random_feeds
from pinnace.quantize.examples.source import Examples
from pinnace.quantize.islands import too_large_for_fp16
from pinnace.quantize.judging.evaluate import Judge, feeds
from pinnace.quantize.judging.latency import Latency, measure
from pinnace.quantize.observed import Observed
from pinnace.quantize.projections import find_groups
from pinnace.quantize.recipe import Recipe, load_graph
from pinnace.quantize.resume import Kept
from pinnace.quantize.steps import Step
from pinnace.quantize.variant import Written, write_variant
from pinnace.records import build
from pinnace.runtime.bundles.bundle import Bundle
from pinnace.runtime.engine.ort import plain_session, run_plain
from pinnace.runtime.machine.cpu import Cpu
from pinnace.spec import REFERENCE, FileFact, Variant, is_cached

Progress = Callable[[str], None]
PROBE_FEEDS: Final = 12  # inputs on which one group's effect is measured
PROBE: Final = "probe"
UNJUDGED: Final = "nothing judged it: the bundle has no tokenizer, or judging was switched off"


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A variant that was made and judged.

    Attributes:
        scheme: its name.
        precision: its slot.
        recipe: what became of each weight.
        written: its files.
        evaluation: its quality.
        miss: what the gate holds against it, in words; empty where it passes.
    """

    scheme: str
    precision: str
    recipe: Recipe
    written: Written
    evaluation: Evaluation
    miss: str


class Workshop:
    """Makes and judges variants of one bundle in a scratch copy of it.

    Args:
        source: the bundle as it is; its fp32 variant is the reference.
        scratch: a copy of the bundle's folder, where variants are written.
        calibration: examples to calibrate with, of the bundle's task; None for a bundle without a tokenizer.
        judging: examples to judge with, none of them among those to calibrate with; None as before: nothing is judged.
        cpu: the processor.
        threads: threads of a run; None takes what the machine grants.
        max_drop: the user's largest drop in place of the gate's.
        new_tokens: tokens that a decoder writes in one request.
        say: called with a line at each stage.
        kept: what an interrupted run had found out; None keeps nothing.
    """

    def __init__(
        self,
        source: Bundle,
        scratch: Path,
        calibration: Examples | None,
        judging: Examples | None,
        *,
        cpu: Cpu,
        threads: int | None,
        max_drop: float | None,
        new_tokens: int,
        say: Progress,
        kept: Kept | None = None,
    ) -> None:
        self.source, self.scratch, self.cpu, self.threads = source, scratch, cpu, threads
        self.bundle = Bundle(scratch, source.manifest, verified=True)
        self._calibration, self._max_drop, self.say = calibration, max_drop, say
        self._new_tokens = new_tokens
        self._kept = Kept() if kept is None else kept
        self._activations: dict[str, Activations] = {}
        self._observed = Observed(self._activations)  # one for all candidates, so that ranges are searched for once
        self._feeds: list[dict[str, Any]] | None = None
        self._on_disk: dict[str, tuple[str, Recipe, Written]] = {}
        self._judge: Judge | None = None
        self.reference = _unjudged(source, REFERENCE)
        if judging is not None:
            say(f"judging fp32 on {len(judging)} examples")
            self._judge = Judge(source.path, judging, threads)
            self.reference = self._judge.score(source, REFERENCE)

    def graph(self) -> ir.Model:
        """The fp32 graph anew, in the form that recipes are applied to."""
        return load_graph(self.scratch / self.bundle.variant(REFERENCE).graph)

    def feeds(self) -> list[dict[str, Any]]:
        """Inputs to calibrate with, as the task's pipeline makes them."""
        if self._feeds is None:
            if self._calibration is None:
                self._feeds = random_feeds(self.source.manifest)
            else:
                self._feeds = list(feeds(self.source.path, self._calibration))
        return self._feeds

    def observe(self, recipe: Recipe) -> Observed:
        """Observe the groups that a recipe needs and that were not observed yet."""
        hessians = recipe.rounding == "compensated"
        lacking = {
            name for name in recipe.calibrated
            if name not in self._activations
            or (hessians and self._activations[name].hessian is None)
            or (recipe.histograms and self._activations[name].histogram is None)
        }  # fmt: skip
        if lacking:
            self.say(f"calibrating on {len(self.feeds())} inputs")
            model = self.graph()
            values = {group.name: group.everywhere for group in find_groups(model.graph) if group.name in lacking}
            folder = (self.scratch / self.bundle.variant(REFERENCE).graph).parent
            self._activations |= observe(
                model, folder, values, self.feeds(), hessians=hessians, histograms=recipe.histograms
            )
        if recipe.half and self._observed.islands is None:
            self.say(f"looking on {len(self.feeds())} inputs for numbers beyond fp16")
            path = self.scratch / self.bundle.variant(REFERENCE).graph
            self._observed.islands = too_large_for_fp16(self.graph(), path, self.feeds())
        return self._observed

    def make(self, scheme: str, precision: str, recipe: Recipe) -> Candidate:
        """Write the variant of a recipe over the last one of this precision, and judge it, unless that is known."""
        about = ["candidate", scheme, precision, recipe.to_dict()]
        if self._judge is not None and (known := self._kept.recall(about, _read_judged)) is not None:
            return Candidate(scheme, precision, recipe, *known, self.miss(known[1]))
        written = self.write(scheme, precision, recipe)
        if self._judge is None:
            return Candidate(scheme, precision, recipe, written, _unjudged(self.source, precision), UNJUDGED)
        evaluation = self._judge.score(self.with_variant(precision, written), precision)
        self._kept.note(about, {"written": dataclasses.asdict(written), "evaluation": dataclasses.asdict(evaluation)})
        return Candidate(scheme, precision, recipe, written, evaluation, self.miss(evaluation))

    def write(self, scheme: str, precision: str, recipe: Recipe) -> Written:
        """Write the variant of a recipe, unless it is what the last one of this precision was written by."""
        if (last := self._on_disk.get(precision)) is not None and last[:2] == (scheme, recipe):
            return last[2]
        observed = self.observe(recipe)
        written = write_variant(self.bundle, self.scratch, precision, scheme, recipe, observed, self.cpu)
        self._on_disk[precision] = (scheme, recipe, written)
        return written

    def with_variant(self, precision: str, written: Written) -> Bundle:
        """The scratch bundle with one more variant, whose files are not hashed yet."""
        manifest, variant = self.bundle.manifest, written.variant
        added = {name: FileFact((self.scratch / name).stat().st_size, "") for name in (variant.graph, *variant.weights)}
        known = dataclasses.replace(
            manifest, variants={**manifest.variants, precision: variant}, files={**manifest.files, **added}
        )
        return Bundle(self.scratch, known, verified=True)

    def gate(self, precision: str, metric: str) -> tuple[Bound, ...]:
        """What a variant must reach; nothing where nothing is judged."""
        if self._judge is None:
            return ()
        return task_gate(precision, metric, self._max_drop)

    def miss(self, evaluation: Evaluation) -> str:
        """What the gate holds against a result, in words; empty where it passes."""
        return miss(evaluation, self.gate(evaluation.precision, evaluation.metric))

    def latency(self, candidate: Candidate) -> Mapping[str, Latency]:
        """Time a candidate beside fp32 in one interleaved run."""
        precision = candidate.precision
        about = ["latency", candidate.scheme, precision, candidate.recipe.to_dict()]
        if (known := self._kept.recall(about, _read_latency)) is not None:
            return known
        written = self.write(candidate.scheme, precision, candidate.recipe)
        found = measure(
            self.with_variant(precision, written), (REFERENCE, precision),
            threads=self.threads, new_tokens=self._new_tokens,
        )  # fmt: skip
        self._kept.note(about, {name: dataclasses.asdict(latency) for name, latency in found.items()})
        return found

    def effects(self, scheme: str, recipe: Recipe, names: Collection[str]) -> dict[str, float]:
        """How far each group or table alone moves the outputs: squared error relative to their square, worst first."""
        chosen = self.feeds()[:PROBE_FEEDS]
        exact: list[Any] | None = None
        found = {}
        for done, name in enumerate(names, 1):
            about = ["effect", scheme, recipe.to_dict(), name]
            if (known := self._kept.recall(about, float)) is not None:
                found[name] = known
                continue
            if exact is None:
                exact = self._outputs(self.bundle.graph_path(REFERENCE), chosen)
            written = self.write(scheme, PROBE, recipe.alone(name))
            got = self._outputs(self.scratch / written.variant.graph, chosen)
            errors = (np.square(a - b, dtype=np.float64).sum() for a, b in zip(got, exact, strict=True))
            sizes = (np.square(b, dtype=np.float64).sum() for b in exact)
            found[name] = float(sum(errors) / max(sum(sizes), 1e-30))
            self._kept.note(about, found[name])
            self.say(Step(f"effect of {name}: {found[name]:.2g}", done, len(names)))
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    @staticmethod
    def _outputs(graph: Path, chosen: list[dict[str, Any]]) -> list[Any]:
        """The task's own outputs, without the cache."""
        session = plain_session(graph)
        names = [output.name for output in session.get_outputs() if not is_cached(output.name)]
        return [array for feed in chosen for array in run_plain(session, names, feed)]


def _read_judged(data: Any) -> tuple[Written, Evaluation]:
    written, evaluation = data["written"], data["evaluation"]
    variant = build(Variant, written["variant"], "variant", BundleError)
    return (
        Written(variant, int(written["bytes"]), dict(written["decisions"])),
        Evaluation(**{**evaluation, "worst": tuple(evaluation["worst"])}),
    )


def _read_latency(data: Any) -> dict[str, Latency]:
    return {name: Latency(**{part: dict(value) for part, value in one.items()}) for name, one in data.items()}


def _unjudged(bundle: Bundle, precision: str) -> Evaluation:
    return Evaluation(bundle.manifest.task, precision, "unjudged", float("nan"), float("nan"), 0, labelled=False)
