"""fp16 from a bundle's own fp32 graph: islands where numbers grow too large or the user says so, weights in parts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from pinnace.errors import CheckFailed, UsageError
from pinnace.export.builder import export
from pinnace.quantize import quantize, request, tensors, workshop
from pinnace.quantize.fp16 import halved
from pinnace.quantize.schemes import SCHEMES
from pinnace.runtime.bundles.bundle import Bundle
from pinnace.runtime.checks.verify import verify_bundle
from pinnace.runtime.engine.ort import plain_session
from pinnace.safetensors_header import read_header
from tests.bert_oracle import text_inputs
from tests.conftest import DATA
from tests.export_oracle import saved

NER = "bert-glossary-ner"
HEAD = "BertForTokenClassification"


def overflowing(folder: Path, target: str = "ort") -> Path:
    """An fp32 bundle, without a tokenizer, in which a channel reaches 200,000 and matters little in the end."""
    theirs = saved(folder / "plain", HEAD, num_labels=3)
    with torch.no_grad():
        layer = theirs.bert.encoder.layer[0]
        layer.intermediate.dense.weight[0] *= 10.0
        layer.intermediate.dense.bias[0] = 10_000
        layer.output.dense.weight[:, 0] = torch.linspace(-20.0, 20.0, layer.output.dense.weight.shape[0])
    theirs.save_pretrained(folder / "checkpoint")
    return export(folder / "checkpoint", output=folder / "bundle", target=target, validate=False).path


def logits(folder: Path, name: str) -> Any:
    given = {key: np.asarray(value) for key, value in text_inputs(HEAD).items()}
    return plain_session(folder / name).run(None, given)[0]


def test_what_overflows_stays_fp32(tmp_path: Path) -> None:
    path = overflowing(tmp_path)
    report = quantize(str(path), precision="fp16", allow_degraded=True, threads=1)  # no texts to judge with
    assert report.chosen is not None
    islands = Bundle.open(path).variant("fp16").islands
    assert islands and all(name.startswith("/bert/encoder/layer.0/") for name in islands)
    assert any("/output/" in name for name in islands)
    np.testing.assert_allclose(logits(path, "model_fp16.onnx"), logits(path, "model.onnx"), atol=0.02)


def exact_fp16(folder: Path, name: str) -> Any:
    """Logits with every step in the type that the graph says; ONNX Runtime's CPU kernels take many steps in fp32."""
    given = {key: np.asarray(value) for key, value in text_inputs(HEAD).items()}
    with np.errstate(over="ignore", invalid="ignore"):
        found: list[Any] = list(ReferenceEvaluator(onnx.load(folder / name)).run(None, given))
    return found[0]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_without_islands_it_would_overflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = overflowing(tmp_path, target="onnx")
    options: dict[str, Any] = {"precision": "fp16", "allow_degraded": True, "threads": 1}
    quantize(str(path), output=tmp_path / "with", **options)
    monkeypatch.setattr(workshop, "too_large_for_fp16", lambda *_: ())
    quantize(str(path), output=tmp_path / "without", **options)
    wanted = logits(path, "model.onnx")
    np.testing.assert_allclose(exact_fp16(tmp_path / "with", "model_fp16.onnx"), wanted, atol=0.02)
    assert not np.allclose(exact_fp16(tmp_path / "without", "model_fp16.onnx"), wanted, atol=0.02)


def test_it_passes_its_gate_and_replaces_the_last_one(bundle_of: Callable[[str], Path], tmp_path: Path) -> None:
    options: dict[str, Any] = {"precision": "fp16", "data": DATA / "ner_dev.json", "threads": 1}
    report = quantize(str(bundle_of(NER)), output=tmp_path / "out", **options)
    assert report.chosen is not None and not report.chosen.miss
    first = Bundle.open(tmp_path / "out")
    assert first.variant("fp16").islands == ()
    stored = {entry.dtype for entry in read_header(tmp_path / "out" / "model_fp16.onnx_data").values()}
    assert stored == {"F16"}
    sizes = [sum(first.manifest.files[n].bytes for n in first.variant(p).weights) for p in ("fp16", "fp32")]
    assert 0.49 < sizes[0] / sizes[1] < 0.51
    quantize(str(tmp_path / "out"), keep=["*layer.1.output.dense.weight"], **options)
    second = Bundle.open(tmp_path / "out")
    assert sorted(second.manifest.variants) == ["fp16", "fp32"]
    (island,) = second.variant("fp16").islands
    assert "layer.1/output" in island
    graph = onnx.load(tmp_path / "out" / "model_fp16.onnx", load_external_data=False).graph
    (node,) = [node for node in graph.node if node.name == island]
    types = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    assert types[node.output[0]] == onnx.TensorProto.FLOAT
    assert verify_bundle(tmp_path / "out").ok


def test_parts_of_a_weight_make_the_same_bytes(
    bundle_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"precision": "fp16", "data": DATA / "ner_dev.json", "threads": 1}
    found = []
    for size in (1 << 24, 1000):
        monkeypatch.setattr(tensors, "CHUNK", size)
        quantize(str(bundle_of(NER)), output=tmp_path / str(size), **options)
        found.append((tmp_path / str(size) / "model_fp16.onnx_data").read_bytes())
    assert found[0] == found[1]


def test_a_weight_beyond_the_range_is_named() -> None:
    near = np.array([65504.0, -1e-9, np.inf], np.float32)
    assert halved("w", near).tolist() == [65504.0, 0.0, np.inf]
    with pytest.raises(CheckFailed, match=r"weight 'w' reaches 7e\+04, beyond fp16's 65504"):
        halved("w", np.array([1.0, 7e4], np.float32))


def test_auto_never_takes_it(bundle_of: Callable[[str], Path]) -> None:
    assert not any(SCHEMES[name].precision == "fp16" for names in request.TRIED.values() for name in names)
    with pytest.raises(UsageError, match="got --precision fp16; leave --auto out"):
        quantize(str(bundle_of(NER)), precision="fp16", auto=True)
