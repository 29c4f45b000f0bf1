"""The public face: its names, what it imports, and serving where PyTorch cannot be imported."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import pickle
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

import pinnace
from pinnace.errors import UsageError
from tests.conftest import DATA, OpenPipeline, same
from tests.test_cli_run import ONE

ROOT = DATA.parent.parent
HEAVY = ("torch", "onnx", "onnx_ir", "onnxscript", "transformers", "safetensors", "huggingface_hub")
NAMES = [
    "Bundle", "Cancellation", "PinnaceError", "Pipeline", "Session", "errors", "export", "load", "models", "pipeline",
    "quantize", "runtime", "share_threads", "verify",
]  # fmt: skip


def fresh(code: str, *words: str) -> str:
    """Run code in a new process where the packages of all extras cannot be imported; returns standard output."""
    block = f"import sys\nfor name in {HEAVY}: sys.modules[name] = None\n"
    command = [sys.executable, "-c", block + code, *words]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_public_names() -> None:
    assert sorted(pinnace.__all__) == NAMES
    assert {*NAMES, "__version__"} <= set(dir(pinnace))
    for name in NAMES:
        assert getattr(pinnace, name) is not None
    with pytest.raises(AttributeError, match="'pipelin'"):
        pinnace.pipelin  # noqa: B018


def test_names_are_those_of_their_modules() -> None:
    homes = {
        "engine.session": ("load", "Session"), "engine.cancellation": ("Cancellation",), "bundles.bundle": ("Bundle",),
        "engine.shared_threads": ("share_threads",), "pipelines.table": ("pipeline",), "pipelines.base": ("Pipeline",),
    }  # fmt: skip
    for home, names in homes.items():
        for name in names:
            assert getattr(pinnace, name) is getattr(importlib.import_module(f"pinnace.runtime.{home}"), name)
    assert pinnace.verify is importlib.import_module("pinnace.runtime.checks.verify").verify_bundle


def test_import_brings_nothing_else() -> None:
    code = """
before = set(sys.modules)
import pinnace
after = {name.partition(".")[0] for name in set(sys.modules) - before}
print(sorted(after - set(sys.stdlib_module_names) - {"pinnace"}), [m for m in sys.modules if m.startswith("pinnace.")])
"""
    assert fresh(code).split() == ["[]", "[]"]


def test_a_second_start_imports_only_what_it_needs(
    bundle_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What only checks, hashes, errors and many batches need took a sixth of the time to the first answer."""
    idle = {
        "concurrent.futures", "difflib", "hashlib", "importlib.metadata", "logging", "tempfile", "unicodedata",
        "pinnace.runtime.bundles.hygiene", "pinnace.runtime.bundles.onnx_graph", "pinnace.runtime.engine.placement",
    }  # fmt: skip
    code = f"""
import numpy, tokenizers, onnxruntime
before = set(sys.modules)
import pinnace
pinnace.pipeline("text-classification", sys.argv[1], threads=1)("some text")
print(sorted({idle} & (set(sys.modules) - before)))
"""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    bundle = str(bundle_of("tiny-classify"))
    assert "hashlib" in fresh(code, bundle)  # the first start reads every file
    assert fresh(code, bundle).strip() == "[]"


def test_export_is_a_module_and_a_command(tmp_path: Path) -> None:
    from pinnace.export import builder, export

    assert isinstance(pinnace.export, types.ModuleType) and callable(pinnace.export)
    assert pinnace.export is sys.modules["pinnace.export"] and pinnace.export.export is export
    assert pinnace.export.builder is builder
    with pytest.raises(UsageError, match="precision"):
        pinnace.export(str(DATA / "tiny-nsp"), task="nsp", output=tmp_path / "out", precision="fp15")
    assert pickle.loads(pickle.dumps(export)) is export  # noqa: S301


def test_export_without_its_extra_says_what_to_install() -> None:
    code = """
import pinnace
try:
    pinnace.export("bert", task="qa")
except ImportError as error:
    print(type(error).__name__, error)
"""
    out = fresh(code)
    assert out.startswith("MissingExtra") and "pip install 'pinnace[export]'" in out


def test_all_pipelines_answer_where_pytorch_cannot_be_imported(
    bundle_of: Callable[[str], Path], open_pipeline: OpenPipeline
) -> None:
    calls = [(task, str(bundle_of(name)), inputs, options) for task, name, _, (inputs, options) in ONE]
    code = """
import json
import pinnace
calls = json.loads(sys.argv[1])
print(json.dumps([pinnace.pipeline(task, path, threads=1)(inputs, **options) for task, path, inputs, options in calls]))
"""
    got = json.loads(fresh(code, json.dumps(calls)))
    want = [open_pipeline(task, name)(inputs, **options) for task, name, _, (inputs, options) in ONE]
    assert same(got, json.loads(json.dumps(want)))


def test_commands_work_where_pytorch_cannot_be_imported(bundle_of: Callable[[str], Path]) -> None:
    code = """
from pinnace.cli.main import main
codes = [main([name, sys.argv[1], "-q", *rest]) for name, *rest in (["inspect"], ["run", "some text"])]
codes += [main([name, "-q"]) for name in ("tasks",)]
print(codes)
"""
    assert fresh(code, str(bundle_of("tiny-classify"))).splitlines()[-1] == "[0, 0, 0]"


def test_a_pipeline_goes_to_another_process(bundle_of: Callable[[str], Path], open_pipeline: OpenPipeline) -> None:
    pipe = open_pipeline("classify", "tiny-classify")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert same(pool.map(pipe, ["good", "bad"]), [pipe("good"), pipe("bad")])
