"""``pinnace bench`` on real, small bundles: processes, scenarios, counts, files, absent peers, exit codes."""

from __future__ import annotations

import dataclasses
import gc
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import pinnace
from pinnace.bench import limits, loop, rounds, summary
from pinnace.bench.children import ChildFailed, Server, run_child
from pinnace.bench.jobs import random_ids
from pinnace.bench.loop import Prepared, TimedJob
from pinnace.bench.machine import Energy, Usage, chosen_cpus
from pinnace.bench.own import open_own
from pinnace.bench.plan import PointPlan
from pinnace.bench.profile.flops import count_cost
from pinnace.bench.rate_search import PRECISION, RateSearch, most_late, queries_needed
from pinnace.bench.results import Candidate, Result
from pinnace.bench.rounds import Raw
from pinnace.cli.main import main
from pinnace.errors import UsageError
from pinnace.runtime.engine.ort import onnxruntime
from tests.conftest import DATA
from tests.generation_bundles import HEAD_SIZE, HEADS, LAYERS, MakeBundle, decoder_of

__all__ = ["decoder_of"]

BundleOf = Callable[[str], Path]
QUICK = ("--rounds", "6", "--starts", "2", "--round-seconds", "20ms", "--threads", "1", "-q")


@pytest.fixture(scope="module")
def measured(bundle_of: BundleOf, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run over two lengths, beside a peer whose package this environment lacks."""
    path = tmp_path_factory.mktemp("bench") / "run.json"
    words = ["bench", str(bundle_of("tiny-embed")), "--length", "4,8", "--output", str(path), *QUICK]
    peers = ["--peers", f"openvino={sys.executable}", "--csv", str(path.with_suffix(".csv"))]
    assert main([*words, *peers]) == 0
    return path


def test_a_run_has_what_was_asked_for(measured: Path) -> None:
    result = Result.read(measured)
    own, peer = result.candidates
    assert (own.name, own.precision, own.threads, own.missing) == ("pinnace fp32", "fp32", 1, "")
    assert "openvino" in peer.missing
    assert [point.length for point in result.points] == [4, 8]
    for point in result.points:
        middle = point.measures["latency_p50_s"]
        assert middle.value is not None
        assert 0 < middle.value < 1
        assert len(middle.blocks) == 6
        assert point.samples["latency"].count >= 6
        assert point.measures["energy_j"].value is not None or "RAPL" in point.measures["energy_j"].absent
        assert 0 < (point.measures["gemm_fraction"].value or 0) < 1.5
    for name in ("import_s", "cold_start_s", "load_s", "first_inference_s", "settled_bytes", "peak_bytes"):
        assert len(own.measures[name].blocks) == 2, name
    assert own.accuracy is not None
    assert own.accuracy.cosine_min == pytest.approx(1.0)
    (limit,) = result.limits
    assert (limit.threads, len(limit.gemm_blocks), len(limit.memory_blocks)) == (1, 6, 6)


def test_a_run_does_not_differ_from_itself_and_a_slower_one_is_told(measured: Path, tmp_path: Path) -> None:
    result = Result.read(measured)
    # Two starts are too few to judge: each round counts as a start, and what starts give once is left out.
    settings = dataclasses.replace(result.settings, starts=result.settings.rounds)
    candidates = tuple(judged_by_rounds(one) for one in result.candidates)
    result = dataclasses.replace(result, settings=settings, candidates=candidates)
    before, slower = tmp_path / "before.json", tmp_path / "slower.json"
    before.write_text(result.to_json())
    assert main(["compare", str(before), str(before), "--fail-above", "5%", "-q"]) == 0
    points = []
    for point in result.points:
        old = point.measures["latency_p50_s"]
        assert old.value is not None
        new = dataclasses.replace(old, value=1.1 * old.value, blocks=tuple(1.1 * value for value in old.blocks))
        points.append(dataclasses.replace(point, measures={**point.measures, "latency_p50_s": new}))
    slower.write_text(dataclasses.replace(result, points=tuple(points)).to_json())
    assert main(["compare", str(before), str(slower), "--fail-above", "5%", "-q"]) == 1
    assert main(["compare", str(before), str(slower), "--fail-above", "20%", "-q"]) == 0
    assert main(["compare", str(slower), str(before), "--fail-above", "5%", "-q"]) == 0
    assert main(["compare", str(measured), str(measured), "--fail-above", "5%", "-q"]) == 1


def judged_by_rounds(candidate: Candidate) -> Candidate:
    kept = {name: found for name, found in candidate.measures.items() if name not in ("load_s", "settled_bytes")}
    return dataclasses.replace(candidate, measures=kept)


def test_unlike_runs_are_refused(measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = json.loads(measured.read_text())
    data["machine"]["processor"] = "another"
    other = tmp_path / "other.json"
    other.write_text(json.dumps(data))
    assert main(["compare", str(measured), str(other)]) == 2
    assert "machine.processor" in capsys.readouterr().err
    assert main(["compare", str(measured), str(other), "--force", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["unlike"][0].startswith("machine.processor")
    verdicts = {"no difference", "not judged: 2 starts, needs 3", "not judged: values of 2 starts, needs 5"}
    assert {row["verdict"] for row in shown["rows"]} == verdicts


def test_texts_offline_and_arrivals(bundle_of: BundleOf, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = tmp_path / "texts.txt"
    lines.write_text("A short one.\nA text that is somewhat longer than the other one.\nThe last.\n")
    words = ["bench", str(bundle_of("tiny-classify")), "--input", str(lines), "--scenario", "offline,server"]
    words += ["--latency-bound", "50ms", "--percentile", "80%", "--rounds", "2", "--starts", "1"]
    assert main([*words, "--round-seconds", "20ms", "--threads", "1", "-q", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    offline, server = shown["points"]
    assert (offline["scenario"], offline["batch"]) == ("offline", 3)
    assert offline["measures"]["texts_per_s"]["value"] > 1
    assert offline["work"]["tokens"] == sum_of_tokens(shown)
    assert server["measures"]["highest_rate"]["value"] > 1
    assert any(tried["held"] for tried in server["curve"])
    assert shown["candidates"][0]["accuracy"]["top1"] == 1.0


def test_the_task_s_metric_stands_beside_speed(
    bundle_of: BundleOf, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "questions.json"
    rows = json.loads((DATA / "qa_dev.json").read_text("utf-8"))
    data.write_text(json.dumps(rows[:24]))
    words = ["bench", str(bundle_of("bert-glossary-qa")), "--length", "8", "--data", str(data), *QUICK]
    assert main([*words, "--json", "--markdown", str(tmp_path / "t.md")]) == 0
    found = json.loads(capsys.readouterr().out)["candidates"][0]["accuracy"]
    assert (found["metric"], found["data"]) == ("f1", "24 labelled examples of questions.json")
    assert found["value"] == found["reference_value"] > 0.95
    assert found["cosine_min"] == pytest.approx(1.0)
    assert "f1" in (tmp_path / "t.md").read_text("utf-8")
    # What cannot judge is told before anything is measured.
    data.write_text('{"neither": "question", "nor": "text"}\n')
    assert main(words) == 2
    assert "questions.json" in capsys.readouterr().err


def sum_of_tokens(shown: Mapping[str, Any]) -> int:
    return int(shown["settings"]["inputs"].split(",")[1].split()[0])


def test_two_bundles_in_the_same_rounds(bundle_of: BundleOf, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = str(bundle_of("tiny-embed"))
    assert main(["bench", bundle, "--against", bundle, "--length", "4", *QUICK, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["comparison"]
    assert {row["measure"] for row in rows} >= {"latency_p50_s", "load_s", "bundle_bytes"}
    assert all(row["paired"] for row in rows)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--length", "100000"], "more than tiny-embed takes"),
        (["--prompt", "8"], "has no prompt"),
        (["--scenario", "serve"], "server"),
        (["--scenario", "server"], "--latency-bound"),
        (["--latency-bound", "5"], "a time with its unit"),
        (["--peers", "pytorch=python"], "unknown peer"),
        (["--precision", "int3"], "unknown precision"),
        (["--threads", "0"], "whole numbers"),
        (["--random-weights", "bert"], "one of the two"),
    ],
)
def test_wrong_requests(bundle_of: BundleOf, capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    assert main(["bench", str(bundle_of("tiny-embed")), *words, "-q"]) == 2
    assert said in capsys.readouterr().err


def test_flops_are_those_of_the_configuration(bundle_of: BundleOf) -> None:
    config = json.loads((Path(__file__).parent / "data" / "tiny-embed" / "config.json").read_text())
    H, M, L = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    cost = count_cost(bundle_of("tiny-embed"), "fp32")
    pooler, linear, square = 2 * H * H, L * (8 * H * H + 4 * H * M), L * 4 * H
    assert cost.coefficients == pytest.approx((pooler, linear, square))
    assert cost.flops(10) == pytest.approx(pooler + 10 * linear + 100 * square)
    weights = 4 * (L * (4 * H * H + 2 * H * M) + H * H)
    assert weights <= cost.weight_bytes < 1.2 * weights + 40_000  # and biases, norms and small tables


def test_a_decoder_costs_the_same_whatever_it_is_exported_for(decoder_of: MakeBundle) -> None:
    ort, onnx = (count_cost(decoder_of(f"apertus-{target}"), "fp32") for target in ("ort", "onnx"))
    assert ort.coefficients == pytest.approx(onnx.coefficients)
    assert ort.coefficients[2] == pytest.approx(4 * 2 * 256)  # of each layer half of the pairs, 4 for each number
    assert ort.token_bytes == onnx.token_bytes


def test_a_half_precision_cache_counts_as_half(decoder_of: MakeBundle, tmp_path: Path) -> None:
    path = shutil.copytree(decoder_of("ort"), tmp_path / "decoder")
    pinnace.quantize(str(path), precision="fp16", allow_degraded=True, threads=1)
    full, half = (count_cost(path, precision).token_bytes for precision in ("fp32", "fp16"))
    assert full == 2 * LAYERS * HEADS * HEAD_SIZE * 4
    assert half == full / 2


def test_the_multiplication_multiplies() -> None:
    import numpy as np

    weights = np.arange(12, dtype=np.float32).reshape(3, 4)
    session = onnxruntime.InferenceSession(limits.matmul_graph(weights, 2), providers=["CPUExecutionProvider"])
    given = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    np.testing.assert_array_equal(session.run(None, {"a": given})[0], given @ weights)


def test_rates_are_searched_until_they_are_known() -> None:
    for highest, guess in ((100.0, 3.0), (100.0, 4000.0), (0.7, 1.0)):
        search = RateSearch(guess, 2.0)
        while not search.done:
            search.tell(search.rate <= highest)
        assert search.found is not None
        assert search.found <= highest <= search.found * (1 + PRECISION)
    hopeless = RateSearch(10.0)
    while not hopeless.done:
        hopeless.tell(False)
    assert hopeless.found is None


def test_arrivals_wait_for_each_other() -> None:
    """Ten queries of 10 ms that arrive nearly at once: each waits for those before it, or for half of them with two."""
    prepared = Prepared([(1, 1)], lambda _index, _seen: time.sleep(0.01), list)
    alone = TimedJob(prepared).arriving(1e6, 10, bound=10, most_late=0, seed=0, concurrency=1)["latency"]
    assert all(late >= 0.01 * (place + 1) - 0.001 for place, late in enumerate(alone))
    stopped = TimedJob(prepared).arriving(1e6, 100, bound=1e-4, most_late=3, seed=0, concurrency=1)
    assert (stopped["stopped"], len(stopped["latency"])) == (True, 4)
    # No clock decides here: each query ends only when another one is under way, so one at a time would never end.
    pair = threading.Barrier(2)
    paired = Prepared([(1, 1)], lambda _index, _seen: pair.wait(timeout=60), list)
    together = TimedJob(paired).arriving(1e6, 10, bound=60, most_late=0, seed=0, concurrency=2)
    assert len(together["latency"]) == 10
    assert not together["stopped"]


class Clock:
    """A clock that only sleeping and answering move."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now

    process_time = perf_counter

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class FakeMeter:
    """A program that answers one query at a time, each as fast, and notes what it was asked."""

    def __init__(self, clock: Clock, service: float) -> None:
        self.plan, self.server, self.asked = SimpleNamespace(name="a"), self, 0
        self._work = TimedJob(Prepared([(1, 1)], lambda _index, _seen: self._answer(clock, service), list))

    def _answer(self, clock: Clock, service: float) -> None:
        self.asked += 1
        clock.sleep(service)

    def ask(self, op: str, name: str, **request: Any) -> dict[str, Any]:
        found: dict[str, Any] = getattr(self._work, op)(**request)
        return found


def searched(
    monkeypatch: pytest.MonkeyPatch, service: float, bound: float, percentile: float, starts: int = 1
) -> tuple[Raw, FakeMeter]:
    """What the server scenario finds of a program whose queries take so many seconds, on a clock of its own."""
    clock = Clock()
    monkeypatch.setattr(loop, "time", clock)
    settings = SimpleNamespace(latency_bound_s=bound, percentile=percentile, seed=0)
    point = PointPlan("server", 1, 8, None, None, 1, {"kind": "ids"})
    runner = rounds._Runner(SimpleNamespace(settings=settings), None, lambda _said: None)  # type: ignore[arg-type]
    meter = FakeMeter(clock, service)
    warm = {"a": {point.key: {"latency": [service] * 100, "seconds": 100 * service}}}
    for _ in range(starts):
        runner._search([meter], point, warm)  # type: ignore[list-item]
    return runner._raw, meter


@pytest.mark.parametrize(("bound", "percentile"), [(1.0, 0.9), (0.02, 0.99), (0.1, 0.5)])
def test_no_rate_is_held_that_the_machine_cannot_serve(
    monkeypatch: pytest.MonkeyPatch, bound: float, percentile: float
) -> None:
    """However lax the bound is: in a short trial any rate would keep it."""
    raw, _ = searched(monkeypatch, 0.001, bound, percentile)
    (found,) = raw.highest["a", "server/1/8/None/None/1"]
    assert found is not None
    assert 500 < found <= 1005
    for trial in raw.curves["a", "server/1/8/None/None/1"]:
        assert trial.queries >= 20 * bound * trial.rate or not trial.held


def test_a_bound_that_no_query_keeps_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    raw, meter = searched(monkeypatch, 2.0, 0.03, 0.99, starts=2)
    assert list(raw.highest.values()) == [[None, None]]
    assert meter.asked <= 20
    raw, meter = searched(monkeypatch, 2.0, 2.0001, 0.99)  # kept by queries that meet no other one
    assert list(raw.highest.values()) == [[None]]
    assert meter.asked <= 2000


def test_starts_search_on_grids_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    raw, _ = searched(monkeypatch, 0.001, 0.02, 0.9, starts=3)
    (found,) = raw.highest.values()
    assert len(set(found)) == 3
    assert len({trial.rate for trial in next(iter(raw.curves.values()))}) == len(next(iter(raw.curves.values())))
    assert loop._arrivals(10, 5, 0) != loop._arrivals(10, 5, 1)
    assert loop._arrivals(10, 50, 0)[-1] == pytest.approx(5.0)


@pytest.mark.parametrize("percentile", [0.0, 1.0, 1.5, -0.1, math.nan])
def test_a_percentile_is_a_share_between_none_and_all(percentile: float) -> None:
    with pytest.raises(UsageError, match="more than 0 and less than 1"):
        queries_needed(percentile)
    assert (queries_needed(0.99), queries_needed(0.5)) == (1000, 30)
    assert (most_late(1000, 0.99), most_late(30, 0.8)) == (10, 6)


def test_a_round_lasts_as_long_as_it_should(monkeypatch: pytest.MonkeyPatch) -> None:
    """Collecting garbage before it takes nothing of it."""
    clock = Clock()
    monkeypatch.setattr(loop, "time", clock)
    monkeypatch.setattr(gc, "collect", lambda: clock.sleep(0.05))
    work = TimedJob(Prepared([(1, 1)], lambda _index, _seen: clock.sleep(0.001), list))
    found = work.closed(0.02, least=1, concurrency=1)
    assert found["seconds"] >= 0.02
    assert len(found["latency"]) >= 20
    assert work.arriving(1e3, 10, 1.0, 0, seed=0, concurrency=1)["behind"] < 0.05


def test_streams_side_by_side_are_counted_together() -> None:
    """Two streams of 4 rows, 8 tokens of prompt and 3 new ones each, at once in one second."""
    block = {
        "latency": [1.0, 1.0], "first_token": [0.2, 0.2], "inter_token": [0.4] * 4, "seconds": 1.0, "tokens": 64,
    }  # fmt: skip
    alone, both = (PointPlan("single-stream", 4, None, 8, 3, count, {"kind": "prompt"}) for count in (1, 2))
    prompt, decode = (summary.TOKEN_RATES[name] for name in ("prompt_tokens_per_s", "decode_tokens_per_s"))
    assert (prompt(block, alone), decode(block, alone)) == (160.0, 10.0)
    assert (prompt(block, both), decode(block, both)) == (64.0, 16.0)
    assert summary._seconds_of_work(block, alone) == (0.2, 0.4)
    assert summary._seconds_of_work(block, both) == (0.5, 0.25)


def compared(outputs: Mapping[tuple[str, int], Any], programs: tuple[str, str] = ("pinnace", "pinnace")) -> Any:
    """Agreement and checks of ``a`` and ``b`` at lengths of 4 and 8."""
    points = [PointPlan("single-stream", 1, length, None, None, 1, {"kind": "ids"}) for length in (4, 8)]
    bundle = SimpleNamespace()
    candidates = [
        SimpleNamespace(name=name, program=program, bundle=bundle, precision="fp32")
        for name, program in zip("ab", programs, strict=True)
    ]
    found = Raw(outputs={(name, points[place].key): value for (name, place), value in outputs.items()})
    return summary._accuracies(SimpleNamespace(candidates=candidates, points=points), found)  # type: ignore[arg-type]


def test_all_outputs_at_all_points_are_compared() -> None:
    good = [[[1.0, 2.0]], [[3.0, 4.0, 5.0]]]
    outputs = {(name, place): good for name in "ab" for place in (0, 1)}
    found, checks = compared(outputs)
    assert checks == {"b does the job of a": True}
    assert (found["b"].rows, found["b"].cosine_min) == (4, pytest.approx(1.0))
    # A difference in the last output at the last point alone.
    _, checks = compared({**outputs, ("b", 1): [[[1.0, 2.0]], [[3.0, 4.0, -5.0]]]})
    assert checks == {"b does the job of a": False}
    _, checks = compared({**outputs, ("b", 1): good[:1]})
    assert not any(checks.values())
    # A peer tells its first output alone.
    peers = ("pinnace", "onnxruntime")
    assert all(compared({**outputs, ("b", 0): good[:1], ("b", 1): good[:1]}, peers)[1].values())


def test_every_output_of_a_graph_is_told(bundle_of: BundleOf) -> None:
    """Of a graph that answers questions, the scores of ends too."""
    bundle = str(bundle_of("bert-glossary-qa"))
    program = open_own({"model": bundle, "precision": "fp32", "device": "cpu", "threads": 1})
    job = {"kind": "ids", "batch": 2, "length": 8, "vocabulary": 50, "seed": 0, "inputs": []}
    starts, ends = program.prepare(job).read()
    assert [len(row) for row in starts] == [len(row) for row in ends] == [8, 8]
    assert starts != ends


@pytest.mark.parametrize(
    ("number", "seconds", "caught"),
    [("SIGTERM", 60, "_TerminatedError"), ("SIGINT", 60, "KeyboardInterrupt"), ("SIGINT", 0, "KeyboardInterrupt")],
)
def test_an_end_that_the_interpreter_drops_is_asked_for_again(number: str, seconds: int, caught: str) -> None:
    """What a signal raises within a weak reference's callback goes no further than that."""
    code = """if True:
        import os, signal, time, weakref
        from pinnace.cli.main import _ending_tidily

        class Thing: ...

        def gone(_):
            os.kill(os.getpid(), signal.NUMBER)
            for _ in range(1000): pass

        thing = Thing()
        watched = weakref.ref(thing, gone)
        try:
            with _ending_tidily():
                del thing
                print("went on", flush=True)
                time.sleep(SECONDS)
        except BaseException as error:
            print(type(error).__name__)
    """.replace("NUMBER", number).replace("SECONDS", str(seconds))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=True)
    assert done.stdout.split("\n")[:2] == ["went on", caught], done.stderr


def test_a_run_that_is_terminated_leaves_nothing_behind(bundle_of: BundleOf, tmp_path: Path) -> None:
    """As a container ends: no temporary folder stays, and no measured process."""
    words = [sys.executable, "-m", "pinnace", "bench", str(bundle_of("tiny-embed")), "--rounds", "100000", "-q"]
    with subprocess.Popen(words, env={**os.environ, "TMPDIR": str(tmp_path)}, stderr=subprocess.PIPE) as child:
        try:
            deadline = time.monotonic() + 60
            while not any(tmp_path.iterdir()) and time.monotonic() < deadline and child.poll() is None:
                time.sleep(0.01)
            assert any(tmp_path.iterdir())
            child.send_signal(signal.SIGTERM)
            said = child.communicate(timeout=60)[1]
        finally:
            child.kill()
    assert (child.returncode, said.strip()) == (143, b"error: terminated")
    assert not any(tmp_path.iterdir())


def test_a_failed_child_says_why(tmp_path: Path) -> None:
    with pytest.raises(ChildFailed, match="ended with 3") as caught:
        run_child([sys.executable, "-c", "import sys; print('no such thing', file=sys.stderr); sys.exit(3)"])
    assert caught.value.said == "no such thing"
    with pytest.raises(ChildFailed, match="ended with 1"):
        Server([sys.executable, "-c", "raise SystemExit('nothing here')"])


def test_energy_counters_wrap_around(tmp_path: Path) -> None:
    folder = tmp_path / "intel-rapl:0"
    folder.mkdir()
    (folder / "max_energy_range_uj").write_text("999999\n")
    (folder / "energy_uj").write_text("900000\n")
    energy = Energy(tmp_path)
    before = energy.read()
    (folder / "energy_uj").write_text("100000\n")
    assert energy.there
    assert energy.joules(before, energy.read()) == pytest.approx(0.2)
    assert not Energy(tmp_path / "none").there


def test_threads_get_cores_before_their_siblings(tmp_path: Path) -> None:
    from pinnace.bench.machine import affinity

    cpus = affinity()
    for cpu in cpus:
        place = tmp_path / f"cpu{cpu}" / "topology"
        place.mkdir(parents=True)
        (place / "thread_siblings_list").write_text("all one core")
    assert chosen_cpus(1, tmp_path) == cpus[:1]
    assert chosen_cpus(len(cpus), tmp_path) == cpus


def test_a_process_at_rest_uses_nothing() -> None:
    with Server([sys.executable, "-c", "print('{}', flush=True); input()"]) as server:
        usage = Usage(server.pid)
        now, most = usage.memory()
        share = usage.idle_share(0.2)
        server_end = server.pid
    assert server_end > 0
    if now is not None and most is not None and share is not None:
        assert 0 < now <= most
        assert share < 0.5


def test_random_ids_are_the_same_everywhere() -> None:
    """Programs of several environments must read the same tokens."""
    assert random_ids(4, 1000, 0) == random_ids(4, 1000, 0)
    assert random_ids(4, 1000, 0) != random_ids(4, 1000, 1)
    assert all(4 <= token < 50 for token in random_ids(1000, 50, 7))
    assert not math.isclose(len(set(random_ids(1000, 50, 7))), 1)
