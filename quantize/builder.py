"""Quantization: the one file that knows the order. A bundle in, the same bundle with one more judged variant out."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Final

from pinnace.card import model_card
from pinnace.errors import CheckFailed, UsageError
from pinnace.publishing import copy_file, file_facts, publishing
from pinnace.quantize.examples.random_inputs import FEEDS
from pinnace.quantize.examples.source import Examples, mask_of, read_examples, split
from pinnace.quantize.judging.latency import NEW_TOKENS, UNTIMED, Latency
from pinnace.quantize.recipe import Recipe, load_graph
from pinnace.quantize.report import Entry, Report, candidate_record, few_judged, refusal
from pinnace.quantize.request import (
    MIN_SPEEDUP,
    Settings,
    as_patterns,
    asked_schemes,
    check_bundle,
    check_flags,
    has_tokenizer,
)
from pinnace.quantize.resume import Kept, resuming
from pinnace.quantize.schemes import Scheme
from pinnace.quantize.search import Attempt, satisfy
from pinnace.quantize.workshop import Progress, Workshop
from pinnace.runtime.bundles import speeds
from pinnace.runtime.bundles.bundle import Bundle
from pinnace.runtime.bundles.certificate import read_certificate
from pinnace.runtime.checks.golden import GoldenCase, read_golden, write_golden
from pinnace.runtime.engine.session import Session
from pinnace.runtime.machine.cpu import Cpu, read_cpu
from pinnace.runtime.pipelines.feeds import fixed_shape
from pinnace.spec import CERTIFICATE_NAME, CHOSEN_BY_AUTO, GOLDEN_NAME, MANIFEST_NAME, REFERENCE, golden_name

CALIBRATION_TEXTS: Final = 384  # for a decoder, whose texts may be short; other tasks take what `split` takes


class _NothingBetterError(Exception):
    """No candidate is worth keeping: the bundle stays as it is."""


def quantize(
    bundle: str | Path,
    *,
    precision: str | None = None,
    scheme: str | None = None,
    auto: bool = False,
    max_drop: float | None = None,
    min_speedup: float | None = None,
    data: str | Path | None = None,
    keep: Collection[str] = (),
    only: Collection[str] = (),
    block: int | None = None,
    full_range: bool | None = None,
    calibration: str | None = None,
    allow_degraded: bool = False,
    judge: bool = True,
    new_tokens: int | None = None,
    threads: int | None = None,
    output: str | Path | None = None,
    progress: Progress | None = None,
) -> Report:
    """Write a quantized variant beside fp32, if it passes its gate on data.

    Args:
        bundle: folder of a bundle with an fp32 variant.
        precision: ``int8``, ``int4`` or ``fp16``; None takes the scheme's, or int8.
        scheme: key of `SCHEMES`; None takes the precision's own.
        auto: try several schemes, measure their quality and speed here, and keep the fastest that passes.
        max_drop: largest loss of the task's metric, 0.01 for 1 %; None takes the gate of the precision.
        min_speedup: with ``auto``, how many times as fast as fp32 a variant must be to be kept; None takes 1.2.
        data: examples of the bundle's task; None takes texts that lie in the package.
        keep: shell patterns of weights that stay as they are, or one.
        only: shell patterns of the weights that alone may change, or one.
        block: inputs that share a scale, for weights in blocks.
        full_range: weights of eight bits in integer products, which only processors with exact int8 sums may run; None
            decides by this processor.
        calibration: how fixed activation ranges are found, key of `thresholds.METHODS`; for the int8-qdq schemes.
        allow_degraded: write a variant that misses its gate, and say so in the manifest.
        judge: compare with fp32 on data, and time both; False, together with ``allow_degraded``, writes variants of
            models that are too large to be run here.
        new_tokens: with ``auto``, for a decoder: how many tokens it writes behind a prompt of 256 in a usual request,
            whose whole time decides; None takes 128.
        threads: threads of a run; None takes what the machine grants.
        output: another folder for the bundle; None replaces it.
        progress: called with a line of text at each stage.

    Raises:
        UsageError: an unknown word or impossible combination. BundleError: no whole bundle.
        CheckFailed: the variant misses its gate; nothing is written.
        MachineError: disk, permissions, or another process writes the same folder.
    """
    say = progress or (lambda _line: None)
    source = Bundle.open(bundle)
    if REFERENCE not in source.manifest.variants:
        raise UsageError(f"{source.path.name} has no {REFERENCE} variant to begin with; export the model again")
    schemes = asked_schemes(precision, scheme, auto, source.manifest, calibration)
    check_flags(
        schemes, auto=auto, decoder=source.manifest.cache is not None, judge=judge, allow_degraded=allow_degraded,
        block=block, full_range=full_range, calibration=calibration, max_drop=max_drop, min_speedup=min_speedup,
        new_tokens=new_tokens,
    )  # fmt: skip
    settings = Settings(
        as_patterns(keep), as_patterns(only), block, full_range, calibration, allow_degraded, threads, max_drop,
        MIN_SPEEDUP if min_speedup is None else min_speedup, judge, NEW_TOKENS if new_tokens is None else new_tokens,
    )  # fmt: skip
    report: Report | None = None
    with contextlib.suppress(_NothingBetterError), publishing(Path(output or source.path)) as scratch:
        report = quantize_into(scratch, source, schemes, settings, data, auto=auto, say=say)
        if report.chosen is None:
            raise _NothingBetterError
    assert report is not None  # every other way out raises
    return dataclasses.replace(report, path=str(output or source.path))


def quantize_into(
    scratch: Path,
    source: Bundle,
    schemes: Sequence[Scheme],
    settings: Settings,
    data: str | Path | None = None,
    *,
    auto: bool = False,
    say: Progress,
) -> Report:
    """Copy a bundle into an empty folder and write the chosen variant beside fp32.

    Args:
        scratch: the folder; where no variant was chosen, what lies in it is of no use.
        source: the bundle.
        schemes: what to try; the first alone unless ``auto``.
        settings: what the caller asked for.
        data: as for `quantize`.
        auto: try all schemes and keep the fastest that passes.
        say: called with a line of text at each stage.

    Raises:
        PinnaceError: as `quantize`.
    """
    path = Path(data) if data is not None else None
    manifest = source.manifest
    check_bundle(manifest, schemes, path, judge=settings.judge)
    examples: Examples | None = None
    if has_tokenizer(manifest):
        tokens = fixed_shape(manifest).tokens or manifest.limits.sequence
        mask = mask_of(source.path, manifest.task)
        examples = read_examples(path, manifest.task, mask_token=mask, tokens=tokens)
    _copy(source, scratch)
    with resuming(source, path, dataclasses.asdict(settings), read_cpu()) as kept:
        if len(kept):
            say(f"going on with {len(kept)} results of a run that was interrupted")
        work = _Quantization(source, scratch, schemes, examples, settings, say, kept)
        report = work.search(schemes) if auto else work.one(schemes[0])
        if report.chosen is not None:
            work.finish(report.chosen, by_auto=auto)
    return report


def _copy(source: Bundle, scratch: Path) -> None:
    for name in (*source.manifest.files, MANIFEST_NAME):
        target = scratch / name
        target.parent.mkdir(parents=True, exist_ok=True)
        copy_file(source.path / name, target)


class _Quantization:
    """One quantization under way."""

    def __init__(
        self,
        source: Bundle,
        scratch: Path,
        schemes: Sequence[Scheme],
        examples: Examples | None,
        settings: Settings,
        say: Progress,
        kept: Kept,
    ) -> None:
        self._source, self._scratch, self._settings, self._say = source, scratch, settings, say
        self._cpu: Cpu = read_cpu()
        exact = self._cpu.int8_dot() == "exact"
        if settings.full_range and not exact:
            raise UsageError(
                f"full-range int8 weights give wrong sums on this processor ({self._cpu.name}), which adds products in "
                "16 bits; leave --full-range out"
            )
        reduced = not (exact if settings.full_range is None else settings.full_range)
        graph = load_graph(source.graph_path(REFERENCE)).graph
        # Before fp32 is judged, which takes long: a pattern may fit nothing.
        self._recipes: dict[str, Recipe] = {
            scheme.name: scheme.recipe(
                graph, reduced=reduced, block=settings.block, keep=settings.keep, only=settings.only,
                calibration=settings.calibration,
            )
            for scheme in schemes
        }  # fmt: skip
        decoder = source.manifest.cache is not None
        few = min(CALIBRATION_TEXTS, max(1, len(examples) // 3)) if decoder and examples is not None else None
        calibration, judging = split(examples, calibration=few) if examples is not None else (None, None)
        judging = judging if settings.judge else None
        self._data = examples.source if examples is not None else "random tokens"
        self._calibrating = len(calibration) if calibration is not None else FEEDS
        self._judging = len(judging or ())
        self._shop = Workshop(
            source, scratch, calibration, judging,
            cpu=self._cpu, threads=settings.threads, max_drop=settings.max_drop, new_tokens=settings.new_tokens,
            say=say, kept=kept,
        )  # fmt: skip
        if warning := few_judged(self._shop.reference):
            warnings.warn(warning, UserWarning, stacklevel=4)

    def one(self, scheme: Scheme) -> Report:
        """Make one scheme's variant.

        Raises:
            CheckFailed: it misses its gate, and a degraded variant was not allowed.
        """
        attempt = self._attempt(scheme)
        entry = self._entry(attempt)
        if entry.miss and not self._settings.allow_degraded:
            raise CheckFailed(refusal(scheme, attempt))
        why = "misses its gate, and is written all the same, as asked" if entry.miss else "passes its gate"
        return self._report([entry], entry, f"{scheme.name} {why}")

    def search(self, schemes: Sequence[Scheme]) -> Report:
        """Try schemes and choose the fastest that passes; none where none is fast enough."""
        entries = [self._entry(self._attempt(scheme)) for scheme in schemes]
        fit = [entry for entry in entries if not entry.miss and entry.speedup >= self._settings.min_speedup]
        if not fit:
            least = f"{self._settings.min_speedup:g} times as fast as fp32"
            why = f"no scheme both passes its gate and is {least} here; fp32 stays"
            return self._report(entries, None, why)
        best = max(fit, key=lambda entry: (round(entry.speedup, 2), -entry.bytes))
        why = f"of {len(fit)} that pass, {best.scheme} is the fastest here: {best.speedup:.2f} times fp32"
        if best.latency.counts:
            why += f" for a {next(iter(best.latency.counts))} and {self._settings.new_tokens} new tokens"
        return self._report(entries, best, why)

    def finish(self, entry: Entry, *, by_auto: bool) -> None:
        """Describe the chosen variant in certificate, card and manifest, and keep what it gives on golden inputs."""
        # The files on disk are those of the last candidate of this precision.
        made = self._shop.write(entry.scheme, entry.precision, entry.candidate.recipe)
        manifest = self._source.manifest
        made = dataclasses.replace(made, variant=dataclasses.replace(made.variant, degraded=bool(entry.miss)))
        bundle = self._shop.with_variant(entry.precision, made)
        self._drop_others(bundle, entry.precision)
        if GOLDEN_NAME in manifest.files and self._settings.judge:
            _write_golden(bundle, entry.precision, self._settings.threads)
        record = read_certificate(self._source)
        described = candidate_record(entry, self._shop.gate, self._cpu, self._data, self._counts([entry]))
        record["variants"][entry.precision] = {**described, CHOSEN_BY_AUTO: True} if by_auto else described
        (self._scratch / CERTIFICATE_NAME).write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", "utf-8")
        (self._scratch / "README.md").write_text(model_card(bundle.manifest, record), "utf-8")
        facts = dataclasses.replace(bundle.manifest, files=file_facts(self._scratch))
        (self._scratch / MANIFEST_NAME).write_text(facts.to_json(), "utf-8")
        if self._settings.judge:
            speeds.remember(facts, entry.precision, self._cpu, entry.speedup)

    def _attempt(self, scheme: Scheme) -> Attempt:
        self._say(f"trying {scheme.name}")
        return satisfy(self._shop, scheme, self._recipes[scheme.name])

    def _entry(self, attempt: Attempt) -> Entry:
        candidate = attempt.candidate
        precision = candidate.precision
        if not self._settings.judge:
            return Entry(candidate, attempt.worst, UNTIMED, UNTIMED, self._reference_bytes())
        timed: Mapping[str, Latency] = self._shop.latency(candidate)
        return Entry(candidate, attempt.worst, timed[REFERENCE], timed[precision], self._reference_bytes())

    def _reference_bytes(self) -> int:
        variant = self._source.variant(REFERENCE)
        return sum(self._source.manifest.files[name].bytes for name in (variant.graph, *variant.weights))

    def _counts(self, entries: Sequence[Entry]) -> tuple[int, int]:
        """Examples that calibrated any of some candidates, and those that judged."""
        return (self._calibrating if any(entry.calibrated for entry in entries) else 0, self._judging)

    def _report(self, entries: list[Entry], chosen: Entry | None, why: str) -> Report:
        return Report(
            str(self._source.path), self._source.manifest.task, self._data, self._counts(entries),
            self._shop.reference, self._reference_bytes(), tuple(entries), chosen, why, self._cpu,
        )  # fmt: skip

    def _drop_others(self, bundle: Bundle, precision: str) -> None:
        """Remove what other candidates left in the scratch folder, and the golden numbers of the variant before."""
        wanted = {*self._source.manifest.files, MANIFEST_NAME} - {golden_name(precision)}
        for variant in bundle.manifest.variants.values():
            wanted |= {variant.graph, *variant.weights}
        for path in [p for p in self._scratch.rglob("*") if p.is_file()]:
            if path.relative_to(self._scratch).as_posix() not in wanted:
                path.unlink()


def _write_golden(bundle: Bundle, precision: str, threads: int | None) -> None:
    """Keep the variant's own outputs on the golden inputs, so that another machine can tell whether it repeats them."""
    session = Session(bundle, precision, threads=threads)
    cases = {
        name: GoldenCase(case.inputs, session.run(case.inputs))
        for name, case in read_golden(bundle.path / GOLDEN_NAME).items()
    }
    write_golden(bundle.path / golden_name(precision), cases)
