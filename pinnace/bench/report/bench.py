"""A benchmark's report: one HTML file with the main numbers, the plots, every figure, and how it was measured."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from pinnace.bench.measures import MEASURES, RUN, START
from pinnace.bench.plots import limits, speed
from pinnace.bench.plots.data import LeftOut, Plot
from pinnace.bench.plots.view import THROUGHPUT, View, lead, listed, measure, ranked, shown, spread
from pinnace.bench.report.files import write_whole
from pinnace.bench.report.page import (
    Cell,
    Fact,
    TableRow,
    bullets,
    facts,
    figures,
    halves,
    page,
    pairs,
    section,
    table,
)
from pinnace.bench.report.png import draw_png
from pinnace.bench.results import SCENARIOS, Candidate, Measure, Point, Result
from pinnace.errors import UsageError
from pinnace.units import digits, in_unit

# The numbers at the top: a question and the measures that answer it, the first that is there.
_HEADLINES: Final = (
    ("Quickest answer (median)", ("latency_p50_s", "first_token_s")),
    ("Most work", THROUGHPUT),
    ("Soonest ready (cold start)", ("cold_start_s",)),
    ("Least memory at rest", ("settled_bytes", "peak_bytes")),
)


def plots_of(result: Result) -> list[Plot | LeftOut]:
    """All plots of a result, in the report's order; those that would be empty say why."""
    view = View(result)
    if not result.points:
        return [LeftOut("all", "All plots", "nothing was measured")]
    return [
        *speed.distributions(view),
        speed.by_length(view),
        *speed.throughput(view),
        limits.accuracy(view),
        limits.roofline(view),
        limits.memory(view),
        limits.start(view),
    ]


def render(result: Result) -> str:
    """Return the report as one HTML document that loads nothing."""
    view = View(result)
    machine = result.machine
    count = len(view.measured)
    lead = (
        f"{result.settings.task} · {count} candidate{'s' * (count != 1)} · {machine.processor} · "
        f"{result.started[:16].replace('T', ' ')} UTC"
    )
    checks = [f"{name}: {'agrees' if ok else 'DOES NOT AGREE'}" for name, ok in result.checks.items()]
    return page(
        _title(result),
        lead,
        [
            section(f"At {view.main.label}", facts(_headlines(view))) if view.main else "",
            section("Pictures", figures(plots_of(result))),
            section("All figures", _points_tables(view), _reasons(result)),
            section("Each candidate", _candidates_table(view)),
            section("Checked after the clock", bullets(checks)),
            section("Machine and settings", halves(_machine(result), _settings(result))),
            section("How it was measured", bullets(_method(result))),
        ],
        f"Written by pinnace bench. Run {result.run}, format {result.format}. This file loads nothing from elsewhere.",
    )


def write_report(result: Result, path: str | Path) -> None:
    """Write the HTML report, whole or not at all.

    Raises:
        MachineError: the file cannot be written.
    """
    write_whole(path, render(result))


def write_png(result: Result, path: str | Path) -> None:
    """Write the plots as one PNG, whole or not at all.

    Raises:
        MissingExtra: matplotlib is not installed.
        MachineError: the file cannot be written.
        UsageError: there is nothing to draw.
    """
    drawn = [plot for plot in plots_of(result) if not isinstance(plot, LeftOut)]
    if not drawn:
        raise UsageError("nothing was measured, so there is no picture; the HTML report says why")
    write_whole(path, draw_png(_title(result), drawn))


def _title(result: Result) -> str:
    models = list(dict.fromkeys(candidate.model for candidate in result.candidates))
    return f"Benchmark of {listed(models) if models else 'nothing'}"


def _headlines(view: View) -> list[Fact]:
    made = []
    points = view.at_main()
    for title, names in _HEADLINES:
        owners: list[tuple[str, Point | Candidate]] = [
            *((point.candidate, point) for point in points),
            *((one.name, one) for one in view.measured),
        ]
        name = next((name for name in names if any(measure(owner, name) for _, owner in owners)), None)
        if name is None:
            continue
        ordered, equal = ranked(name, [(who, m) for who, owner in owners if (m := measure(owner, name))])
        best, found, _ = ordered[0]
        if len(ordered) == 1:
            more = f"95 % interval {spread(name, found)}" if spread(name, found) else ""
        elif equal:
            more = f"not to be told from {listed(equal)}"
        else:
            more = lead(name, ordered)
        made.append(Fact(title, shown(name, found), best, more))
    return made


def _points_tables(view: View) -> str:
    """A table for each scenario: they have different measures."""
    places = view.places()
    return "".join(
        _points_table(view, scenario, chosen)
        for scenario in SCENARIOS
        if (chosen := [points for points in places if points[0].scenario == scenario])
    )


def _points_table(view: View, scenario: str, places: Sequence[Sequence[Point]]) -> str:
    names = [name for name in RUN if any(measure(point, name) for points in places for point in points)]
    rows = []
    for points in places:
        rows.append(TableRow(points[0].label))
        ordered = sorted(points, key=lambda point: view.colour(point.candidate))
        best = {name: _best(name, {point.candidate: point for point in ordered}) for name in names}
        rows += [
            TableRow(
                point.candidate,
                tuple(_cell(name, point.measures.get(name), point.candidate in best[name]) for name in names),
                view.colour(point.candidate),
            )
            for point in ordered
        ]
    said = "Small numbers are 95 % bootstrap intervals; the best of a place, and what cannot be told from it, is green."
    return table(f"All figures, {scenario}", ["candidate", *map(_head, names)], rows, said)


def _head(name: str) -> str:
    """A column's head; rates have their unit here and not in every cell."""
    kind = MEASURES[name]
    return f"{kind.title} ({kind.unit})" if _is_rate(name) and "/s" not in kind.title else kind.title


def _is_rate(name: str) -> bool:
    return MEASURES[name].unit in ("texts/s", "tokens/s", "queries/s")


def _candidates_table(view: View) -> str:
    names = [name for name in START if any(measure(one, name) for one in view.measured)]
    best = {name: _best(name, {one.name: one for one in view.measured}) for name in names}
    agreement = any(one.accuracy for one in view.measured)
    rows = []
    for one in view.result.candidates:
        what = Cell(f"{one.program} {one.versions.get(one.program, '')}".strip(), f"{one.precision}, {one.device}")
        if one.missing:
            said = Cell("not measured", one.missing, why=one.missing)
            rows.append(TableRow(one.name, (what, Cell(str(one.threads)), said), view.colour(one.name)))
            continue
        cells = [
            what,
            Cell(str(one.threads)),
            *(_cell(name, one.measures.get(name), one.name in best[name]) for name in names),
        ]
        rows.append(TableRow(one.name, (*cells, *([_agreement(one)] if agreement else [])), view.colour(one.name)))
    heads = ["candidate", "program", "threads", *map(_head, names)]
    return table("Each candidate", [*heads, *(["accuracy"] if agreement else [])], rows)


def _agreement(one: Candidate) -> Cell:
    found = one.accuracy
    if found is None:
        return Cell("", why="nothing could be compared")
    if found.reference == one.name and found.value is None:
        return Cell("reference")
    parts = []
    if found.value is not None:
        parts.append(f"{found.metric} {in_unit(found.value, '')}")
    if found.cosine_mean is not None:
        parts.append(f"cosine {found.cosine_mean:.5f}")
    if found.shown_top1 is not None:
        parts.append(f"same top {in_unit(found.shown_top1, '')} of {found.rows:,} rows")
    if found.no_top1:
        parts.append(found.no_top1)
    why = [f"{found.rows:,} rows against {found.reference}"] if found.reference else []
    why += [f"{found.metric} on {found.data}"] if found.data else []
    return Cell(parts[0] if parts else "", ", ".join(parts[1:]), why="; ".join(why))


def _cell(name: str, found: Measure | None, best: bool) -> Cell:
    if found is None:
        return Cell("")
    if found.value is None:
        return Cell("", why=found.absent)
    text = digits(found.value) if _is_rate(name) else shown(name, found)
    return Cell(text, spread(name, found), best)


def _best(name: str, owners: Mapping[str, Point | Candidate]) -> set[str]:
    """The best, and who cannot be told from it; nobody where that is all."""
    ordered, equal = ranked(name, [(who, m) for who, owner in owners.items() if (m := measure(owner, name))])
    return {ordered[0][0], *equal} if len(ordered) > len(equal) + 1 else set()


def _reasons(result: Result) -> str:
    """Why figures are absent: each reason once, and those that differ in their first number in one line."""
    reasons: dict[str, tuple[dict[str, None], list[int]]] = {}
    owners: list[Point | Candidate] = [*result.points, *result.candidates]
    for owner in owners:
        for name, found in owner.measures.items():
            if found.value is None and found.absent:
                number = re.match(r"\d+", found.absent)
                titles, numbers = reasons.setdefault(found.absent[number.end() if number else 0 :], ({}, []))
                titles[MEASURES[name].title if name in MEASURES else name] = None
                numbers += [int(number[0])] if number else []
    return bullets(
        f"{listed(titles)}: {' to '.join(map(str, sorted({min(numbers), max(numbers)}))) if numbers else ''}{reason}"
        for reason, (titles, numbers) in reasons.items()
    )


def _machine(result: Result) -> str:
    machine = result.machine
    reached = [
        (f"limit, {one.threads} thread{'s' * (one.threads > 1)}",
         f"{in_unit(one.gemm_flops, 'FLOP/s')} fp32 multiplication, {in_unit(one.memory_bytes_s, 'bytes/s')} memory")
        for one in result.limits
    ]  # fmt: skip
    return pairs(
        [
            ("processor", machine.processor),
            ("instruction sets", ", ".join(machine.features)),
            ("system", machine.system),
            ("CPUs", f"{machine.cpus}" + (f", quota {machine.quota:g}" if machine.quota is not None else "")),
            ("memory", "" if machine.memory_bytes is None else in_unit(machine.memory_bytes, "bytes")),
            ("cache of a core", "" if machine.cache_bytes is None else in_unit(machine.cache_bytes, "bytes")),
            ("load before", f"{machine.load:.2f} running processes"),
            *reached,
            ("versions", ", ".join(f"{name} {version}" for name, version in sorted(result.versions.items()))),
        ]
    )


def _settings(result: Result) -> str:
    asked = result.settings
    return pairs(
        [
            ("task", asked.task),
            ("scenarios", ", ".join(asked.scenarios)),
            ("inputs", asked.inputs),
            ("seed", str(asked.seed)),
            ("rounds", str(asked.rounds)),
            ("fresh starts", str(asked.starts)),
            ("part of a round", f"at least {in_unit(asked.round_s, 's')}"),
            ("latency bound", "" if asked.latency_bound_s is None else
             f"{in_unit(asked.latency_bound_s, 's')} for {asked.percentile * 100:g} % of queries"),
            ("CPUs pinned", "yes" if asked.pinned else "no"),
            ("took", in_unit(result.seconds, "s")),
        ]
    )  # fmt: skip


def _method(result: Result) -> list[str]:
    asked = result.settings
    return [
        "Every candidate is a process of its own"
        + (", held to as many CPUs as it has threads." if asked.pinned else ", not held to any CPU."),
        f"Candidates took turns in {asked.rounds} rounds, so that a slow minute of the machine meets all of them.",
        "Each was warmed up before its clock started, and its outputs were compared after the clock had stopped.",
        "Intervals are 95 % bootstrap intervals over the single times and rounds. A p99 needs 1,000 queries.",
        "The machine's limits are a large fp32 multiplication and reading memory, measured in the same rounds.",
        "Single stream: one query after another. Offline: all at once. Server: arrivals at random (Poisson).",
    ]
