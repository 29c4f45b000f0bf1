"""The result's schema: what is written is read again, what is damaged is named; percentiles and their intervals."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pinnace.bench import estimates
from pinnace.bench.agreement import agreement, agrees, together
from pinnace.bench.alike import differences
from pinnace.bench.measures import MEASURES, START
from pinnace.bench.results import (
    FEWEST_ROWS,
    Accuracy,
    Candidate,
    Limit,
    Machine,
    Measure,
    Point,
    QueryWork,
    RatePoint,
    Result,
    Samples,
    Settings,
)
from pinnace.bench.tables import CSV_COLUMNS, render, render_csv, render_markdown
from pinnace.bench.verdicts import EXACT, FEWEST_ROUNDS, FEWEST_STARTS, JUDGED
from pinnace.errors import CheckFailed, UsageError

DOCUMENT = Path(__file__).parent.parent / "docs" / "bench.md"


def example() -> Result:
    point = Point(
        "fp32", "single-stream", 1, 128, None, None, 1,
        {"latency_p50_s": Measure(0.01, 0.009, 0.011, (0.01, 0.011)), "latency_p99_s": Measure(None, absent="too few")},
        {"latency": Samples(2, (0.01, 0.011))}, QueryWork(1e9, 4e8, 128), (RatePoint(10.0, 9.5, 0.02, 100, True),),
    )  # fmt: skip
    candidates = (
        Candidate("fp32", "pinnace", "tiny", "fp32", "cpu", 1, {"numpy": "2"}, measures={"load_s": Measure(0.1)}),
        Candidate("openvino", "openvino", "tiny", "fp32", "cpu", 1, {}, missing="No module named 'openvino'"),
    )
    machine = Machine("a processor", ("avx2",), "Linux x86_64", 2, None, 1 << 30, 1 << 20, 0.1, False)
    settings = Settings("feature-extraction", ("single-stream",), "random ids", 0, 2, 1, 0.5, None, 0.99, True)
    limits = (Limit(1, 1e11, 1e10, (1e11, 1e11), (1e10, 1e10)),)
    return Result(
        1, "run", "2026-01-01T00:00:00Z", 1.0, machine, {}, settings, limits, candidates, (point,), {"ok": True}
    )


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(example().to_json())
    assert Result.read(tmp_path / "r.json") == example()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data.update(format=2), "its format is 2"),
        (lambda data: data.pop("run"), "lacks fields: run"),
        (lambda data: data.update(extra=1), "unknown fields: extra"),
        (lambda data: data["points"][0].update(batch="1"), r"points\[0\].batch must be int, got str"),
        (lambda data: data["limits"][0].update(gemm_flops="fast"), r"limits\[0\].gemm_flops must be float"),
    ],
)
def test_damage_is_named(tmp_path: Path, change: Any, said: str) -> None:
    data = example().to_dict()
    change(data := json.loads(json.dumps(data)))
    (tmp_path / "r.json").write_text(json.dumps(data))
    with pytest.raises(UsageError, match=said):
        Result.read(tmp_path / "r.json")


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        Result.read(tmp_path / "none.json")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(UsageError, match="is not JSON"):
        Result.read(tmp_path / "text")


def test_the_document_lists_every_measure() -> None:
    text = DOCUMENT.read_text()
    for name, kind in MEASURES.items():
        assert f"| `{name}` | {kind.unit or 'share'} | {kind.better} | {kind.meaning} |" in text


def test_the_document_says_what_is_too_little() -> None:
    text = DOCUMENT.read_text()
    assert f"| {FEWEST_STARTS} starts and {FEWEST_ROUNDS} rounds |" in text
    once = [name for name in JUDGED if (name in START and name not in EXACT) or name == "highest_rate"]
    assert f"| {', '.join(f'`{name}`' for name in sorted(once, key=list(MEASURES).index))} |" in text
    assert f"| {FEWEST_ROUNDS} starts, and so {FEWEST_ROUNDS} rounds |" in text
    assert f"fewer than {FEWEST_ROWS}" in text


def test_unlike_runs_are_named() -> None:
    one = example()
    assert differences(one, one) == []
    assert differences(one, dataclasses.replace(one, versions={"numpy": "3"})) == []  # that may be the question
    other = dataclasses.replace(one, machine=dataclasses.replace(one.machine, cpus=64))
    assert differences(one, other) == ["machine.cpus: 2 and 64"]
    longer = dataclasses.replace(one, points=(dataclasses.replace(one.points[0], length=64),))
    assert differences(one, longer) == [
        "places: single-stream, batch 1, length 128 and single-stream, batch 1, length 64"
    ]


def test_tables() -> None:
    shown = render(example())
    assert "10.0 ms ±10 %" in shown
    assert "openvino was not measured: No module named 'openvino'" in shown
    assert "no p99: too few" in shown
    assert "| fp32 | 10.0 ms ±10 % |" in render_markdown(example())
    lines = [line.split(",") for line in render_csv(example()).splitlines()]
    assert tuple(lines[0]) == CSV_COLUMNS
    assert all(len(line) == len(CSV_COLUMNS) for line in lines)
    assert lines[2][12:15] == ["latency_p50_s", "s", "0.01"]


def with_accuracy(accuracy: Accuracy) -> Result:
    one, missing = example().candidates
    shown = dataclasses.replace(one, accuracy=accuracy, measures={**one.measures, "idle_cpu": Measure(0.01)})
    return dataclasses.replace(example(), candidates=(shown, missing))


def test_a_top_1_of_few_rows_is_not_shown() -> None:
    few, enough = (with_accuracy(Accuracy("fp32", rows, 0.99906, 0.99, 0.5, 0.1)) for rows in (2, FEWEST_ROWS))
    for shown in (render(few), render_markdown(few)):
        words = next(line for line in shown.splitlines() if "0.99906" in line).replace("|", " ").split()
        assert words[-4:] == ["2", "0.99906", "–", "–"]
        assert "no top-1: 2 rows compared, a top-1 needs 20" in shown
    for shown in (render(enough), render_markdown(enough)):
        words = next(line for line in shown.splitlines() if "0.99906" in line).replace("|", " ").split()
        assert words[-5:] == ["20", "0.99906", "50.0", "%", "–"]
        assert "no top-1" not in shown
    assert '"top1": 0.5' in few.to_json()


def test_csv_has_what_accuracy_there_is() -> None:
    def found(accuracy: Accuracy) -> dict[str, tuple[str, str, str]]:
        lines = list(csv.DictReader(io.StringIO(render_csv(with_accuracy(accuracy)))))
        assert all(line["unit"] for line in lines)
        return {line["measure"]: (line["unit"], line["value"], line["absent"]) for line in lines}

    lines = found(Accuracy("fp32", 20, 0.999, 0.99, 0.5, 0.1, "f1", 0.75, 0.8, "data"))
    assert lines["idle_cpu"] == ("share", "0.01", "")
    assert lines["cosine_min"] == ("cosine", "0.99", "")
    assert lines["top1"] == ("share", "0.5", "")
    assert lines["metric_f1"] == ("share", "0.75", "")
    lines = found(Accuracy("fp32", 1, None, None, 1.0, None, "f1", None, 0.8, "data"))
    assert "cosine_min" not in lines
    assert lines["top1"] == ("share", "", "1 row compared, a top-1 needs 20")
    assert lines["metric_f1"] == ("share", "", "the variant gave NaN or infinity")


def test_percentiles_and_their_intervals() -> None:
    random = np.random.default_rng(0)
    rounds = [list(random.exponential(1.0, 120)) for _ in range(10)]
    found = estimates.latency(rounds, seed=0)
    pooled = np.concatenate(rounds)
    for name, percent in estimates.PERCENTILES.items():
        measure = found[name]
        assert measure.value == pytest.approx(np.percentile(pooled, percent))
        assert measure.low is not None
        assert measure.high is not None
        assert measure.low <= float(np.percentile(pooled, percent)) <= measure.high
        assert len(measure.blocks) == 10


def test_intervals_hold_the_truth() -> None:
    held = 0
    for seed in range(40):
        times = np.random.default_rng(seed).exponential(1.0, (10, 120))
        measure = estimates.from_blocks(list(np.median(times, axis=1)), seed)
        assert measure.low is not None
        assert measure.high is not None
        held += measure.low <= np.log(2) <= measure.high
    assert held >= 34  # of 38, and less for chance


@pytest.mark.parametrize("starts", [3, 5])
def test_intervals_hold_the_truth_where_processes_differ(starts: int) -> None:
    """Rounds of a process resemble each other: 20 of them in 5 starts are 5 independent values."""
    random, held = np.random.default_rng(2), 0
    for _ in range(50):
        levels = np.concatenate([np.full(len(p), random.normal(0, 0.05)) for p in np.array_split(range(20), starts)])
        times = np.exp(levels + random.normal(0, 0.005, 20))
        found = estimates.from_blocks(list(times), 0, starts=starts)
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 1.0 <= found.high
    assert held >= 45
    rounds = [[time] * 2 for time in times]
    alone, shared = (estimates.latency(rounds, 0, count)["latency_mean_s"] for count in (None, starts))
    assert (alone.low or 0) > (shared.low or 0)
    assert (alone.high or 0) < (shared.high or 0)


def test_no_p99_of_few_queries() -> None:
    found = estimates.latency([[1.0] * 999], seed=0)["latency_p99_s"]
    assert (found.value, found.absent) == (None, "999 queries were measured, a p99 needs 1,000")
    assert estimates.latency([[1.0] * 1000], seed=0)["latency_p99_s"].value == 1.0


def test_intervals_of_rounds_know_that_rounds_differ() -> None:
    """Times of a round resemble each other: many of them say little more than one."""
    random = np.random.default_rng(1)
    rounds = [list(level + random.normal(0, 0.01, 200)) for level in random.normal(10, 1, 12)]
    found = estimates.latency(rounds, seed=0)["latency_mean_s"]
    assert found.low is not None
    assert found.high is not None
    assert found.high - found.low > 0.5  # of independent times it would be 0.1


def test_samples_are_bounded() -> None:
    kept = estimates.samples([list(np.arange(5000.0)), list(np.arange(5000.0, 9000.0))])
    assert (kept.count, len(kept.values), kept.values[0], kept.values[-1]) == (9000, 2000, 0.0, 8999.0)


@pytest.mark.parametrize("count", [1, 20])
def test_a_rare_stall_counts_once_in_the_mean(count: int) -> None:
    """One query of 20,000 takes 0.5 s: thinned to a few quantiles, it would be one of a few hundred."""
    rounds = [[*[1e-3] * 19_999, 0.5] for _ in range(count)]
    found = estimates.latency(rounds, seed=0)["latency_mean_s"]
    assert found.value is not None
    assert found.low is not None
    assert found.high is not None
    assert found.value == pytest.approx(np.mean(rounds))
    assert found.low <= found.value <= found.high < 1.2e-3


def test_agreement_of_outputs() -> None:
    vectors = [[1.0, 0.0], [0.0, 2.0]]
    same = agreement("fp32", vectors, vectors)
    assert (same.cosine_min, same.top1, same.max_abs) == (1.0, 1.0, 0.0)
    turned = agreement("fp32", [[1.0, 0.0], [2.0, 0.0]], vectors)
    assert (turned.cosine_min, turned.top1, turned.max_abs) == (0.0, 0.5, 2.0)
    assert not agrees(turned, "int8", vectors)
    assert agreement("fp32", [[1, 2, 3, 4]], [[1, 2, 3, 5]]).top1 == 0.75
    assert agreement("fp32", ["a", "b"], ["a", "c"]).top1 == 0.5
    with pytest.raises(CheckFailed, match="1 outputs, the reference fp32 gave 2"):
        agreement("fp32", vectors[:1], vectors)


@pytest.mark.parametrize(
    ("precision", "got", "good"),
    [
        ("fp32", [[5.0001], [0.01], [300.0]], True),
        ("fp32", [[5.0], [0.01], [250.0]], False),
        ("int8", [[5.5], [0.3], [280.0]], True),
        ("int8", [[0.1], [7.0], [2.0]], False),
    ],
)
def test_single_numbers_are_compared_by_their_difference(precision: str, got: list[list[float]], good: bool) -> None:
    """All of them point the same way, or the opposite one, so that a cosine says nothing."""
    want = [[5.0], [0.01], [300.0]]
    found = agreement("fp32", got, want)
    assert found.cosine_min is None
    assert agrees(found, precision, want) is good


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("width", [1, 2])
def test_numbers_that_are_none_are_told(bad: float, width: int) -> None:
    """No cosine comes of them, and JSON could not hold it: the whole run would be lost when it is written."""
    good, broken = [[1.0] * width, [2.0] * width], [[1.0] * width, [*[2.0] * (width - 1), bad]]
    with pytest.raises(CheckFailed, match=r"^the outputs have NaN or infinity in row 1 of 2"):
        agreement("fp32", broken, good)
    with pytest.raises(CheckFailed, match="the outputs of the reference fp32 have NaN or infinity"):
        agreement("fp32", good, broken)


def test_several_outputs_count_together() -> None:
    vectors = [[1.0, 0.0], [0.0, 2.0]]
    parts = [agreement("fp32", vectors, vectors), agreement("fp32", [[1.0, 0.0], [2.0, 0.0]], vectors)]
    both = together([*parts, agreement("fp32", [[3.0]], [[6.0]])])
    assert (both.rows, both.cosine_mean, both.cosine_min, both.top1, both.max_abs) == (5, 0.75, 0.0, 0.75, 3.0)
