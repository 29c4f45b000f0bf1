"""A result as tables: for the terminal, as Markdown, and as CSV with one line for each measure."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Final

from pinnace.bench.measures import MEASURES, RUN, START
from pinnace.bench.results import Accuracy, Candidate, Measure, Result
from pinnace.bench.verdicts import Row
from pinnace.units import in_unit

CSV_COLUMNS: Final = (
    "candidate", "program", "model", "precision", "device", "threads", "scenario", "batch", "length", "prompt",
    "output_tokens", "concurrency", "measure", "unit", "value", "low", "high", "blocks", "absent",
)  # fmt: skip
_NONE: Final = "–"
_NOWHERE: Final = ("",) * 6  # the places of the sweep that a measure of the whole candidate lacks
_SHARE: Final = "share"
_ACCURACY_HEADS: Final = ("rows", "cosine", "top-1")
Table = tuple[list[str], list[list[str]]]


def render(result: Result) -> str:
    """The tables for a terminal."""
    parts = [_head(result)]
    parts += [f"{title}\n{_aligned(table)}" for title, table in _tables(result)]
    return "\n\n".join([*parts, *_notes(result)])


def render_markdown(result: Result) -> str:
    """The same as Markdown."""
    parts = ["# Benchmark", _head(result)]
    parts += [f"## {title[:1].upper()}{title[1:]}\n\n{_piped(table)}" for title, table in _tables(result)]
    return "\n\n".join([*parts, *_notes(result)]) + "\n"


def render_csv(result: Result) -> str:
    """One line for each measure, in base units; ``blocks`` are separated by blanks."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for candidate in result.candidates:
        who = (candidate.name, candidate.program, candidate.model, candidate.precision, candidate.device)
        for name, measure in candidate.measures.items():
            writer.writerow([*who, candidate.threads, *_NOWHERE, *_csv_measure(name, measure)])
        for line in _csv_accuracy(candidate.accuracy):
            writer.writerow([*who, candidate.threads, *_NOWHERE, *line])
        for point in result.points:
            if point.candidate == candidate.name:
                for name, measure in point.measures.items():
                    writer.writerow([*who, candidate.threads, *point.place, *_csv_measure(name, measure)])
    return out.getvalue()


def render_rows(rows: Sequence[Row]) -> str:
    """A comparison for a terminal."""
    heads = ["", "measure", "before", "after", "change", "95 % interval", "verdict", "confidence"]
    several = len({(row.candidate, row.other) for row in rows}) > 1
    lines = []
    for row in rows:
        unit = MEASURES[row.measure].unit
        where = [row.candidate if row.candidate == row.other else f"{row.other} -> {row.candidate}"] if several else []
        lines.append(
            [
                ", ".join([*where, *([row.place] if row.place else [])]),
                MEASURES[row.measure].title,
                in_unit(row.before, unit),
                in_unit(row.after, unit),
                _percent(row.change),
                _NONE if row.low is None or row.high is None else f"{_percent(row.low)} to {_percent(row.high)}",
                row.verdict,
                f"{100 * (1 - row.chance):.3g} %" if row.worse or row.better else "",
            ]
        )
    return _aligned((heads, lines)) + "\nA change above 0 is worse: slower, or more memory."


def _percent(share: float) -> str:
    return f"{100 * share:+.1f} %"


def _head(result: Result) -> str:
    machine, settings = result.machine, result.settings
    lines = [
        f"{machine.processor}, {machine.cpus} CPUs, {', '.join(machine.features) or 'no known features'}",
        f"{settings.task}, {settings.inputs}",
        f"{settings.rounds} rounds in {settings.starts} starts, seed {settings.seed}",
    ]
    for limit in result.limits:
        gemm, memory = in_unit(limit.gemm_flops, "FLOP/s"), in_unit(limit.memory_bytes_s, "bytes/s")
        lines.append(f"limit with {limit.threads} threads: fp32 multiplication {gemm}, memory {memory}")
    return "\n".join(lines)


def _tables(result: Result) -> list[tuple[str, Table]]:
    candidates = [candidate for candidate in result.candidates if not candidate.missing]
    found = [("each process", _of_candidates(candidates))]
    for label in dict.fromkeys(point.label for point in result.points):
        points = [point for point in result.points if point.label == label]
        names = [name for name in RUN if any(name in p.measures and p.measures[name].value is not None for p in points)]
        rows = [[p.candidate, *(_shown(name, p.measures.get(name)) for name in names)] for p in points]
        found.append((label, (["", *(RUN[name].title for name in names)], rows)))
    return found


def _of_candidates(candidates: Sequence[Candidate]) -> Table:
    names = [name for name in START if any(name in candidate.measures for candidate in candidates)]
    rows = []
    for candidate in candidates:
        found = candidate.accuracy
        words = [_NONE] * 4 if found is None else _accuracy_words(found)
        rows.append([candidate.name, *(_shown(name, candidate.measures.get(name)) for name in names), *words])
    metric = next((c.accuracy.metric for c in candidates if c.accuracy and c.accuracy.metric), "metric")
    return ["", *(START[name].title for name in names), *_ACCURACY_HEADS, metric], rows


def _accuracy_words(found: Accuracy) -> list[str]:
    cosine, value = (_NONE if n is None else f"{n:.5f}" for n in (found.cosine_mean, found.value))
    top1 = _NONE if found.shown_top1 is None else in_unit(found.shown_top1, "")
    return [f"{found.rows:,}" if found.rows else _NONE, cosine, top1, value]


def _shown(name: str, measure: Measure | None) -> str:
    if measure is None or measure.value is None:
        return _NONE
    text = in_unit(measure.value, MEASURES[name].unit)
    if measure.low is None or measure.high is None or not measure.value:
        return text
    reach = max(measure.high - measure.value, measure.value - measure.low) / measure.value
    return text if reach < 0.005 else f"{text} ±{100 * reach:.0f} %"


def _notes(result: Result) -> list[str]:
    measured = [owner.measures for owner in result.candidates] + [owner.measures for owner in result.points]
    # One reason for each measure is enough: the others differ in a count.
    absent = {
        name: f"no {MEASURES[name].title}: {measure.absent}"
        for measures in reversed(measured)
        for name, measure in measures.items()
        if measure.absent
    }
    missing = [
        f"{candidate.name} was not measured: {candidate.missing}"
        for candidate in result.candidates
        if candidate.missing
    ]
    checks = [f"{'ok' if good else 'DIFFERS'}: {what}" for what, good in result.checks.items()]
    few = {f"no top-1: {one.accuracy.no_top1}" for one in result.candidates if one.accuracy and one.accuracy.no_top1}
    lines = [*missing, *checks, *sorted([*absent.values(), *few])]
    return ["\n".join(lines)] if lines else []


def _aligned(table: Table) -> str:
    heads, rows = table
    widths = [max(len(row[place]) for row in [heads, *rows]) for place in range(len(heads))]
    lines = []
    for row in [heads, *rows]:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines)


def _piped(table: Table) -> str:
    heads, rows = table
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _csv_measure(name: str, measure: Measure) -> list[object]:
    blocks = " ".join(repr(value) for value in measure.blocks)
    return [name, MEASURES[name].unit or _SHARE, measure.value, measure.low, measure.high, blocks, measure.absent]


def _csv_accuracy(found: Accuracy | None) -> list[list[object]]:
    """Lines of what the outputs and the task's metric say, where they say it."""
    if found is None:
        return []
    lines: list[list[object]] = []
    if found.cosine_min is not None:
        lines.append(["cosine_min", "cosine", found.cosine_min, None, None, "", ""])
    if found.top1 is not None:
        lines.append(["top1", _SHARE, found.shown_top1, None, None, "", found.no_top1])
    if found.metric:
        why = "" if found.value is not None else "the variant gave NaN or infinity"
        lines.append([f"metric_{found.metric}", _SHARE, found.value, None, None, "", why])
    return lines
