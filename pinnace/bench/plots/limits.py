"""Plots beside time: speed against accuracy, the machine's roofline, memory, and the way to the first answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from pinnace.bench.measures import LESS, MEASURES, MORE
from pinnace.bench.plots.data import Axis, Guide, LeftOut, Mark, Plot, Row, RowsPlot, Segment, Series, XYPlot
from pinnace.bench.plots.view import THROUGHPUT, View, comparison, interval, measure, shown, spread
from pinnace.bench.results import FEWEST_ROWS, Accuracy, Limit, Point
from pinnace.units import digits, in_unit

# A name on the axis, a unit, whether it is a task's own metric, and how it is read.
_Yardstick = tuple[str, str, bool, Callable[[Accuracy], float | None]]
# What stands for accuracy where no metric does, the best first.
_AGREEMENTS: Final[tuple[_Yardstick, ...]] = (
    ("mean cosine to the reference", "cosine", False, lambda accuracy: accuracy.cosine_mean),
    ("same top answer as the reference", "", False, lambda accuracy: accuracy.shown_top1),
)
_ROOM: Final = 12.0  # the roofline shows this factor of intensity beside its points
_MOST_LABELS: Final = 6
_SAME, _SMALLEST_RANGE = 1e-5, 1e-3
PROMPT, DECODE = "prompt", "decode"


def accuracy(view: View) -> Plot | LeftOut:
    """What speed costs in accuracy."""
    key, title = "accuracy", "What does speed cost? Speed against accuracy"
    found = {point.candidate: point for point in view.at_main() if measure(point, *THROUGHPUT)}
    known = {one.name: one.accuracy for one in view.measured if one.accuracy is not None and one.name in found}
    yardstick = next((one for one in _yardsticks(known.values()) if len(_heights(one, known)) > 1), None)
    if yardstick is None:
        return LeftOut(
            key,
            title,
            "accuracy needs two candidates with comparable outputs, such as --precision fp32,int8, and of tokens or "
            f"answers {FEWEST_ROWS} or more",
        )
    axis_title, unit, is_metric, _ = yardstick
    heights = _heights(yardstick, known)
    series = []
    rows = []
    work = THROUGHPUT[0]
    for name, height in heights.items():
        speed = measure(found[name], *THROUGHPUT)
        if speed is None or speed.value is None:
            continue
        work = next(key for key in THROUGHPUT if found[name].measures.get(key) is speed)
        rows.append((name, speed))
        detail = f"{name}: {shown(work, speed)}, {axis_title} {height:.5g}"
        mark = Mark(speed.value, height, interval(speed), None, "", detail)
        series.append(Series(name, view.colour(name), (mark,), line=False))
    lowest, top = min(heights.values()), max(0.0 if is_metric else 1.0, *heights.values())
    if top - lowest < _SAME:
        said = "All give what the reference gives." if not is_metric else "All are as accurate."
    else:
        worst = next(name for name, height in heights.items() if height == lowest)
        text = in_unit(lowest, "") if unit == "" else digits(lowest, 4)
        said = f"Least accurate: {worst}, {axis_title} {text}."
    # What differs by less than anyone would notice must not fill the picture.
    shown_range = max(top - lowest, _SMALLEST_RANGE)
    place = view.main.label if view.main else ""
    return XYPlot(
        key, title,
        f"Each point is a candidate at {place}; the best stand at the top right. Accuracy was compared after the "
        "clock, on the same inputs.",
        f"{comparison(work, rows)} {said}",
        Axis("throughput", MEASURES[work].unit, better=MORE, low=0.0),
        Axis(axis_title, unit, better=MORE, low=top - shown_range * 1.08, high=top + shown_range * 0.08),
        tuple(series),
    )  # fmt: skip


def _yardsticks(known: Iterable[Accuracy]) -> list[_Yardstick]:
    metrics = {one.metric for one in known if one.metric and one.value is not None}
    return [*((name, "", True, _metric_value) for name in metrics if len(metrics) == 1), *_AGREEMENTS]


def _metric_value(accuracy: Accuracy) -> float | None:
    return accuracy.value


def _heights(yardstick: _Yardstick, known: Mapping[str, Accuracy]) -> dict[str, float]:
    return {name: height for name, one in known.items() if (height := yardstick[3](one)) is not None}


def roofline(view: View) -> Plot | LeftOut:
    """How near each candidate comes to what the machine can do."""
    key, title = "roofline", "How near the machine's limit? Roofline"
    placed: dict[str, list[tuple[Mark, Limit]]] = {}
    for points in view.places():
        for point in points:
            limit = view.result.limit(view.result.candidate(point.candidate).threads)
            if point.work is not None and limit is not None and min(limit.gemm_flops, limit.memory_bytes_s) > 0:
                marks = [(mark, limit) for mark in _attained(point, limit)]
                placed.setdefault(point.candidate, []).extend(marks)
    placed = {name: marks for name, marks in placed.items() if marks}
    if not placed:
        return LeftOut(key, title, "no candidate's work could be counted, or the machine's limits were not measured")
    every = [mark for marks in placed.values() for mark, _ in marks]
    crowded = len(every) > _MOST_LABELS
    used = {limit.threads: limit for marks in placed.values() for _, limit in marks}
    ridges = [limit.gemm_flops / limit.memory_bytes_s for limit in used.values()]
    low = min(*(mark.x for mark in every), *ridges) / _ROOM
    high = max(*(mark.x for mark in every), *ridges) * _ROOM
    guides = tuple(
        Guide(
            f"{count} thread{'s' * (count > 1)}: {in_unit(limit.gemm_flops, 'FLOP/s')}",
            ((low, low * limit.memory_bytes_s), (limit.gemm_flops / limit.memory_bytes_s, limit.gemm_flops),
             (high, limit.gemm_flops)),
        )
        for count, limit in sorted(used.items())
    )  # fmt: skip
    share, name, label = max(
        (mark.y / min(limit.gemm_flops, mark.x * limit.memory_bytes_s), name, mark.label)
        for name, marks in placed.items()
        for mark, limit in marks
    )
    return XYPlot(
        key, title,
        "The dashed roof is what this machine did in the same run: memory speed on the slope, fp32 multiplication on "
        "the flat. Points on the roof cannot be faster without doing less. "
        "Integer arithmetic, or weights that a cache holds, may go above it.",
        f"Nearest: {name} ({label}) with {in_unit(share, '')} of the limit above it.",
        Axis("work for each byte of weights", "FLOP/byte", log=True),
        Axis("rate", "FLOP/s", log=True, better=MORE),
        tuple(
            Series(
                name, view.colour(name),
                tuple(dataclasses.replace(m, label="") if crowded else m for m, _ in marks), line=False,
            )
            for name, marks in placed.items()
        ),
        guides,
    )  # fmt: skip


def _attained(point: Point, limit: Limit) -> list[Mark]:
    """Where a point stands under the roof: an encoder once; a generator with its prompt and with its new tokens."""
    work, found = point.work, []
    if work is None or work.bytes <= 0 or work.flops <= 0:
        return []
    if (gemm := measure(point, "gemm_fraction")) and gemm.value:
        label = _short(point) + (f" {PROMPT}" if point.prompt else "")
        found.append((work.flops / work.bytes, gemm.value * limit.gemm_flops, label, gemm.value, "multiplication"))
    if point.prompt and (memory := measure(point, "memory_fraction")) and memory.value:
        # A new token does the work of one token of the prompt, in each row.
        intensity = work.flops / max(work.tokens, 1) * point.batch / work.bytes
        rate = intensity * memory.value * limit.memory_bytes_s
        found.append((intensity, rate, f"{_short(point)} {DECODE}", memory.value, "memory"))
    return [
        Mark(x, y, label=label, detail=f"{point.candidate}, {point.label}: {in_unit(y, 'FLOP/s')}, "
             f"{in_unit(part, '')} of the {what} limit")
        for x, y, label, part, what in found
    ]  # fmt: skip


def _short(point: Point) -> str:
    length = point.length or point.prompt
    return f"{point.batch}×{length}" if length else f"batch {point.batch}"


def memory(view: View) -> Plot | LeftOut:
    """Memory at rest and at its peak."""
    key, title = "memory", "How much memory? Resident memory of each process"
    rows = []
    for one in view.measured:
        settled, peak = measure(one, "settled_bytes"), measure(one, "peak_bytes")
        values = [m.value for m in (settled, peak) if m is not None and m.value is not None]
        if not values:
            continue
        steady = values[0] if settled else 0.0
        segments = [Segment("at rest", view.colour(one.name), 0.0, steady)] if settled else []
        text = " · ".join(
            f"{in_unit(m.value, 'bytes')}{' peak' if m is peak else ''}"
            for m in (settled, peak)
            if m is not None and m.value is not None
        )
        ticks = ((peak.value, "peak"),) if peak is not None and peak.value is not None else ()
        rows.append(Row(one.name, text, "", view.colour(one.name), tuple(segments), quantiles=ticks))
    if not rows:
        return LeftOut(key, title, "this machine does not tell the memory of a process")
    known = [(one.name, m) for one in view.measured if (m := measure(one, "settled_bytes"))]
    return RowsPlot(
        key, title,
        "Bars are the memory of the process at rest after its runs, ticks the most that it held at any time. Python "
        "and libraries are in it.",
        f"At rest {comparison('settled_bytes', known)}" if known else "",
        Axis("resident memory", "bytes", low=0.0, better=LESS),
        tuple(rows),
    )  # fmt: skip


def start(view: View) -> Plot | LeftOut:
    """From the start of a process to its first answer."""
    key, title = "start", "How soon is it ready? From the start of a process to its first answer"
    rows = []
    for one in view.measured:
        cold = measure(one, "cold_start_s")
        if cold is None or cold.value is None:
            continue
        parts = [
            f"{MEASURES[name].title} {shown(name, m)}"
            for name in ("import_s", "load_s", "first_inference_s")
            if (m := measure(one, name))
        ]
        segment = Segment("cold start", view.colour(one.name), 0.0, cold.value)
        detail = f"{one.name}: {shown('cold_start_s', cold)} ({spread('cold_start_s', cold)}); {', '.join(parts)}"
        rows.append(
            Row(one.name, shown("cold_start_s", cold), "", view.colour(one.name), (segment,),
                interval=interval(cold), detail=detail)
        )  # fmt: skip
    if not rows:
        return LeftOut(key, title, "no cold start was measured")
    known = [(one.name, m) for one in view.measured if (m := measure(one, "cold_start_s"))]
    return RowsPlot(
        key, title,
        "Each process was started afresh; the time runs until its first answer is there. Bars at the end are 95 % "
        "intervals.",
        f"Cold start: {comparison('cold_start_s', known)}",
        Axis("time", "s", low=0.0, better=LESS),
        tuple(rows),
    )  # fmt: skip
