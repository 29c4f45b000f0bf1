"""A service's needs: shared weights, replicas, limits of memory and time, cancellation, many callers, containers."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pinnace.errors import DeadlineExceeded, MachineError, UsageError
from pinnace.runtime.engine import native, ort, shared_threads
from pinnace.runtime.engine.cancellation import Cancellation
from pinnace.runtime.engine.footprint import Footprint
from pinnace.runtime.engine.session import load
from pinnace.runtime.machine import cores, forks, threads
from pinnace.runtime.machine.cores import CoreQueue
from pinnace.runtime.pipelines.table import pipeline
from tests.conftest import OpenPipeline, same
from tests.test_session import endless
from tests.test_threads import lay
from tests.tiny_bundle import HIDDEN, example, expected, make_bundle

TEXTS = ["plant " * (1 + i * 37 % 60) for i in range(80)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_sessions_of_the_same_files_share_their_weights(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "b")
    one, two = load(folder, threads=1), load(folder, threads=1)
    assert one.native is two.native
    assert load(folder, threads=2).native is not one.native
    assert load(folder, threads=1, spin=True).native is not one.native
    other = make_bundle(tmp_path / "c")
    os.replace(other / "model.onnx", folder / "model.onnx")  # noqa: PTH105 - the same content, and another file
    assert load(folder, threads=1).native is not one.native
    np.testing.assert_allclose(one.run(example(2, 3))["last_hidden_state"], expected(example(2, 3)), atol=1e-6)
    kept = len(native._Shared.opened)
    del one, two
    gc.collect()
    assert len(native._Shared.opened) < kept


def test_memory_does_not_grow_with_every_new_shape(tmp_path: Path) -> None:
    assert not load(make_bundle(tmp_path / "b"), threads=1).native.get_session_options().enable_mem_pattern


@pytest.mark.parametrize(
    ("version", "spin", "busy", "microseconds"),
    [
        ("1.32.0", False, "1", "20"),
        ("1.26.0", False, "1", "20"),
        ("1.25.1", False, "0", None),
        ("1.32.0", True, "1", None),
    ],
)
def test_threads_wait_for_the_next_operator_only(
    version: str, spin: bool, busy: str, microseconds: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An onnxruntime that cannot bound the wait would wait for milliseconds after every run."""
    monkeypatch.setattr(ort.onnxruntime, "__version__", version)
    options = load(make_bundle(tmp_path / "b"), threads=1, spin=spin).native.get_session_options()
    found = {}
    for name in ("allow_spinning", "spin_duration_us"):
        with contextlib.suppress(RuntimeError):  # it was not set
            found[name] = options.get_session_config_entry(f"session.intra_op.{name}")
    assert found == {"allow_spinning": busy} | ({} if microseconds is None else {"spin_duration_us": microseconds})


def test_idle_threads_sleep(tmp_path: Path) -> None:
    session = load(make_bundle(tmp_path / "b"), threads=2)
    session.run(example(2, 3))
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.1


def test_a_memory_limit_splits_batches(bundle_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = bundle_of("tiny-classify")
    free = pipeline("classify", bundle, threads=1)
    footprint = free._open().footprint
    limit = footprint.weights + footprint.run_bytes(2, 62)
    tight = pipeline("classify", bundle, threads=1, memory_limit=limit)
    rows, run = [], tight.session.run

    def spy(feeds: dict[str, Any], **options: Any) -> Any:
        rows.append(feeds["input_ids"].shape)
        return run(feeds, **options)

    monkeypatch.setattr(tight.session, "run", spy)
    assert same(tight(TEXTS, top_k=None), free(TEXTS, top_k=None), 1e-5)
    assert all(footprint.run_bytes(*shape) <= limit - footprint.weights for shape in rows)
    assert len(rows) > len(TEXTS) // 12
    rows.clear()
    with pytest.raises(MachineError, match=r"1 rows of 128 tokens.*memory_limit"):
        tight("plant " * 200)
    assert rows == []  # refused before anything ran
    assert tight("a plant")


def test_runs_at_once(bundle_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pinnace.runtime.pipelines.opening.granted_cores", lambda: 8)

    def runs(**options: Any) -> int:
        return int(pipeline("classify", bundle_of("tiny-classify"), **options).shared_runs.at_once)

    assert (runs(threads=8), runs(threads=4), runs(threads=1)) == (1, 2, 8)
    assert (runs(threads=4, replicas=4), runs(threads=8, replicas="auto")) == (8, 8)
    # As many as the limit of memory counts.
    assert (runs(threads=1, memory_limit=1 << 30), runs(threads=4, replicas=2, memory_limit=1 << 30)) == (1, 2)


def test_weights_beyond_the_limit(tmp_path: Path, bundle_of: Callable[[str], Path]) -> None:
    with pytest.raises(MachineError, match=r"the weights of tiny-classify take .* smaller precision"):
        pipeline("classify", bundle_of("tiny-classify"), memory_limit=1000)("a")
    with pytest.raises(UsageError, match="memory_limit is '2GB'"):
        load(make_bundle(tmp_path / "b"), memory_limit="2GB")  # type: ignore[arg-type]
    session = load(tmp_path / "b", memory_limit=4 * 10**6)
    assert session.run(example(1, 4))["last_hidden_state"].shape == (1, 4, HIDDEN)
    with pytest.raises(MachineError, match="1,000 rows of 16 tokens"):
        session.run(example(1000, 16))
    assert session.run(example(1, 4))["last_hidden_state"].shape == (1, 4, HIDDEN)


def test_a_footprint_grows_as_attention_does() -> None:
    footprint = Footprint(100, token=10, pair=2)
    assert footprint.run_bytes(3, 4) == 3 * 4 * (10 + 8)
    assert (footprint.rows_within(4, 100 + 72 * 5 + 1), footprint.rows_within(4, 100 + 72 * 5, runs=2)) == (5, 2)
    assert footprint.rows_within(4, 50) == 0


def test_every_pipeline_call_can_be_cancelled(open_pipeline: OpenPipeline) -> None:
    for task, name, item in (
        ("text-classification", "tiny-classify", ["a plant"] * 2000),
        ("question-answering", "bert-glossary-qa", {"question": "what?", "context": "a plant " * 20_000}),
    ):
        pipe, switch = open_pipeline(task, name), Cancellation()
        timer = threading.Timer(0.05, switch.cancel)
        timer.start()
        begun = time.monotonic()
        with pytest.raises(DeadlineExceeded, match="cancelled"):
            for _ in range(1000):
                pipe(item, cancellation=switch)
        assert time.monotonic() - begun < 30
    with pytest.raises(UsageError, match="cancellation is 3"):
        open_pipeline("text-classification", "tiny-classify")("a", cancellation=3)


def test_a_run_in_the_graph_is_cancelled(tmp_path: Path) -> None:
    session = load(make_bundle(tmp_path / "b", change_graph=endless, golden=False), threads=1)
    inputs = {**example(1, 2), "input_ids": np.ones((1, 2), np.int64)}
    switch = Cancellation()
    threading.Timer(0.2, switch.cancel).start()
    with pytest.raises(DeadlineExceeded, match="cancelled"):
        session.run(inputs, cancellation=switch)
    short = {**inputs, "input_ids": np.zeros((1, 2), np.int64)}
    assert session.run(short)["last_hidden_state"].shape == (1, 2, HIDDEN)
    assert switch._runs == []


def test_cores_are_lent_in_order_and_with_patience() -> None:
    queue, order = CoreQueue(1), []
    with ThreadPoolExecutor(3) as pool, queue.lent(9):

        def take(number: int) -> None:
            with queue.lent(1, patience=30):
                order.append(number)

        for number in range(3):
            pool.submit(take, number)
            while len(queue._line) <= number:
                time.sleep(0.001)
        begun = time.monotonic()
        with queue.lent(1, patience=0.01):  # goes on without
            assert time.monotonic() - begun < 20
        assert order == []
    assert (order, queue._free, list(queue._line)) == ([0, 1, 2], 1, [])


def test_a_run_that_is_interrupted_in_the_line_takes_no_cores_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = CoreQueue(2)

    def interrupted(self: threading.Event, timeout: float | None = None) -> bool:
        raise KeyboardInterrupt

    with queue.lent(2):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(threading.Event, "wait", interrupted)
            with queue.lent(2):
                pytest.fail("ran without a core")
        assert (queue._free, list(queue._line)) == (0, [])
    assert queue._free == 2


def test_waiting_for_cores_counts_in_the_timeout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "_queue", CoreQueue(1))
    session = load(make_bundle(tmp_path / "b"), threads=1)
    with cores.queue().lent(1), pytest.raises(DeadlineExceeded, match="before the run began"):
        session.run(example(1, 2), timeout=0.05)
    assert session.run(example(1, 2), timeout=5)


# A container of 2 CPUs on a host of 16: what the kernel shows in it, for both versions of control groups.
QUOTAS = {
    "v2": {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"},
    "v1": {
        "proc/self/cgroup": "4:cpu,cpuacct:/docker/x\n",
        "sys/fs/cgroup/cpu,cpuacct/docker/x/cpu.cfs_quota_us": "200000",
        "sys/fs/cgroup/cpu,cpuacct/docker/x/cpu.cfs_period_us": "100000",
    },
}


@pytest.mark.parametrize("version", QUOTAS)
def test_two_threads_in_a_quota_of_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bundle_of: Callable[[str], Path], version: str
) -> None:
    root = lay(tmp_path / "root", QUOTAS[version])
    monkeypatch.delenv(threads.THREADS_VARIABLE, raising=False)
    monkeypatch.setattr(threads, "affinity", lambda: frozenset(range(16)))
    monkeypatch.setattr(threads.granted_cores, "__defaults__", (root,))
    assert threads.thread_count() == 2
    pipe = pipeline("classify", bundle_of("tiny-classify"))
    assert pipe.session.native.get_session_options().intra_op_num_threads == 2
    assert pipeline("classify", bundle_of("tiny-classify"), replicas="auto").replicas == 2


@pytest.mark.parametrize("replicas", [1, "auto"])
def test_the_machine_is_asked_once(
    bundle_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, replicas: Any
) -> None:
    monkeypatch.setenv(threads.THREADS_VARIABLE, "2")
    pipe = pipeline("classify", bundle_of("tiny-classify"), replicas=replicas, batch_tokens=64)
    first = pipe(TEXTS)
    monkeypatch.setattr(threads, "_text", lambda path: pytest.fail(f"{path} was read"))
    monkeypatch.setenv(threads.THREADS_VARIABLE, "many")
    assert same(pipe(TEXTS), first)
    assert pipe.replicas * pipe.session.threads == 2
    monkeypatch.undo()
    monkeypatch.setenv(threads.THREADS_VARIABLE, "3")
    again = pickle.loads(pickle.dumps(pipe))  # noqa: S301 - our own
    assert again.replicas * again.session.threads == 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_does_not_ask_the_machine(
    bundle_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe: Any = pipeline("classify", bundle_of("tiny-classify"))
    monkeypatch.setenv(threads.THREADS_VARIABLE, "many")
    with pipe._lock:  # as a thread that opens it holds it
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            os._exit(0 if pipe("a plant") else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_one_that_cannot_be_renewed_in_a_child_keeps_no_other_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    renewed = []

    class Owner:
        def __init__(self, works: bool) -> None:
            self.works = works

        def renew(self) -> None:
            if not self.works:
                raise RuntimeError("no")
            renewed.append(self)

    owners = [Owner(False), Owner(True), Owner(False)]
    monkeypatch.setattr(forks, "_ALL", owners)
    with pytest.raises(RuntimeError, match="no"):
        forks._after_fork()
    assert renewed == [owners[1]]


SHARED = """
import os, sys
from pinnace.errors import MachineError, UsageError
from pinnace.runtime.engine.shared_threads import share_threads
from pinnace.runtime.engine.session import load
from tests.tiny_bundle import example, expected
def count(): return len(os.listdir("/proc/self/task"))
if sys.argv[2] == "late":
    load(sys.argv[1], threads=1)
    try:
        share_threads(2)
    except UsageError as error:
        sys.exit(str(error))
assert share_threads(3) == share_threads(3) == 3
before = count()
sessions = [load(sys.argv[1]), load(sys.argv[1], spin=True)]
assert count() == before, "sessions have threads of their own"
for session in sessions:
    assert abs(session.run(example(2, 3))["last_hidden_state"] - expected(example(2, 3))).max() < 1e-6
    assert session.threads == 3
try:
    share_threads(2)
except UsageError as error:
    print(error)
child = os.fork()
if child == 0:
    try:
        sessions[0].run(example(1, 2))
    except MachineError as error:
        os._exit(7 if "forked" in str(error) else 8)
    os._exit(9)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(ort.onnxruntime, shared_threads._FUNCTION), reason="an older onnxruntime")
def test_one_pool_for_all_sessions(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "b")
    for when in ("early", "late"):
        done = subprocess.run(
            [sys.executable, "-c", SHARED, str(folder), when], capture_output=True, text=True, timeout=60
        )
        if when == "early":
            assert done.stdout.splitlines()[-1] == "7", done.stderr
            assert "a process sets it once" in done.stdout
        else:
            assert done.returncode == 1 and "at the start of the program" in done.stderr


SMALL = """
import json, resource, sys
import numpy as np
from pinnace.errors import MachineError
from pinnace.runtime.pipelines.table import pipeline
pipe = pipeline("embed", sys.argv[1], threads=1, batch_tokens=1 << 22)
one = pipe("a plant", pooling=None, return_tensors=True)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (96 << 20),) * 2)
try:
    pipe(["plant " * 120] * 1000, pooling=None, return_tensors=True)
    sys.exit("a run of 300 MB fitted in 96 MB")
except MachineError as error:
    said = str(error)
again = pipe("a plant", pooling=None, return_tensors=True)
print(json.dumps([said, bool(np.array_equal(one, again))]))
"""


def test_too_little_memory_is_an_error_and_the_next_call_is_fine(
    bundle_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SMALL, str(bundle_of("tiny-embed"))], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    said, fine = json.loads(done.stdout)
    assert "not enough memory" in said and fine


def test_a_cache_that_cannot_be_written_or_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_bundle(tmp_path / "b")
    (tmp_path / "blocked").write_text("a file where a folder is wanted")
    for place in ("/proc", str(tmp_path / "blocked")):
        monkeypatch.setenv("XDG_CACHE_HOME", place)
        assert load(folder, threads=1).run(example(1, 2))
