"""``pinnace bench`` on real, small bundles: processes, scenarios, counts, files, absent peers, exit codes."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from pinnace.bench import limits
from pinnace.bench.children import ChildFailed, Server, run_child
from pinnace.bench.flops import count_cost
from pinnace.bench.jobs import random_ids
from pinnace.bench.loop import Prepared, Work
from pinnace.bench.machine import Energy, Usage, chosen_cpus
from pinnace.bench.rate_search import PRECISION, RateSearch
from pinnace.bench.results import Result
from pinnace.cli import main
from pinnace.runtime.ort import onnxruntime
from tests.conftest import DATA

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
    assert main(["compare", str(measured), str(measured), "--fail-above", "5%", "-q"]) == 0
    result = Result.read(measured)
    slower = tmp_path / "slower.json"
    points = []
    for point in result.points:
        old = point.measures["latency_p50_s"]
        assert old.value is not None
        new = dataclasses.replace(old, value=1.1 * old.value, blocks=tuple(1.1 * value for value in old.blocks))
        points.append(dataclasses.replace(point, measures={**point.measures, "latency_p50_s": new}))
    slower.write_text(dataclasses.replace(result, points=tuple(points)).to_json())
    assert main(["compare", str(measured), str(slower), "--fail-above", "5%", "-q"]) == 1
    assert main(["compare", str(measured), str(slower), "--fail-above", "20%", "-q"]) == 0
    assert main(["compare", str(slower), str(measured), "--fail-above", "5%", "-q"]) == 0


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
    assert {row["verdict"] for row in shown["rows"]} <= {"no difference", "not judged: 2 rounds, needs 5"}


def test_texts_offline_and_arrivals(bundle_of: BundleOf, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = tmp_path / "texts.txt"
    lines.write_text("A short one.\nA text that is somewhat longer than the other one.\nThe last.\n")
    words = ["bench", str(bundle_of("tiny-classify")), "--input", str(lines), "--scenario", "offline,server"]
    words += ["--latency-bound", "1s", "--percentile", "80%", "--rounds", "2", "--starts", "1"]
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
    alone = Work(prepared).arriving(rate=1e6, count=10, bound=10, seed=0, concurrency=1)["latency"]
    assert all(late >= 0.01 * (place + 1) - 0.001 for place, late in enumerate(alone))
    assert Work(prepared).arriving(rate=1e6, count=100, bound=1e-4, seed=0, concurrency=1)["stopped"]
    # No clock decides here: each query ends only when another one is under way, so one at a time would never end.
    pair = threading.Barrier(2)
    paired = Prepared([(1, 1)], lambda _index, _seen: pair.wait(timeout=60), list)
    together = Work(paired).arriving(rate=1e6, count=10, bound=60, seed=0, concurrency=2)
    assert len(together["latency"]) == 10
    assert not together["stopped"]


@pytest.mark.parametrize(
    ("number", "seconds", "caught"),
    [("SIGTERM", 60, "_TerminatedError"), ("SIGINT", 60, "KeyboardInterrupt"), ("SIGINT", 0, "KeyboardInterrupt")],
)
def test_an_end_that_the_interpreter_drops_is_asked_for_again(number: str, seconds: int, caught: str) -> None:
    """What a signal raises within a weak reference's callback goes no further than that."""
    code = """if True:
        import os, signal, time, weakref
        from pinnace.cli import _ending_tidily

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
