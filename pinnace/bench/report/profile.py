"""A profile's report: where the time of a bundle goes, as one HTML file or one PNG."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pinnace.bench.plots.data import Axis, LeftOut, Plot, Row, RowsPlot, Segment
from pinnace.bench.profile.nodes import ATTENTION, MLP, NORMS, OTHER
from pinnace.bench.profile.records import NOT_LAYERS, Cost, Phase, Profile, group
from pinnace.bench.profile.run import WARM_UPS
from pinnace.bench.profile.table import HEADS, headline, notes, rows
from pinnace.bench.report.files import write_whole
from pinnace.bench.report.page import Cell, Fact, TableRow, bullets, facts, figures, page, pairs, section, table
from pinnace.bench.report.png import draw_png
from pinnace.units import in_unit

_COLOURS: Final[Mapping[str, int]] = {ATTENTION: 0, MLP: 1, NORMS: 2, OTHER: 6}
_OUTSIDE_COLOUR: Final = 6
_MOST_OPERATORS: Final = 12
_TITLES: Final[Mapping[str, str]] = {"run": "a run", "prompt": "the prompt", "step": "one step"}


def plots_of(profile: Profile) -> list[Plot | LeftOut]:
    """Two plots of each phase: time by layer, and by operator."""
    return [plot for phase in profile.phases for plot in (_by_layer(phase), _by_operator(phase))]


def render(profile: Profile) -> str:
    """Return the report as one HTML document that loads nothing."""
    sections = []
    for phase in profile.phases:
        name = _TITLES[phase.name]
        lines = []
        for title, listed in rows(profile, phase):
            lines.append(TableRow(title))
            lines += [TableRow(row, tuple(Cell(text) for text in cells)) for row, cells in listed]
        sections += [
            section(f"Where {name} goes", facts(_facts(profile, phase)), "<p></p>",
                    figures([_by_layer(phase), _by_operator(phase)])),
            section(f"All figures of {name}",
                    table(f"All figures of {name}", ["", *HEADS], lines, "Each section adds up to the whole.")),
            section("Notes", bullets(notes(profile, phase))),
        ]  # fmt: skip
    return page(
        f"Profile of {profile.bundle}",
        headline(profile, profile.phases[0])[0],
        [*sections, section("How it was measured", _method(profile))],
        "Written by pinnace profile. This file loads nothing from elsewhere.",
    )


def write_html(profile: Profile, path: str | Path) -> None:
    """Write the HTML report, whole or not at all.

    Raises:
        MachineError: the file cannot be written.
    """
    write_whole(path, render(profile))


def write_png(profile: Profile, path: str | Path) -> None:
    """Write the plots as one PNG, whole or not at all.

    Raises:
        MissingExtra: matplotlib is not installed.
        MachineError: the file cannot be written.
    """
    drawn = [plot for plot in plots_of(profile) if not isinstance(plot, LeftOut)]
    write_whole(path, draw_png(f"Profile of {headline(profile, profile.phases[0])[0]}", drawn))


def _facts(profile: Profile, phase: Phase) -> list[Fact]:
    total = group(phase.costs, lambda _cost: "")[""]
    parts = {name: cost for name, cost in group(phase.costs, lambda cost: cost.place).items() if name not in NOT_LAYERS}
    name, largest = max(parts.items(), key=lambda item: item[1].seconds)
    found = [
        Fact("Without the profiler", in_unit(phase.plain_seconds, "s"), _TITLES[phase.name]),
        Fact("Largest part", in_unit(largest.seconds / phase.seconds, ""), name),
        Fact("Profiler adds", in_unit(phase.overhead, ""), f"{in_unit(phase.seconds, 's')} under it"),
    ]
    if profile.gemm_flops and phase.plain_seconds > 0:
        rate = total.flops / phase.plain_seconds
        found.append(Fact("Rate of multiplications", in_unit(rate / profile.gemm_flops, ""),
                          "of this machine's own", f"{in_unit(rate, 'FLOP/s')} without the profiler"))  # fmt: skip
    return found


def _by_layer(phase: Phase) -> Plot:
    made, used = [], set()
    for layer, total in group(phase.costs, lambda cost: cost.layer).items():
        start, segments = 0.0, []
        parts = group([cost for cost in phase.costs if cost.layer == layer], lambda cost: cost.part)
        for part in _COLOURS:
            if part in parts:
                end = start + parts[part].seconds
                segments.append(Segment(part, _COLOURS[part], start, end))
                used.add(part)
                start = end
        detail = ", ".join(f"{part} {in_unit(cost.seconds, 's')}" for part, cost in parts.items())
        made.append(Row(layer, _text(total, phase), segments=tuple(segments), detail=f"{layer}: {detail}"))
    return RowsPlot(
        f"layers-{phase.name}", f"Time by layer: {_TITLES[phase.name]}",
        "Each bar is a layer of the model, or what is around the model, in the order in which they run. "
        "Times were taken under the profiler.",
        _largest(phase),
        Axis("time", "s", low=0.0),
        tuple(made),
        tuple((part, colour) for part, colour in _COLOURS.items() if part in used),
    )  # fmt: skip


def _by_operator(phase: Phase) -> Plot:
    groups = group(phase.costs, lambda cost: cost.operator)
    ordered = sorted(groups.items(), key=lambda item: (item[0] in NOT_LAYERS, -item[1].seconds))
    shown = [item for item in ordered if item[0] not in NOT_LAYERS][:_MOST_OPERATORS]
    rest = [cost for name, cost in ordered[_MOST_OPERATORS:] if name not in NOT_LAYERS]
    if rest:
        shown += [(f"{len(rest)} others", group(rest, lambda _cost: "")[""])]
    shown += [item for item in ordered if item[0] in NOT_LAYERS]
    made = [
        Row(name, _text(cost, phase), detail=f"{name}: {cost.calls:.0f} calls, {in_unit(cost.seconds, 's')}",
            segments=(Segment(name, _OUTSIDE_COLOUR if name in NOT_LAYERS else 0, 0.0, max(0.0, cost.seconds)),))
        for name, cost in shown
    ]  # fmt: skip
    name, cost = ordered[0]
    return RowsPlot(
        f"operators-{phase.name}", f"Time by operator: {_TITLES[phase.name]}",
        "Kernels that ONNX Runtime called; the inside of a function of the model has the function's name.",
        f"{name}: {in_unit(cost.seconds / phase.seconds, '')} in {cost.calls:.0f} calls.",
        Axis("time", "s", low=0.0),
        tuple(made),
    )  # fmt: skip


def _text(cost: Cost, phase: Phase) -> str:
    return f"{in_unit(cost.seconds, 's')} · {in_unit(cost.seconds / phase.seconds, '')}"


def _largest(phase: Phase) -> str:
    groups = group(phase.costs, lambda cost: cost.place)
    ordered = sorted(groups.items(), key=lambda item: -item[1].seconds)[:3]
    return ", ".join(f"{name} {in_unit(cost.seconds / phase.seconds, '')}" for name, cost in ordered) + " of the time."


def _method(profile: Profile) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in profile.versions.items())
    runs = ", ".join(f"{phase.name} {phase.runs}" for phase in profile.phases)
    return pairs(
        [
            ("task", f"{profile.task} ({profile.head})"),
            ("variant", f"{profile.precision}, {profile.threads} thread{'s' * (profile.threads > 1)}"),
            ("sizes", ", ".join(f"{name.replace('_', ' ')} {size}" for name, size in profile.sizes.items())),
            ("versions", versions),
            ("runs", f"{runs}, after {WARM_UPS} to warm up; random tokens of a fixed seed"),
            ("times", "the mean of the middle half of the runs, so that the parts add up to the whole"),
            ("profiler", "ONNX Runtime's own; runs with and without it took turns"),
            ("layers", "by the names of the model's modules; fused and inlined nodes were traced through the graph"),
        ]
    )
