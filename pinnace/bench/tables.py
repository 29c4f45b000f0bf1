"""A result as tables: for the terminal, as Markdown, and as CSV with one line for each measure."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Final

from pinnace.bench.judge import Row
from pinnace.bench.measures import MEASURES, RUN, START
from pinnace.bench.results import Candidate, Measure, Result
from pinnace.units import in_unit

CSV_COLUMNS: Final = (
    "candidate", "program", "model", "precision", "device", "threads", "scenario", "batch", "length", "prompt",
    "output_tokens", "concurrency", "measure", "unit", "value", "low", "high", "blocks", "absent",
)  # fmt: skip
_NONE: Final = "–"
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
            writer.writerow([*who, candidate.threads, "", "", "", "", "", "", *_csv_measure(name, measure)])
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
        numbers = [] if found is None else [found.cosine_mean, found.top1, found.value]
        words = [_NONE if n is None else f"{n:.5f}" for n in numbers] or [_NONE] * 3
        rows.append([candidate.name, *(_shown(name, candidate.measures.get(name)) for name in names), *words])
    metric = next((c.accuracy.metric for c in candidates if c.accuracy and c.accuracy.metric), "metric")
    return ["", *(START[name].title for name in names), "cosine", "top-1", metric], rows


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
    lines = [*missing, *checks, *sorted(absent.values())]
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
    return [name, MEASURES[name].unit, measure.value, measure.low, measure.high, blocks, measure.absent]
