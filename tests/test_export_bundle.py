"""What lies in a bundle: the same bytes every time, tidy graphs, shared weights, and nothing of the machine."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch

import pinnace
from pinnace.export.builder import Exported, export
from pinnace.export.certificate import tools
from pinnace.models.registry import ARCHS
from pinnace.runtime.checks.verify import verify_bundle
from pinnace.safetensors_header import read_header
from pinnace.spec import Manifest
from tests.bert_oracle import HEADS
from tests.conftest import DATA
from tests.export_oracle import exported

ROOT = Path(__file__).parent.parent
MODEL = DATA / "tiny-classify"
AXES = ("batch", "sequence", "choices", "past_sequence", "total_sequence")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_the_build_for_gpus_is_a_tool_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """With onnxruntime-gpu there is the module, and no distribution named onnxruntime."""
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "onnxruntime":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    expected = tools()
    monkeypatch.setattr(importlib.metadata, "version", version)
    assert tools() == expected
    assert expected["onnxruntime"][0].isdigit()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export(MODEL, output=tmp_path_factory.mktemp("bundle") / "tiny", precision="fp16")


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_two_exports_have_the_same_bytes(made: Exported, tmp_path: Path) -> None:
    """Another process, hash seed, folder, umask and time; no home, and a model that lies elsewhere."""
    shutil.copytree(MODEL, tmp_path / "elsewhere" / MODEL.name)
    code = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
os.umask(0o077)
import pinnace
pinnace.export("elsewhere/{MODEL.name}", output="other", precision="fp16")
"""
    kept = {name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_CACHE_HOME")}
    clean = {**kept, "PYTHONHASHSEED": "77", "TZ": "Asia/Tokyo", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=clean, check=True)
    assert digests(tmp_path / "other") == digests(made.path)
    assert len(digests(made.path)) >= 12


def test_every_file_is_in_the_manifest(made: Exported) -> None:
    on_disk = digests(made.path)
    del on_disk["manifest.json"]
    assert {name: fact.sha256 for name, fact in made.manifest.files.items()} == on_disk
    assert Manifest.from_json((made.path / "manifest.json").read_text()) == made.manifest


def test_nothing_of_the_machine_is_inside(made: Exported) -> None:
    words = [
        str(ROOT),
        str(made.path.parent),
        sys.prefix,
        "site-packages",
        "Traceback",
        "/tmp",
        "/home",
        "/work",
        "/usr",
    ]
    host = socket.gethostname()
    words += [host] if len(host) > 5 else []
    for path in made.path.rglob("*"):
        if path.is_file() and path.name != "tokenizer.json":
            content = path.read_bytes()
            for word in words:
                assert word.encode() not in content, f"{word} in {path.name}"
    for graph in made.path.glob("*.onnx"):
        assert b".py" not in graph.read_bytes()


def test_graphs_carry_no_notes(made: Exported) -> None:
    for path in made.path.glob("*.onnx"):
        model = onnx.load(path, load_external_data=False)
        assert (model.producer_name, model.producer_version, model.doc_string) == ("pinnace", "", "")
        graph = model.graph
        parts = [model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer, *graph.value_info]
        assert not any(part.metadata_props for part in parts if hasattr(part, "metadata_props"))
        assert not any(part.doc_string for part in parts)


@pytest.mark.parametrize("target", ["ort", "onnx"])
@pytest.mark.parametrize("head", HEADS)
def test_graphs_are_tidy(tmp_path: Path, head: str, target: str) -> None:
    _, made = exported(tmp_path, head, target=target, settings={"hidden_size": 16, "num_attention_heads": 2})
    path = made.path / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    names = [node.name for node in graph.node]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"(/[A-Za-z_.0-9]+)+", name) for name in names), names
    # Axes are named by the task, the same wherever they stand, and nothing of the tracer's symbols is left.
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            words = re.findall(r"[A-Za-z_]\w*", dim.dim_param)
            assert set(words) <= set(AXES), (value.name, dim.dim_param)
    shapes = {
        value.name: tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.output)
    }
    assert shapes == {spec.name: spec.shape for spec in (*made.manifest.inputs, *made.manifest.outputs)}
    # Weights keep the checkpoint's names, every one of them is read, and none is inside the graph's file.
    stored = read_header(made.path / "model.safetensors")
    for tensor in graph.initializer:
        is_weight = tensor.data_location == onnx.TensorProto.EXTERNAL
        assert is_weight == (tensor.name in stored or tensor.name in ARCHS["bert"].names.tied)
    assert {tensor.name for tensor in graph.initializer} <= {name for node in graph.node for name in node.input}
    assert path.stat().st_size < 60_000
    if target == "onnx":
        onnx.checker.check_model(str(path), full_check=True)
        assert {node.domain for node in graph.node} == {""}


def test_weights_are_the_checkpoints_own_bytes(made: Exported) -> None:
    assert (made.path / "model.safetensors").read_bytes() == (MODEL / "model.safetensors").read_bytes()
    assert made.manifest.variants["fp32"].weights == ("model.safetensors",)
    entries = read_header(MODEL / "model.safetensors")
    graph = onnx.load(made.path / "model.onnx", load_external_data=False).graph
    bound = 0
    for tensor in graph.initializer:
        if facts := {item.key: item.value for item in tensor.external_data}:
            assert facts["location"] == "model.safetensors"
            entry = entries[tensor.name]
            assert (int(facts["offset"]), int(facts["length"])) == (entry.start, entry.end - entry.start)
            bound += 1
    assert bound > 10


def test_facts_in_the_manifest(made: Exported) -> None:
    manifest = made.manifest
    config = json.loads((MODEL / "config.json").read_text())
    assert manifest.labels == tuple(config["id2label"][str(i)] for i in range(len(config["id2label"])))
    assert manifest.source.name == "tiny-classify"
    assert manifest.limits.sequence == config["max_position_embeddings"]
    assert manifest.special_tokens["pad_token"] == config["pad_token_id"]
    assert set(manifest.tools) >= {"pinnace", "torch", "onnx-ir", "onnxruntime", "numpy"}
    assert json.loads((made.path / "config.json").read_text())["architectures"] == [manifest.head]


def test_the_certificate_tells_what_was_compared(made: Exported) -> None:
    record = json.loads((made.path / "certificate.json").read_text())
    assert record == made.certificate
    assert "PyTorch" in record["oracle"]
    assert list(record["variants"]) == ["fp16", "fp32"]
    for precision, facts in record["variants"].items():
        assert facts["verdict"] == "passed"
        assert {"batch1-length1-pad-none", "batch3-length9-pad-left", "batch3-length9-pad-right", "sentence"} <= set(
            facts["cases"]
        )
        assert facts["outputs"]["logits"]["rows"] > 5
        assert facts["rows_alone"]["logits"]["max_abs"] < (1e-4 if precision == "fp32" else 0.05)
    assert record["variants"]["fp32"]["outputs"]["logits"]["max_abs"] < 1e-5
    assert record["variants"]["fp16"]["outputs"]["logits"]["max_abs"] > 0
    assert "| fp16 | ort |" in (made.path / "README.md").read_text()


def test_a_switched_off_check_is_on_the_record(tmp_path: Path) -> None:
    made = export(MODEL, output=tmp_path / "bundle", validate=False, precision="fp16")
    assert {name: facts["verdict"] for name, facts in made.certificate["variants"].items()} == {
        "fp32": "not validated",
        "fp16": "not validated",
    }
    assert "not validated" in (made.path / "README.md").read_text()


@pytest.mark.parametrize("target", ["ort", "onnx"])
def test_the_layout_of_the_hub(tmp_path: Path, target: str) -> None:
    made = export(MODEL, output=tmp_path / "bundle", layout="hub", precision="fp16", target=target)
    assert sorted(path.name for path in (made.path / "onnx").iterdir()) == [
        "model.onnx", "model.onnx_data", "model_fp16.onnx", "model_fp16.onnx_data",
    ]  # fmt: skip
    assert not list(made.path.glob("*.onnx*")) and not list(made.path.glob("*.safetensors"))
    report = verify_bundle(made.path)
    assert report.ok, report
    answer = pinnace.pipeline("text-classification", made.path, threads=1)("a text")
    assert answer[0]["label"] in made.manifest.labels


def test_steps_are_told_in_order(tmp_path: Path) -> None:
    lines: list[str] = []
    export(MODEL, output=tmp_path / "bundle", progress=lines.append)
    assert [line.split()[0] for line in lines] == ["tracing", "loading", "checking"]
