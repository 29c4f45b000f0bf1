"""One variant, run: right numbers, refused inputs, deadlines, threads, forks, pickles, devices."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from pinnace.errors import (
    BundleError,
    DeadlineExceeded,
    InputError,
    MachineError,
    NumericalError,
    UsageError,
)
from pinnace.runtime.bundles.bundle import Bundle
from pinnace.runtime.engine import ort, providers
from pinnace.runtime.engine.cancellation import Cancellation
from pinnace.runtime.engine.session import Session, load
from pinnace.runtime.machine import threads
from tests.tiny_bundle import HIDDEN, example, expected, make_bundle, write_golden, write_manifest

Inputs = dict[str, Any]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "tiny-bert")


@pytest.fixture
def session(folder: Path) -> Session:
    return load(folder, threads=1)


def test_numbers_names_and_facts(session: Session) -> None:
    inputs = example(3, 7, padding=2)
    result = session.run(inputs)
    assert list(result) == ["last_hidden_state"]
    np.testing.assert_allclose(result["last_hidden_state"], expected(inputs), atol=1e-6)
    assert [spec.name for spec in session.inputs] == list(inputs)
    assert session.outputs[0].shape == ("batch", "sequence", HIDDEN)
    assert (session.precision, session.device, session.threads) == ("fp32", "cpu", 1)


def test_integers_and_lists_are_widened(session: Session) -> None:
    inputs = example(2, 3)
    want = session.run(inputs)["last_hidden_state"]
    for change in (lambda a: a.astype(np.int32), lambda a: a.astype(">i8"), lambda a: a.tolist(), np.asfortranarray):
        np.testing.assert_array_equal(session.run({k: change(v) for k, v in inputs.items()})["last_hidden_state"], want)
    as_bool = {**inputs, "attention_mask": inputs["attention_mask"].astype(bool)}
    np.testing.assert_array_equal(session.run(as_bool)["last_hidden_state"], want)


def replaced(name: str, value: Any) -> Callable[[Inputs], Inputs]:
    return lambda inputs: {**inputs, name: value}


def huge(rows: int, tokens: int) -> Callable[[Inputs], Inputs]:
    return lambda inputs: {name: np.broadcast_to(np.int64(1), (rows, tokens)) for name in inputs}


BAD_INPUTS: list[tuple[Callable[[Inputs], Inputs], str]] = [
    (lambda i: {k: v for k, v in i.items() if k != "token_type_ids"}, "'token_type_ids' is missing"),
    (lambda i: {}, "'input_ids' is missing"),
    (replaced("input_id", 1), r"no input 'input_id'. Did you mean 'input_ids'\?"),
    (replaced("input_ids", np.ones((2, 5))), r"input_ids has the type float64, expected int64.*astype"),
    (replaced("input_ids", np.full((2, 5), "a")), "input_ids has the type <U1"),
    (replaced("input_ids", np.full((2, 5), None)), "input_ids has the type object"),
    (replaced("input_ids", np.ones((2, 5), np.uint64)), "input_ids has the type uint64"),
    (replaced("input_ids", "text"), "input_ids must be a numpy array, got str"),
    (replaced("input_ids", [[1, 2], [3]]), "rows differ in length"),
    (replaced("input_ids", [[1 << 70] * 5] * 2), "input_ids"),
    (replaced("input_ids", np.ones(5, np.int64)), r"input_ids has 1 dimensions.*\[batch, sequence\]"),
    (replaced("input_ids", np.zeros((2, 5, 1), np.int64)), "input_ids has 3 dimensions"),
    (replaced("attention_mask", np.ones((2, 4), np.int64)), "sequence is 4 in attention_mask and 5 in input_ids"),
    (replaced("attention_mask", np.ones((3, 5), np.int64)), "batch is 3 in attention_mask and 2 in input_ids"),
    (lambda i: {k: v[:0] for k, v in i.items()}, "batch is 0"),
    (lambda i: {k: v[:, :0] for k, v in i.items()}, "sequence is 0"),
    (replaced("input_ids", np.array([[0, 1, 2, 3, 11]] * 2)), r"input_ids\[0, 4\] is 11; expected 0 to 10.*tokenizer"),
    (replaced("input_ids", np.array([[0, 1, 2, 3, -1]] * 2)), r"input_ids\[0, 4\] is -1"),
    (replaced("token_type_ids", np.full((2, 5), 2)), r"token_type_ids\[0, 0\] is 2; expected 0 to 1"),
    (replaced("attention_mask", np.full((2, 5), -100)), r"attention_mask\[0, 0\] is -100; expected 0 to 1"),
    (huge(2, 17), "17 tokens a row, the model takes 16. Truncate"),
    (huge(1 << 30, 1 << 29), "tokens a row"),
    (huge(1 << 50, 16), "GB for its inputs and outputs.*fewer rows"),
]


@pytest.mark.parametrize(("change", "word"), BAD_INPUTS)
def test_bad_inputs_are_refused_before_anything_runs(
    session: Session, change: Callable[[Inputs], Inputs], word: str
) -> None:
    inputs = example(2, 5)
    start = time.thread_time()  # of this thread alone: what else the machine does is not counted
    with pytest.raises(InputError, match=r"(?s)" + word):
        session.run(change(inputs))
    assert time.thread_time() - start < 0.05
    np.testing.assert_allclose(session.run(inputs)["last_hidden_state"], expected(inputs), atol=1e-6)


def test_inputs_must_be_a_mapping(session: Session) -> None:
    with pytest.raises(InputError, match="mapping"):
        session.run([1, 2])  # type: ignore[arg-type]


def test_chosen_outputs(session: Session) -> None:
    assert list(session.run(example(1, 2), outputs=["last_hidden_state"] * 2)) == ["last_hidden_state"]
    with pytest.raises(UsageError, match="Did you mean 'last_hidden_state'"):
        session.run(example(1, 2), outputs=["last_hidden_states"])
    wrongs: tuple[Any, ...] = ([], "last_hidden_state", 5)
    for wrong in wrongs:
        with pytest.raises(UsageError, match="list of names"):
            session.run(example(1, 2), outputs=wrong)


@pytest.mark.parametrize("wrong", [{"timeout": "5"}, {"timeout": float("nan")}, {"cancellation": True}])
def test_options_of_a_run_are_checked(session: Session, wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(wrong))} is "):
        session.run(example(1, 2), **wrong)


@pytest.mark.parametrize("count", [2.7, float("inf"), [1], True, 0])
def test_threads_are_a_whole_number(folder: Path, count: Any) -> None:
    with pytest.raises(UsageError, match="threads is "):
        load(folder, threads=count)


def test_a_signals_handler_may_cancel_while_a_run_is_watched() -> None:
    switch = Cancellation()
    with switch._lock:  # as where the signal comes
        done = threading.Thread(target=switch.cancel, daemon=True)
        assert switch._lock.acquire(blocking=False)
        switch._lock.release()
        done.start()
        done.join(0.1)
        assert done.is_alive()  # another thread still waits for its turn
    done.join(10)
    assert switch.cancelled


@pytest.mark.parametrize(
    ("number", "word"), [("nan", "8 NaN and 0 infinite of 8"), ("inf", "0 NaN and 8 infinite of 8")]
)
def test_numbers_that_are_none(tmp_path: Path, number: str, word: str) -> None:
    nodes = [
        helper.make_node("Constant", [], ["odd"], "/odd", value=helper.make_tensor("k", 1, [1], [float(number)])),
        helper.make_node("Max", ["encoded", "odd"], ["last_hidden_state"], "/Max"),
    ]
    bundle = Bundle.open(make_bundle(tmp_path / "b", nodes=nodes))
    session = Session(bundle)
    for _ in range(2):
        with pytest.raises(NumericalError, match=f"'last_hidden_state' holds {word}.*row 0"):
            session.run(example(1, 2))
    assert not np.isfinite(Session(bundle, check_finite=False).run(example(1, 2))["last_hidden_state"]).any()


def test_large_numbers_are_not_mistaken(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Constant", [], ["big"], "/big", value=helper.make_tensor("k", 1, [1], [3e38])),
        helper.make_node("Max", ["encoded", "big"], ["last_hidden_state"], "/Max"),
    ]
    session = load(make_bundle(tmp_path / "b", nodes=nodes))
    assert session.run(example(2, 5))["last_hidden_state"].min() == np.float32(3e38)


def endless(model: onnx.ModelProto) -> None:
    """A loop of 2^62 rounds when the first id is not 0, of none when it is."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["still"]), helper.make_node("Add", ["x", "x"], ["y"])],
        "body",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
        ],
    )
    nodes = model.graph.node
    del nodes[-1:]
    for name, value in (("rounds", [1 << 62]), ("zero", [0]), ("first", [0])):
        model.graph.initializer.append(
            helper.make_tensor(name, TensorProto.INT64, [] if name == "rounds" else [1], value)
        )
    nodes.append(helper.make_node("Gather", ["input_ids", "first"], ["row"], "/row"))
    nodes.append(helper.make_node("ReduceMax", ["row"], ["id"], "/id", keepdims=0))
    nodes.append(helper.make_node("Cast", ["id"], ["begin"], "/begin", to=TensorProto.BOOL))
    nodes.append(helper.make_node("Loop", ["rounds", "begin", "encoded"], ["last_hidden_state"], "/Loop", body=body))


def test_a_deadline_stops_an_endless_run(tmp_path: Path) -> None:
    before = threading.active_count()
    session = load(make_bundle(tmp_path / "b", change_graph=endless, golden=False), threads=1)
    inputs = example(1, 2)
    short = {**inputs, "input_ids": np.zeros((1, 2), np.int64)}
    for _ in range(2):
        start = time.monotonic()
        with pytest.raises(DeadlineExceeded, match=r"after 0\.2 s"):
            session.run({**inputs, "input_ids": np.ones((1, 2), np.int64)}, timeout=0.2)
        assert time.monotonic() - start < 5
        assert session.run(short, timeout=10)["last_hidden_state"].shape == (1, 2, HIDDEN)
    with pytest.raises(DeadlineExceeded, match="before the run began"):
        session.run(short, timeout=0)
    assert threading.active_count() <= before + 1  # no timer is left behind, but for one that is just ending


def test_threads_share_a_session(session: Session) -> None:
    cases = [example(rows, tokens) for rows in range(1, 5) for tokens in range(1, 9)]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda inputs: session.run(inputs, timeout=30), cases * 4))
    for inputs, result in zip(cases * 4, results, strict=True):
        np.testing.assert_allclose(result["last_hidden_state"], expected(inputs), atol=1e-6)


def test_pickled_by_path_and_opened_on_first_use(session: Session, folder: Path) -> None:
    data = pickle.dumps(session)
    assert len(data) < 1000
    copy = pickle.loads(data)  # noqa: S301 - our own bytes
    away = folder.rename(folder.with_name("away"))
    with pytest.raises(BundleError, match="no folder"):
        copy.run(example(1, 2))
    away.rename(folder)
    np.testing.assert_array_equal(
        copy.run(example(1, 2))["last_hidden_state"], session.run(example(1, 2))["last_hidden_state"]
    )
    assert copy.threads == 1


FORK = """
import os, sys
import numpy as np
from pinnace.runtime.engine.session import load
from tests.tiny_bundle import example, expected
session = load(sys.argv[1], threads=2)
session.run(example(2, 5))
child = os.fork()
result = session.run(example(2, 5))["last_hidden_state"]
good = np.allclose(result, expected(example(2, 5)), atol=1e-6)
if child == 0:
    sys.exit(7 if good else 8)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), good)
"""


def test_a_forked_child_opens_its_own_session(folder: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FORK, str(folder)], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["7", "True"], done.stderr


def test_the_runtime_reports_nothing_home() -> None:
    code = "import os, pinnace.runtime.engine.session; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment)
    assert done.stdout == "1\n", done.stderr


def test_placement_names_every_node(session: Session) -> None:
    placement = session.placement()
    assert list(placement) == ["CPUExecutionProvider"]
    assert "/bert/encoder/layer.0/output/MatMul" in placement["CPUExecutionProvider"]


def test_threads_follow_the_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(threads.THREADS_VARIABLE, "3")
    assert load(folder).threads == 3
    with pytest.raises(UsageError, match="threads is 0"):
        load(folder, threads=0)


def test_an_unknown_precision_or_device(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown precision of tiny-bert 'int8'(?s:.*)known: auto, fp32"):
        load(folder, "int8")
    for device, word in (
        ("cdua", "Did you mean 'cuda'"),
        ("gpu", "known: cpu"),
        ("cpu:0", "no number"),
        ("cuda:", "known"),
    ):
        with pytest.raises(UsageError, match=word):
            load(folder, device=device)


def test_a_missing_provider_is_an_error_with_the_lines_to_type(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort.onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(ort, "package_versions", lambda: {"onnxruntime": "1.0"})
    with pytest.raises(
        MachineError, match=r"(?s)'cuda:1' needs CUDAExec.*offers CPUExec.*pip install.*onnxruntime-gpu"
    ):
        load(folder, device="cuda:1")
    monkeypatch.setattr(ort, "package_versions", lambda: {"onnxruntime": "1.0", "onnxruntime-gpu": "1.0"})
    with pytest.raises(MachineError, match="both installed"):
        load(folder, device="cuda")


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_provider_that_did_not_start_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime offers CUDA, but its libraries are missing: it would go on with the CPU and say nothing."""
    offered = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort.onnxruntime, "get_available_providers", lambda: offered)
    monkeypatch.setattr(ort.onnxruntime, "preload_dlls", lambda: None)
    with pytest.raises(MachineError, match=r"'cuda'.*could not|device 'cuda' was asked for"):
        load(folder, device="cuda")
    with pytest.raises(MachineError, match="Nothing was run"):
        providers.check_provider("cuda", ["CPUExecutionProvider"])
    providers.check_provider("cuda:1", offered)


def test_cuda_options(monkeypatch: pytest.MonkeyPatch) -> None:
    offered = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort.onnxruntime, "get_available_providers", lambda: offered)
    monkeypatch.setattr(ort.onnxruntime, "preload_dlls", lambda: None)
    (name, options), (last, _) = providers.providers_for("cuda:3")
    assert (name, options["device_id"], options["use_tf32"], last) == (*offered[:1], "3", "0", offered[1])


@pytest.mark.parametrize(
    ("placed", "word"),
    [
        ({"CUDAExecutionProvider": ["MatMul", "Gelu"], "CPUExecutionProvider": ["Shape", "Squeeze", "ArgMax"]}, ""),
        ({"CUDAExecutionProvider": ["MatMul"], "CPUExecutionProvider": ["GroupQueryAttention"] * 3}, "3 GroupQuery"),
        ({"CPUExecutionProvider": ["MatMulIntegerToFloat"]}, "1 MatMulIntegerToFloat. Nothing was run"),
    ],
)
def test_work_that_would_move_to_the_cpu_is_refused(placed: dict[str, list[str]], word: str) -> None:
    """As ONNX Runtime tells it: an fp32 GroupQueryAttention has no kernel on CUDA and went to the CPU unseen."""

    def part(provider: str) -> Any:
        nodes = [types.SimpleNamespace(op_type=kind) for kind in placed[provider]]
        return types.SimpleNamespace(ep_name=provider, get_nodes=lambda: nodes)

    native = types.SimpleNamespace(get_provider_graph_assignment_info=lambda: [part(name) for name in placed])
    providers.check_placement("cpu", "model.onnx", None)
    if not word:
        providers.check_placement("cuda", "model.onnx", native)
        return
    with pytest.raises(MachineError, match=f"'cuda:1' was asked for.*model.onnx.*{word}"):
        providers.check_placement("cuda:1", "model.onnx", native)


def test_placement_is_recorded_where_it_will_be_asked_for(folder: Path) -> None:
    options = ort.onnxruntime.SessionOptions()
    providers.record_placement("cuda", options)
    native = ort.onnxruntime.InferenceSession(str(folder / "model.onnx"), options)
    assert any(part.ep_name == providers.CPU for part in native.get_provider_graph_assignment_info())


def test_an_older_build_for_gpus_cannot_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort.onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(ort.onnxruntime, "InferenceSession", type("InferenceSession", (), {}))
    with pytest.raises(MachineError, match=r"(?s)does not say which nodes run on 'cuda'.*1\.24 or newer"):
        providers.providers_for("cuda")


def swapped(model: onnx.ModelProto) -> None:
    model.graph.input[2].name = "segment_ids"
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == "token_type_ids":
                node.input[index] = "segment_ids"


def test_a_graph_that_is_not_the_manifests(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "b", change_graph=swapped, golden=False)
    with pytest.raises(BundleError, match=r"model\.onnx has the input 'segment_ids', manifest\.json has not"):
        load(folder)

    def retype(data: dict[str, Any]) -> None:
        data["outputs"][0]["dtype"] = "int64"

    folder = make_bundle(tmp_path / "c")
    write_manifest(folder, retype)
    with pytest.raises(BundleError, match=r"'last_hidden_state' has the type float32, manifest\.json says int64"):
        load(folder)


def invalid(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = "Gather9"


def test_a_graph_that_onnxruntime_refuses(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"cannot open model\.onnx") as caught:
        load(make_bundle(tmp_path / "b", change_graph=invalid, golden=False))
    assert "\n" not in str(caught.value)


def test_an_unverified_bundle_still_has_a_safe_graph(tmp_path: Path) -> None:
    def outside(model: onnx.ModelProto) -> None:
        model.graph.initializer[0].external_data[0].value = "../secret"

    folder = make_bundle(tmp_path / "b", change_graph=outside, golden=False)
    with pytest.raises(BundleError, match="plain file name"):
        load(folder, verify=False)


def test_goldens_are_what_the_session_gives(folder: Path, session: Session) -> None:
    write_golden(folder)
    with np.load(folder / "golden.npz") as arrays:
        inputs = {name.split("/")[2]: arrays[name] for name in arrays.files if name.startswith("padded/in/")}
        np.testing.assert_array_equal(session.run(inputs)["last_hidden_state"], arrays["padded/out/last_hidden_state"])


def test_an_operator_that_this_onnxruntime_lacks_is_no_fault_of_the_bundle(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["encoded"], ["wide"], to=TensorProto.DOUBLE),
        helper.make_node("Asinh", ["wide"], ["bent"]),  # there is none for doubles
        helper.make_node("Cast", ["bent"], ["last_hidden_state"], to=TensorProto.FLOAT),
    ]
    folder = make_bundle(tmp_path / "b", nodes=nodes, golden=False)
    with pytest.raises(MachineError, match=rf"onnxruntime {onnxruntime.__version__} .*Asinh.*Install a newer one"):
        load(folder)


def test_a_path_that_is_not_utf8_is_told(folder: Path, tmp_path: Path) -> None:
    odd = folder.rename(tmp_path / os.fsdecode(b"b\xff"))
    with pytest.raises(UsageError, match=r"/b\?+/model\.onnx is not UTF-8.*rename the folder"):
        load(odd)
    named = odd.rename(tmp_path / "bündel")
    code = "import sys, pinnace\ntry: pinnace.load(sys.argv[1])\nexcept pinnace.errors.MachineError as e: print(e)"
    plain = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(named)], env=plain, capture_output=True, text=True, check=True, timeout=60
    )
    assert "Set PYTHONUTF8=1" in done.stdout
