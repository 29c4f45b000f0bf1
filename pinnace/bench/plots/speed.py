"""Plots of time: its distribution, what throughput costs in latency, and how it grows with the length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from pinnace.bench.measures import LESS, MEASURES, MORE
from pinnace.bench.plots.data import XY, Axis, Guide, LeftOut, Mark, Plot, Row, RowsPlot, Series, XYPlot
from pinnace.bench.plots.view import THROUGHPUT, THROUGHPUT_OF_STREAMS, View, comparison, interval, measure
from pinnace.bench.results import Measure, Point, Samples
from pinnace.units import digits, in_unit

# Kind of sample -> what it is called, and the measure that is its median.
_SAMPLES: Final = {
    "latency": ("latency", "latency_p50_s"),
    "first_token": ("time to the first token", "first_token_s"),
    "inter_token": ("time of each further token", "inter_token_s"),
}
_QUANTILES: Final = ((0.5, "median"), (0.9, "p90"), (0.99, "p99"))
_LEAST_P99: Final = 1000  # fewer samples say nothing of the slowest hundredth
_LEAST_SAMPLES: Final = 10
_OUTLINE: Final = 72
_WIDE: Final = 6.0  # values further apart than this are drawn on a logarithmic axis


def distributions(view: View) -> list[Plot | LeftOut]:
    """How single times are spread at the main place: of whole queries, of first and of further tokens."""
    points = view.at_main()
    kinds = [kind for kind in _SAMPLES if any(_enough(point, kind) for point in points)]
    if not kinds:
        reason = f"no candidate has {_LEAST_SAMPLES} single times; measure for longer"
        return [LeftOut("distribution", _title("latency"), reason)]
    if len(kinds) > 1:
        kinds.remove("latency")  # a generator's whole query is told by its parts
    return [_distribution(view, kind, [point for point in points if _enough(point, kind)]) for kind in kinds]


def _distribution(view: View, kind: str, points: Sequence[Point]) -> Plot:
    what, median = _SAMPLES[kind]
    ends = [np.quantile(point.samples[kind].values, (0.0, 0.995)) for point in points]
    least, most = min(end[0] for end in ends), max(end[1] for end in ends)
    log = least > 0 and most > _WIDE * least
    known = [(point.candidate, m) for point in points if (m := measure(point, median))]
    return RowsPlot(
        f"distribution-{kind}", _title(what),
        f"Single times at {points[0].label}. The higher a hill, the more of a candidate's times were that long; narrow "
        f"hills at the left are best. Ticks stand at the median, p90 and, from {_LEAST_P99:,} times on, p99.",
        f"Median: {comparison(median, known)}" if known else "",
        Axis(what, "s", log=log, better=LESS),
        tuple(_ridge(view, point, point.samples[kind], log) for point in points),
    )  # fmt: skip


def _title(what: str) -> str:
    return f"How steady is it? Distribution of {what}"


def _enough(point: Point, kind: str) -> bool:
    return kind in point.samples and point.samples[kind].count >= _LEAST_SAMPLES


def _ridge(view: View, point: Point, samples: Samples, log: bool) -> Row:
    wanted = [pair for pair in _QUANTILES if pair[0] < 0.99 or samples.count >= _LEAST_P99]
    values = np.asarray(samples.values)
    quantiles = tuple((float(np.quantile(values, share)), word) for share, word in wanted)
    last = quantiles[-1]
    return Row(
        label=point.candidate,
        text=f"{in_unit(quantiles[0][0], 's')} · {last[1]} {in_unit(last[0], 's')}",
        colour=view.colour(point.candidate),
        outline=outline(values, log),
        quantiles=quantiles,
        detail=f"{point.candidate}, {samples.count:,} times: least {in_unit(float(values[0]), 's')}, "
        + ", ".join(f"{word} {in_unit(at, 's')}" for at, word in quantiles)
        + f", most {in_unit(float(values[-1]), 's')}",
    )


def outline(values: npt.NDArray[np.float64], log: bool) -> tuple[XY, ...]:
    """Outline of a distribution: a kernel density, up to the 99.5 % quantile, its highest point at 1.

    Args:
        values: positive numbers, sorted.
        log: take the density on a logarithmic axis.
    """
    kept = values[values <= np.quantile(values, 0.995)]
    points = np.log(kept) if log else kept
    low, high = float(points[0]), float(points[-1])
    quartiles = np.quantile(points, (0.25, 0.75))
    # Silverman's rule; never narrower than a hundredth of what is shown, or single values would be needles.
    width = 0.9 * min(float(points.std()) or 1.0, float(quartiles[1] - quartiles[0]) / 1.34 or 1.0)
    width = max(width * len(points) ** -0.2, (high - low) / 100, abs(high) * 1e-3, 1e-12)
    grid = np.linspace(low - 2 * width, high + 2 * width, _OUTLINE)
    heights = np.exp(-0.5 * ((grid[:, None] - points[None, :]) / width) ** 2).sum(1)
    heights /= heights.max()
    places = np.exp(grid) if log else np.maximum(grid, 0.0)
    return tuple((float(place), float(height)) for place, height in zip(places, heights, strict=True))


def throughput(view: View) -> list[Plot | LeftOut]:
    """What throughput costs in latency: by batch and concurrency, and by the rate of arrivals."""
    return [_by_batch(view), _by_rate(view)]


def _by_batch(view: View) -> Plot | LeftOut:
    key, title = "throughput", "What does throughput cost? Throughput against latency"
    series = []
    beside = view.beside_main("scenario", "batch", "concurrency") if view.main else {}
    several = len({point.concurrency for points in beside.values() for point in points}) > 1
    measures = THROUGHPUT_OF_STREAMS if several else THROUGHPUT
    work = measures[0]
    for name, points in beside.items():
        marks = []
        for point in sorted(points, key=lambda point: (point.batch, point.concurrency)):
            speed, time = measure(point, *measures), measure(point, "latency_p50_s", "inter_token_s")
            if speed is None or time is None or speed.value is None or time.value is None or time.value <= 0:
                continue
            work = next(key for key in measures if point.measures.get(key) is speed)
            label = f"batch {point.batch}" + (f" ×{point.concurrency}" if point.concurrency > 1 else "")
            detail = f"{name}, {point.label}: {in_unit(speed.value, MEASURES[work].unit)} at {in_unit(time.value, 's')}"
            marks.append(Mark(speed.value, time.value, interval(speed), interval(time), label, detail))
        if marks:
            series.append(Series(name, view.colour(name), tuple(marks)))
    if max((len(one.marks) for one in series), default=0) < 2:
        return LeftOut(key, title, "one batch size was measured; give more, such as --batch 1,4,16")
    unit = MEASURES[work].unit
    best = max(((one.name, mark) for one in series for mark in one.marks), key=lambda pair: pair[1].x)
    return XYPlot(
        key, title,
        "Each line is a candidate, each point a batch size (×N: queries at once). Further right is more work done, "
        "further down is a shorter wait. Bars are 95 % intervals.",
        f"Most work: {best[0]}, {best[1].label}: {in_unit(best[1].x, unit)} at {in_unit(best[1].y, 's')} a query.",
        Axis("throughput", unit, better=MORE, low=0.0),
        Axis("median latency", "s", log=True, better=LESS),
        tuple(series),
    )  # fmt: skip


def _by_rate(view: View) -> Plot | LeftOut:
    key, title = "server", "How much traffic can it take? Latency against the rate of arrivals"
    settings = view.result.settings
    percent = f"p{settings.percentile * 100:g}"
    curves = [point for point in view.result.points if len(point.curve) > 1]
    if not curves:
        if any(point.scenario == "server" for point in view.result.points):
            return LeftOut(key, title, "no rate of arrivals kept the latency bound")
        return LeftOut(key, title, "the server scenario was not run; add --scenario server")
    first = min(curves, key=lambda point: (point.batch, point.concurrency))
    series = []
    held = []
    for point in sorted(curves, key=lambda point: view.colour(point.candidate)):
        if point.place != first.place:
            continue
        marks = tuple(
            Mark(
                trial.rate, trial.latency_s,
                detail=f"{point.candidate} at {in_unit(trial.rate, 'queries/s')}: {percent} "
                f"{in_unit(trial.latency_s, 's')} over {trial.queries:,} queries, {'held' if trial.held else 'missed'}",
            )
            for trial in point.curve if trial.latency_s > 0
        )  # fmt: skip
        if marks:
            series.append(Series(point.candidate, view.colour(point.candidate), marks))
        if m := measure(point, "highest_rate"):
            held.append((point.candidate, m))
    if not series:
        return LeftOut(key, title, "no query of the server scenario was answered")
    guides = []
    if settings.latency_bound_s:
        rates = [mark.x for one in series for mark in one.marks]
        ends = tuple((end, settings.latency_bound_s) for end in (min(rates), max(rates)))
        guides.append(Guide(f"bound {in_unit(settings.latency_bound_s, 's')}", ends))
    return XYPlot(
        key, title,
        f"Queries arrive at random (Poisson). Each point is a rate that was tried, and the time from arrival to answer "
        f"that {settings.percentile * 100:g} % of the queries kept. Above the bound, the machine is full.",
        f"Highest rate within the bound: {comparison('highest_rate', held)}" if held else "No rate kept the bound.",
        Axis("rate of arrivals", "queries/s", better=MORE, low=0.0),
        Axis(f"{percent} latency", "s", log=True, better=LESS),
        tuple(series),
        tuple(guides),
    )  # fmt: skip


def by_length(view: View) -> Plot | LeftOut:
    """How time grows with the tokens of a row, or of a prompt."""
    key, title = "length", "Long inputs: time against length"
    series = []
    lengths: set[float] = set()
    for name, points in view.beside_main("length", "prompt").items() if view.main else ():
        marks = []
        for point in sorted(points, key=lambda point: point.length or point.prompt or 0):
            tokens, time = point.length or point.prompt, measure(point, "first_token_s", "latency_p50_s")
            if tokens and time is not None and time.value:
                detail = f"{name}, {tokens:,} tokens: {in_unit(time.value, 's')}"
                marks.append(Mark(tokens, time.value, None, interval(time), "", detail))
                lengths.add(tokens)
        if marks:
            series.append(Series(name, view.colour(name), tuple(marks)))
    if len(lengths) < 2:
        flag = "--prompt 32,128,512" if view.main and view.main.prompt else "--length 32,128,512"
        return LeftOut(key, title, f"one length was measured; give more, such as {flag}")
    what = "time to the first token" if view.main and view.main.prompt else "median latency"
    batch = view.main.batch if view.main else 1
    return XYPlot(
        key, title,
        f"Each line is a candidate at batch {batch}. Both axes are logarithmic: a straight line at 45 degrees is time "
        "in proportion to length. Bars are 95 % intervals.",
        _growth(series),
        Axis("length", "tokens", log=True, ticks=_thinned(sorted(lengths))),
        Axis(what, "s", log=True, better=LESS),
        tuple(series),
    )  # fmt: skip


def _growth(series: Sequence[Series]) -> str:
    longest = max(series, key=lambda one: one.marks[-1].x / one.marks[0].x)
    first, last = longest.marks[0], longest.marks[-1]
    text = f"{digits(last.x / first.x)} times the tokens take {longest.name} {digits(last.y / first.y)} times as long."
    ends = [(one.name, one.marks[-1]) for one in series if one.marks[-1].x == last.x]
    if len(ends) > 1:
        known = [(name, Measure(mark.y, *(mark.y_interval or (None, None)))) for name, mark in ends]
        text += f" At {last.x:,.0f} tokens: {comparison('latency_p50_s', known)}"
    return text


def _thinned(lengths: Sequence[float]) -> tuple[float, ...]:
    """Ticks at the measured lengths, those left out that stand too close to the one before."""
    kept: list[float] = []
    for length in lengths:
        if not kept or length > kept[-1] * 1.25:
            kept.append(length)
    return tuple(kept)
