"""Hostile bundles in a process with little memory and time: a typed error, nothing outside the folder touched."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pinnace.runtime.bundles.bundle import Bundle
from pinnace.runtime.checks.verify import verify_bundle
from pinnace.runtime.engine.session import load
from tests.tiny_bundle import HIDDEN, example, expected, file_facts, hub_tree, make_bundle, write_manifest

# Loads a bundle and runs it; a typed error is its exit code and text, anything else a traceback and 99.
CHILD = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
from pinnace.errors import PinnaceError
try:
    from pinnace.runtime.engine.session import load
    from tests.tiny_bundle import HIDDEN, example
    load(sys.argv[1], threads=1).run(example(1, 3), timeout=5)
except PinnaceError as error:
    print(type(error).__name__, error)
    sys.exit(error.exit_code)
except BaseException:
    import traceback
    traceback.print_exc()
    sys.exit(99)
"""


def attempt(folder: Path, **environment: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "XDG_CACHE_HOME": str(folder.parent / "cache"), **environment},
    )
    return done.returncode, done.stdout + done.stderr


def allocate(model: onnx.ModelProto) -> None:
    """Ask for 2^62 numbers while running."""
    del model.graph.node[-1:]
    model.graph.initializer.append(helper.make_tensor("shape", TensorProto.INT64, [2], [1 << 31, 1 << 31]))
    model.graph.node.append(helper.make_node("ConstantOfShape", ["shape"], ["big"], "/big"))
    model.graph.node.append(helper.make_node("ReduceSum", ["big"], ["sum"], "/sum", keepdims=0))
    model.graph.node.append(helper.make_node("Add", ["encoded", "sum"], ["last_hidden_state"], "/out"))


def cycle(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[1] = "w"


def missing_value(model: onnx.ModelProto) -> None:
    model.graph.node[6].input[1] = "nowhere"


def wrong_shape(model: onnx.ModelProto) -> None:
    del model.graph.node[-1:]
    model.graph.initializer.append(helper.make_tensor("wide", TensorProto.INT64, [3], [7, 7, 7]))
    model.graph.node.append(helper.make_node("Reshape", ["encoded", "wide"], ["last_hidden_state"], "/out"))


@pytest.mark.parametrize(
    ("change", "codes"), [(allocate, (3, 5)), (cycle, (3,)), (missing_value, (3,)), (wrong_shape, (3,))]
)
def test_graphs_that_cannot_run(
    tmp_path: Path, change: Callable[[onnx.ModelProto], None], codes: tuple[int, ...]
) -> None:
    folder = make_bundle(tmp_path / "b", change_graph=change, golden=False)
    before = file_facts(tmp_path)
    code, text = attempt(folder)
    assert code in codes, text
    assert "Traceback" not in text and ("BundleError" in text or "MachineError" in text)
    assert {name: fact for name, fact in file_facts(tmp_path).items() if not name.startswith("cache/")} == before


def bloat(path: Path) -> None:
    entry = b'{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    header = b"{" + b",".join(b'"%d":%s' % (i, entry) for i in range(240_000)) + b"}"
    path.write_bytes(len(header).to_bytes(8, "little") + header)


def overlong(path: Path) -> None:
    path.write_bytes((1 << 63).to_bytes(8, "little") + path.read_bytes()[8:])


@pytest.mark.parametrize("spoil", [bloat, overlong])
def test_weights_files_with_abusive_headers(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    folder = make_bundle(tmp_path / "b", golden=False)
    spoil(folder / "model.safetensors")
    write_manifest(folder)
    code, text = attempt(folder)
    assert code == 3 and "model.safetensors" in text, text


def test_a_manifest_of_nested_brackets(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "b", golden=False)
    (folder / "manifest.json").write_text("[" * 1_000_000)
    code, text = attempt(folder)
    assert code == 3 and "manifest.json" in text, text


def test_a_pipe_in_place_of_a_file(tmp_path: Path) -> None:
    for name in ("model.onnx", "manifest.json", "model.safetensors"):
        folder = make_bundle(tmp_path / name.replace(".", "_") / "b", golden=False)
        (folder / name).unlink()
        os.mkfifo(folder / name)
        code, text = attempt(folder)
        assert code == 3 and f"{name} in" in text and "not a regular file" in text, text


def test_no_home_and_a_read_only_bundle(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "b")
    folder.chmod(0o555)
    for environment in ({"HOME": "", "XDG_CACHE_HOME": ""}, {"HOME": "/nonexistent", "XDG_CACHE_HOME": "relative"}):
        code, text = attempt(folder, **environment)
        assert (code, text) == (0, "")
    folder.chmod(0o755)
    assert set(file_facts(tmp_path)) == {f"b/{name}" for name in file_facts(folder)} | {"b/manifest.json"}


def test_a_full_disk_forgets_the_verdict_and_answers(tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "b")
    limited = CHILD.replace("from pinnace", "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\nfrom pinnace", 1)
    done = subprocess.run(
        [sys.executable, "-c", f"import signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n{limited}", str(folder)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


def test_a_hub_cache_tree_runs_and_verifies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    snapshot = hub_tree(make_bundle(tmp_path / "b"), tmp_path / "hub")
    result = load(snapshot).run(example(2, 4))["last_hidden_state"]
    np.testing.assert_allclose(result, expected(example(2, 4)), atol=1e-6)
    report = verify_bundle(snapshot)
    assert report.ok, report
    assert Bundle.open(snapshot).config()["model_type"] == "bert"


def test_one_large_run_gives_its_memory_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    wide = numpy_helper.from_array(np.ones((HIDDEN, 2048), np.float32))
    tall = numpy_helper.from_array(np.ones((2048, HIDDEN), np.float32))
    nodes = [
        helper.make_node("Constant", [], ["wide"], "/wide", value=wide),
        helper.make_node("Constant", [], ["tall"], "/tall", value=tall),
        helper.make_node("MatMul", ["encoded", "wide"], ["large"], "/up"),
        helper.make_node("Sigmoid", ["large"], ["between"], "/between"),
        helper.make_node("MatMul", ["between", "tall"], ["last_hidden_state"], "/down"),
    ]
    session = load(make_bundle(tmp_path / "b", nodes=nodes), threads=1)
    session.run(example(2, 16))
    before = resident()
    session.run(example(1024, 16))  # at least 128 MiB of activations
    assert resident() < before + (48 << 20)


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_memory_stays_flat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    session = load(make_bundle(tmp_path / "b"), threads=1)
    generator = np.random.default_rng(3)

    def requests(count: int) -> None:
        for _ in range(count):
            rows, tokens = int(generator.integers(1, 64)), int(generator.integers(1, 17))
            session.run(example(rows, tokens), timeout=30 if rows < 4 else None)

    requests(1000)
    warm = resident()
    requests(4000)
    assert resident() < 1.1 * warm
