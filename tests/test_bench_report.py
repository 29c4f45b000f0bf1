"""Reports: well-formed pages that load nothing and hold every candidate, whatever the names and numbers are."""

from __future__ import annotations

import dataclasses
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest

from pinnace.bench.measures import MEASURES
from pinnace.bench.plots.data import LeftOut, RowsPlot
from pinnace.bench.profile.nodes import ATTENTION, MLP, OTHER
from pinnace.bench.profile.records import AROUND, BETWEEN_NODES, Cost, Phase, Profile
from pinnace.bench.report import bench as report
from pinnace.bench.report import profile as report_profile
from pinnace.bench.report.files import write_whole
from pinnace.bench.results import Candidate, Measure, Point, Result, Samples
from pinnace.errors import MachineError
from pinnace.units import in_unit
from tests.bench_result import HOSTILE, decoder_result, drawn, encoder_result, renamed

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
                # Rates have their unit in the head of the column.
                text = re.sub(r" (texts|tokens|queries)/s$", "", in_unit(found.value, MEASURES[name].unit))
                assert any(cell.startswith(text) for cell in cells), name


@pytest.mark.parametrize("rows", [19, 20])
def test_a_top_1_of_few_rows_is_not_shown(rows: int) -> None:
    result = decoder_result()
    candidates = tuple(
        dataclasses.replace(one, accuracy=one.accuracy and dataclasses.replace(one.accuracy, rows=rows))
        for one in result.candidates
    )
    result = dataclasses.replace(result, candidates=candidates)
    text = text_of(parsed(report.render(result)))
    assert ("same top 94.0 % of 20 rows" in text) == (rows == 20)
    assert ("19 rows compared, a top-1 needs 20" in text) == (rows == 19)
    assert ("accuracy" in left_out(result)) == (rows == 19)


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


def test_only_what_can_be_told_apart_is_marked_as_best() -> None:
    result = encoder_result((1,), (128,), server=False)

    def marked(values: dict[str, tuple[float, float, float]]) -> list[str]:
        points = tuple(
            dataclasses.replace(point, measures={"latency_p50_s": Measure(*values[point.candidate])})
            for point in result.points
        )
        bare = tuple(dataclasses.replace(one, measures={}) for one in result.candidates)
        tree = parsed(report.render(dataclasses.replace(result, points=points, candidates=bare)))
        rows = [row for row in tree.iter("tr") if any("best" in (cell.get("class") or "") for cell in row)]
        return ["".join(row[0].itertext()) for row in rows]

    apart = {
        "fp32": (3.0, 2.9, 3.1),
        "int8": (1.0, 0.9, 1.1),
        "fp16": (1.05, 0.95, 1.2),
        "transformers fp32": (4.0, 3.0, 5.0),
    }
    assert marked(apart) == ["int8", "fp16"]
    assert marked(dict.fromkeys(apart, (1.0, 0.9, 1.1))) == []


def test_reasons_that_differ_in_a_number_are_one_line() -> None:
    result = encoder_result((1, 8), (512,), server=False)
    points = tuple(
        dataclasses.replace(
            one,
            measures={**one.measures, "latency_p99_s": Measure(None, absent=f"{place + 5} queries; p99 needs 1,000")},
        )
        for place, one in enumerate(result.points)
    )
    text = text_of(parsed(report.render(dataclasses.replace(result, points=points))))
    assert text.count("queries; p99 needs 1,000") == 1
    assert "p99: 5 to 12 queries; p99 needs 1,000" in text


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
