"""Plots: axes, numbers, shapes and limits are those of the data; pictures are drawn, or the extra is named."""

from __future__ import annotations

import dataclasses
import math
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pinnace.bench.plots.data import Axis, RowsPlot, Ruler, XYPlot
from pinnace.bench.plots.speed import outline
from pinnace.bench.report import bench as report
from pinnace.bench.report.png import draw_png
from pinnace.bench.results import Point, Result
from pinnace.errors import MissingExtra, UsageError
from pinnace.units import digits, in_unit
from tests.bench_result import HOSTILE, MISSING, decoder_result, drawn, encoder_result, pixels, renamed


def test_a_missing_candidate_is_in_no_picture() -> None:
    for plot in drawn(encoder_result()).values():
        names = [row.label for row in plot.rows] if isinstance(plot, RowsPlot) else [one.name for one in plot.series]
        assert names
        assert MISSING not in names


def test_the_roofline_stands_on_the_measured_limits() -> None:
    result = encoder_result()
    plot = drawn(result)["roofline"]
    assert isinstance(plot, XYPlot)
    (limit,) = result.limits
    _, ridge, flat = plot.guides[0].points
    assert ridge == (limit.gemm_flops / limit.memory_bytes_s, limit.gemm_flops)
    assert flat[1] == limit.gemm_flops
    fp32 = next(series for series in plot.series if series.name == "fp32")
    point = next(one for one in result.points if one.candidate == "fp32" and one.batch == 1 and one.length == 128)
    assert point.work is not None
    time = point.measures["latency_p50_s"].value
    assert time is not None
    mark = next(one for one in fp32.marks if one.x == point.work.flops / point.work.bytes)
    assert mark.y == pytest.approx(point.work.flops / time)


def test_equal_throughputs_are_no_reason_to_fail() -> None:
    """Two batch sizes of one candidate are as fast: the first is named."""
    result = encoder_result()

    def level(point: Point) -> Point:
        measures = {
            name: dataclasses.replace(point.measures[name], value=8.0) for name in ("texts_per_s", "tokens_per_s")
        }
        return dataclasses.replace(point, measures={**point.measures, **measures})

    points = tuple(level(point) for point in result.points if point.scenario == "single-stream")
    plot = drawn(dataclasses.replace(result, points=points))["throughput"]
    assert isinstance(plot, XYPlot)
    assert plot.message.startswith("Most work: fp32, batch 1: ")


def test_differences_that_nobody_would_notice_do_not_fill_the_picture() -> None:
    result = encoder_result()
    near = tuple(
        dataclasses.replace(one, accuracy=one.accuracy and dataclasses.replace(one.accuracy, cosine_mean=1 - 2e-8))
        for one in result.candidates
    )
    plot = drawn(dataclasses.replace(result, candidates=near))["accuracy"]
    assert isinstance(plot, XYPlot)
    assert plot.message.endswith("All give what the reference gives.")
    ruler = Ruler(plot.y, [mark.y for series in plot.series for mark in series.marks])
    assert max(len(ruler.tick_text(tick)) for tick in ruler.ticks) <= len("0.9998")


def test_the_outline_of_a_distribution_has_its_peak_where_values_are() -> None:
    values = np.sort(np.random.default_rng(1).normal(0.010, 0.0005, 2000))
    shape = outline(values, log=False)
    assert max(height for _, height in shape) == 1.0
    assert max(shape, key=lambda point: point[1])[0] == pytest.approx(0.010, abs=3e-4)
    assert max(height for place, height in shape if place > 0.0112) < 0.15
    # All the same, or all but one.
    assert all(math.isfinite(x) and math.isfinite(y) for x, y in outline(np.full(50, 0.01), log=True))


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(("low", "high"), [(1e-6, 3.0), (0.011, 0.0113), (1.0, 1.0), (99.5, 100.0), (3e8, 4e9)])
def test_axes_have_ticks_inside_and_different_texts(log: bool, low: float, high: float) -> None:
    ruler = Ruler(Axis("time", "s", log=log), [low, high])
    texts = [ruler.tick_text(tick) for tick in ruler.ticks]
    assert len(set(texts)) == len(texts) >= 2
    for tick, text in zip(ruler.ticks, texts, strict=True):
        assert -1e-9 <= ruler.place(tick) <= 1 + 1e-9
        assert float(text.replace(",", "")) == pytest.approx(tick * ruler.scale.factor, rel=1e-3, abs=1e-9)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0123, "s", "12.3 ms"), (1.5, "s", "1.50 s"), (12e-6, "s", "12.0 µs"), (3.2e9, "bytes", "3.20 GB"),
        (0.921, "", "92.1 %"), (7e10, "FLOP/s", "70.0 GFLOP/s"), (1234.4, "texts/s", "1,234 texts/s"),
        (9.999e-3, "s", "10.0 ms"), (0.0, "texts/s", "0 texts/s"),
    ],
)  # fmt: skip
def test_numbers_have_units_for_a_reader(value: float, unit: str, text: str) -> None:
    assert in_unit(value, unit) == text


def test_figures_are_neither_lost_nor_invented() -> None:
    assert [digits(value) for value in (0.00123, 1.0, 99.96, 123456.0)] == ["0.00123", "1.00", "100", "123,456"]


@pytest.mark.parametrize("make", [encoder_result, decoder_result])
def test_pictures_are_drawn_as_png(make: Callable[[], Result]) -> None:
    pytest.importorskip("matplotlib", reason="the report extra is not installed")
    plots = drawn(renamed(make(), "fp32", HOSTILE[5]))
    content = draw_png("A $title$", list(plots.values()))
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    wide, high = struct.unpack(">II", content[16:24])
    assert wide > 1200
    assert high > 400 * len(plots) / 2
    assert len(set(pixels(content).reshape(-1, 3).round(1).tolist().__repr__().split("], ["))) > 20


def test_a_result_without_points_has_no_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the report extra is not installed")
    report.write_png(encoder_result((1,), (128,), server=False), tmp_path / "one.png")
    assert (tmp_path / "one.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(UsageError, match="nothing was measured"):
        report.write_png(dataclasses.replace(encoder_result(), points=()), tmp_path / "none.png")


def test_a_png_without_matplotlib_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtra, match=r"pip install 'pinnace\[report\]'"):
        draw_png("title", list(drawn(decoder_result()).values()))


def test_candidates_keep_their_colours() -> None:
    result = encoder_result()
    order = [one.name for one in result.candidates]
    for plot in drawn(result).values():
        if isinstance(plot, XYPlot):
            assert all(series.colour == order.index(series.name) for series in plot.series)
