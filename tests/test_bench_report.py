"""Reports: well-formed pages that load nothing and hold every candidate, whatever the names and numbers are."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import threading
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pinnace.bench import report, report_profile
from pinnace.bench.measures import MEASURES
from pinnace.bench.plots import Axis, LeftOut, Plot, RowsPlot, Ruler, XYPlot
from pinnace.bench.plots_png import draw_png
from pinnace.bench.plots_speed import outline
from pinnace.bench.profile import AROUND, BETWEEN_NODES, Cost, Phase, Profile
from pinnace.bench.profile_map import ATTENTION, MLP, OTHER
from pinnace.bench.report_file import write_whole
from pinnace.bench.results import Candidate, Measure, Point, Result, Samples
from pinnace.errors import MachineError, MissingExtra
from pinnace.units import digits, in_unit
from tests.bench_result import MISSING, decoder_result, encoder_result

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src="http://evil.test/x" onerror="alert(1)">',
    "]]></svg></style><style>*{display:none}",
    "url(http://evil.test)",
    "null \x00 bell \x07 escape \x1b[31m surrogate \ud800 right-to-left \u202e",
    "$\\frac{1}{0}$ & very " + "long " * 30,
    "日本語の名前",
)
ALL_PLOTS = {
    "distribution-latency", "length", "throughput", "server", "accuracy", "roofline", "memory", "start",
}  # fmt: skip


def profile() -> Profile:
    costs = [
        Cost("embeddings", OTHER, "Gather", 1, 1e-4),
        *(Cost(f"layer {n}", ATTENTION, "MatMul", 4, 2e-3, 2e8, 1e6) for n in range(3)),
        *(Cost(f"layer {n}", MLP, "<Gelu>", 1, 3e-3) for n in range(3)),
        Cost(BETWEEN_NODES, OTHER, BETWEEN_NODES, 0, 4e-4),
        Cost(AROUND, OTHER, AROUND, 0, -1e-6),  # clocks may disagree by a microsecond
    ]
    whole = math.fsum(cost.seconds for cost in costs)
    phase = Phase("run", 20, whole, whole * 0.97, tuple(costs), {})
    return Profile("<b>undle", "qa", "BertFor", "fp32", 1, {"batch": 1, "length": 8}, {"onnxruntime": "1"}, 9e10, 1e10,
                   True, (phase,))  # fmt: skip


def parsed(page: str) -> ET.Element:
    """The page as a tree: it is written so that an XML parser, which forgives nothing, reads it."""
    assert page.startswith("<!DOCTYPE html>\n")
    return ET.fromstring(page)  # noqa: S314 - our own text


def drawn(result: Result) -> dict[str, Plot]:
    return {plot.key: plot for plot in report.plots_of(result) if not isinstance(plot, LeftOut)}


def left_out(result: Result) -> dict[str, str]:
    return {plot.key: plot.reason for plot in report.plots_of(result) if isinstance(plot, LeftOut)}


def check_page(page: str) -> ET.Element:
    """What every page must be: well-formed, titled, accessible, alone, and with finite places inside its pictures."""
    tree = parsed(page)
    assert tree.get("lang") == "en"
    assert tree.findtext("head/title")
    names = [element.tag for element in tree.iter()]
    assert not {"script", "img", "iframe", "object", "embed", "base", "form", "use", "image"} & set(names)
    for element in tree.iter():
        for key, value in element.attrib.items():
            assert not key.startswith("on"), key
            assert key not in ("src", "srcset", "data", "action", "style")
            assert key != "href" or value == "data:,"
    style = tree.findtext("head/style") or ""
    assert "url(" not in style
    assert "@import" not in style
    assert "prefers-color-scheme: dark" in style
    assert "@media print" in style
    policy = next(meta.get("content") for meta in tree.iter("meta") if meta.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    identifiers = [element.get("id") for element in tree.iter() if element.get("id")]
    assert len(identifiers) == len(set(identifiers))
    for picture in tree.iter("svg"):
        check_picture(picture, set(identifiers))
    for table in tree.iter("table"):
        heads = table.findall("thead/tr/th")
        assert all(head.get("scope") == "col" for head in heads)
        for row in table.findall("tbody/tr"):
            assert row[0].tag == "th"
            assert len(row) in (1, len(heads)) or "not measured" in "".join(row.itertext())
    return tree


def check_picture(picture: ET.Element, identifiers: set[str | None]) -> None:
    assert picture.get("role") == "img"
    assert set((picture.get("aria-labelledby") or "").split()) <= identifiers
    assert picture.findtext("title")
    assert picture.findtext("desc")
    _, _, wide, high = map(float, (picture.get("viewBox") or "").split())
    for element in picture.iter():
        for key in ("x", "cx", "width"):
            if (said := element.get(key)) is not None:
                assert -1 <= float(said) <= wide + 1, (element.tag, said)
        for key in ("y", "cy", "height"):
            if (said := element.get(key)) is not None:
                assert -1 <= float(said) <= high + 1, (element.tag, said)
        if path := element.get("d"):
            assert re.fullmatch(r"[MLHVhvmlz0-9. -]+", path), path
            for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path):
                assert -8 <= float(x) <= wide + 8, path
                assert -8 <= float(y) <= high + 8, path


def text_of(tree: ET.Element) -> str:
    return " ".join("".join(tree.itertext()).split())


@pytest.mark.parametrize("make", [encoder_result, decoder_result])
def test_pages_are_whole_and_alone(make: Callable[[], Result]) -> None:
    result = make()
    tree = check_page(report.render(result))
    text = text_of(tree)
    for candidate in result.candidates:
        assert candidate.name in text
        assert candidate.missing in text
    for point in result.points:
        assert point.label in text
    assert {figure.get("id") for figure in tree.iter("figure")} == set(drawn(result))


def test_every_figure_is_in_the_table() -> None:
    result = encoder_result()
    cells = {" ".join("".join(cell.itertext()).split()) for cell in parsed(report.render(result)).iter("td")}
    owners: list[Point | Candidate] = [*result.points, *result.candidates]
    for owner in owners:
        for name, found in owner.measures.items():
            if found.value is not None:
                assert any(cell.startswith(in_unit(found.value, MEASURES[name].unit)) for cell in cells), name


def test_a_full_result_has_every_plot() -> None:
    assert set(drawn(encoder_result())) == ALL_PLOTS
    assert {"distribution-first_token", "distribution-inter_token"} < set(drawn(decoder_result()))


def test_plots_that_would_be_empty_are_left_out_with_a_reason() -> None:
    result = encoder_result((1,), (128,), server=False)
    reasons = left_out(result)
    assert set(reasons) == {"length", "throughput", "server"}
    assert "--length 32,128,512" in reasons["length"]
    text = text_of(check_page(report.render(result)))
    assert all(reason in text for reason in reasons.values())
    bare = dataclasses.replace(
        result,
        limits=(),
        candidates=tuple(dataclasses.replace(one, measures={}, accuracy=None) for one in result.candidates),
        points=tuple(dataclasses.replace(one, samples={}, work=None) for one in result.points),
    )
    assert set(left_out(bare)) == {*ALL_PLOTS - {"distribution-latency"}, "distribution"}
    check_page(report.render(bare))


def test_a_result_without_points_is_a_page_that_says_so() -> None:
    result = encoder_result()
    gone = tuple(dataclasses.replace(one, missing="it would not start", measures={}) for one in result.candidates)
    tree = check_page(report.render(dataclasses.replace(result, points=(), candidates=gone)))
    assert "nothing was measured" in text_of(tree)
    assert text_of(tree).count("it would not start") >= len(gone)
    assert not list(tree.iter("svg"))


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_stay_text(name: str) -> None:
    result = renamed(encoder_result(), "int8", name)
    result = dataclasses.replace(result, machine=dataclasses.replace(result.machine, processor=name))
    page = report.render(result)
    tree = check_page(page)
    page.encode("utf-8")
    shown = "".join(c if c.isprintable() else "\ufffd" for c in name)
    rows = [" ".join("".join(head.itertext()).split()) for head in tree.iter("th")]
    assert " ".join(shown.split()) in rows
    check_page(report_profile.render(dataclasses.replace(profile(), bundle=name)))


def renamed(result: Result, old: str, new: str) -> Result:
    return dataclasses.replace(
        result,
        candidates=tuple(
            dataclasses.replace(one, name=new, model=new, missing=one.missing and new) if one.name == old else one
            for one in result.candidates
        ),
        points=tuple(dataclasses.replace(one, candidate=new) if one.candidate == old else one for one in result.points),
    )


@pytest.mark.parametrize("factor", [0.0, 1e-12, 1e15])
@pytest.mark.parametrize("make", [encoder_result, decoder_result])
def test_extreme_numbers_stay_in_the_picture(make: Callable[[], Result], factor: float) -> None:
    def scaled(found: Measure) -> Measure:
        value, low, high = (None if one is None else one * factor for one in (found.value, found.low, found.high))
        return Measure(value, low, high, (), found.absent)

    result = make()
    points = tuple(
        dataclasses.replace(
            point,
            measures={name: scaled(found) for name, found in point.measures.items()},
            samples={
                kind: Samples(one.count, tuple(value * factor for value in one.values))
                for kind, one in point.samples.items()
            },
        )
        for point in result.points
    )
    candidates = tuple(
        dataclasses.replace(one, measures={name: scaled(found) for name, found in one.measures.items()})
        for one in result.candidates
    )
    check_page(report.render(dataclasses.replace(result, points=points, candidates=candidates)))


def test_messages_say_what_the_numbers_say() -> None:
    plots = drawn(encoder_result())
    assert plots["length"].message.startswith("16.0 times the tokens take fp32")
    assert "int8 leads" in plots["accuracy"].message
    # Two candidates whose intervals overlap are not ranked.
    result = encoder_result((1,), (128,), server=False)
    same = {name: Measure(1.0, 0.9, 1.1) for name in ("latency_p50_s", "texts_per_s")}
    points = tuple(dataclasses.replace(one, measures={**one.measures, **same}) for one in result.points)
    page = text_of(parsed(report.render(dataclasses.replace(result, points=points))))
    assert "cannot be told apart" in page
    assert "not to be told from int8, fp16 and transformers fp32" in page


def test_a_missing_candidate_is_in_no_picture() -> None:
    for plot in drawn(encoder_result()).values():
        names = [row.label for row in plot.rows] if isinstance(plot, RowsPlot) else [one.name for one in plot.series]
        assert names
        assert MISSING not in names


@pytest.mark.parametrize("name", ["int8", HOSTILE[1], HOSTILE[5]])
def test_every_candidate_of_a_picture_is_named_in_it(name: str) -> None:
    result = renamed(encoder_result(), "int8", name)
    tree = parsed(report.render(result))
    for key, plot in drawn(result).items():
        figure = next(one for one in tree.iter("figure") if one.get("id") == key)
        texts = [(one.text or "").rstrip("…") for one in figure.iter("text")]
        names = [row.label for row in plot.rows] if isinstance(plot, RowsPlot) else [one.name for one in plot.series]
        for wanted in names:
            assert any(len(text) > 3 and wanted.startswith(text) for text in texts), (key, wanted)


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


def test_profiles_are_pages_too() -> None:
    tree = check_page(report_profile.render(profile()))
    text = text_of(tree)
    assert "<b>undle" in text
    assert all(f"layer {n}" in text for n in range(3))
    assert "<Gelu>" in text
    assert {figure.get("id") for figure in tree.iter("figure")} == {"layers-run", "operators-run"}


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    report.write_report(encoder_result(), path)
    assert check_page(path.read_text("utf-8")) is not None
    with pytest.raises(MachineError, match="No such file"):
        write_whole(tmp_path / "nowhere" / "report.html", "text")
    (tmp_path / "folder").mkdir()
    with pytest.raises(MachineError):
        write_whole(tmp_path / "folder", "text")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["folder", "report.html"]


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


def pixels(png: bytes) -> np.ndarray[Any, Any]:
    """A picture's colours, every tenth pixel, [.., .., 3] from 0 to 1."""
    import io

    from matplotlib.image import imread

    return np.asarray(imread(io.BytesIO(png), format="png"))[::10, ::10, :3]


def test_a_png_without_matplotlib_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtra, match=r"pip install 'pinnace\[report\]'"):
        draw_png("title", list(drawn(decoder_result()).values()))


@contextmanager
def proxy() -> Iterator[tuple[int, list[str]]]:
    """A proxy that refuses everything and remembers what it was asked for."""
    asked: list[str] = []
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            with client:
                client.settimeout(2)
                try:
                    asked.append(client.recv(4096).split(b"\r\n")[0].decode("latin-1"))
                    client.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
                except OSError:
                    continue

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield server.getsockname()[1], asked
    finally:
        server.close()


def browse(page: Path, folder: Path, *flags: str) -> tuple[bytes, list[str], str]:
    """Open a page in a headless browser: its screenshot, what it asked the network for, and what it complained of."""
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f"no browser here: none of {', '.join(BROWSERS)}")
    picture = folder / "page.png"
    with proxy() as (port, asked):
        done = subprocess.run(
            [
                browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
                "--disable-background-networking", "--disable-component-update", "--disable-sync",
                "--disable-default-apps", "--disable-extensions", f"--user-data-dir={folder / 'profile'}",
                f"--proxy-server=127.0.0.1:{port}", "--proxy-bypass-list=<-loopback>", "--enable-logging=stderr",
                "--window-size=1280,2400", f"--screenshot={picture}", *flags, page.as_uri(),
            ],
            capture_output=True, text=True, timeout=120, env={**os.environ, "HOME": str(folder)}, check=False,
        )  # fmt: skip
    if not picture.exists():
        pytest.skip(f"the browser does not run here: {done.stderr[-300:]}")
    ours = [request for request in asked if ".test" in request]
    complaints = "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
    return picture.read_bytes(), ours, complaints


def test_a_browser_shows_the_page_without_errors_or_network(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="reading the screenshot needs it")
    page = tmp_path / "report.html"
    for name in HOSTILE:
        page.write_text(report.render(renamed(encoder_result(), "int8", name)), "utf-8")
    picture, asked, complaints = browse(page, tmp_path)
    assert asked == []
    assert complaints == ""
    colours = pixels(picture)
    assert len(np.unique((colours * 8).astype(int).reshape(-1, 3), axis=0)) > 8
    dark, _, _ = browse(page, tmp_path, "--blink-settings=preferredColorScheme=0")
    assert pixels(dark).mean() < 0.4 < 0.7 < colours.mean()


def test_the_browser_check_would_find_a_request_and_an_error(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text('<img src="http://evil.test/x.png"><script>undefinedFunction()</script>', "utf-8")
    _, asked, complaints = browse(page, tmp_path)
    assert any("evil.test" in request for request in asked)
    assert "undefinedFunction" in complaints


def test_candidates_keep_their_colours() -> None:
    result = encoder_result()
    order = [one.name for one in result.candidates if isinstance(one, Candidate)]
    for plot in drawn(result).values():
        if isinstance(plot, XYPlot):
            assert all(series.colour == order.index(series.name) for series in plot.series)
