"""A published bundle that was changed afterwards: verify says which file, or which input or output, is wrong."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch

from pinnace.cli.main import main
from pinnace.errors import BundleError
from pinnace.export.builder import export
from pinnace.publishing import file_facts
from pinnace.runtime.bundles.bundle import Bundle
from pinnace.runtime.checks.verify import VerifyReport, verify_bundle
from pinnace.safetensors_header import read_header
from pinnace.spec import MANIFEST_NAME, Manifest
from tests.conftest import DATA
from tests.tiny_bundle import facts_by_hand

MODEL = "bert-glossary-ner"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return export(DATA / MODEL, output=tmp_path_factory.mktemp("published") / "bundle", precision="fp16").path


@pytest.fixture
def bundle(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to damage, and a cache of verdicts of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Path(shutil.copytree(published, tmp_path / "bundle"))


def refresh(bundle: Path) -> None:
    """Make the manifest fit the files again, as a careless tool or an attacker would."""
    manifest = facts_by_hand(bundle)
    facts = file_facts(bundle)
    manifest["files"] = {name: {"bytes": fact.bytes, "sha256": fact.sha256} for name, fact in facts.items()}
    (bundle / MANIFEST_NAME).write_text(json.dumps(manifest))


def flip(path: Path, place: int, bit: int = 1) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= bit
    path.write_bytes(content)


def change_graph(bundle: Path, change: Callable[[onnx.GraphProto], None]) -> None:
    model = onnx.load(bundle / "model.onnx", load_external_data=False)
    change(model.graph)
    (bundle / "model.onnx").write_bytes(model.SerializeToString())
    refresh(bundle)


def failures(report: VerifyReport) -> str:
    return "\n".join(f"{check.name}: {check.detail}" for check in report.checks if not check.ok)


def test_as_published_it_passes(bundle: Path) -> None:
    report = verify_bundle(bundle)
    assert report.ok, failures(report)
    assert {"numbers fp32", "numbers fp16"} <= {check.name for check in report.checks}


def test_one_flipped_bit_in_any_file(bundle: Path) -> None:
    names = sorted(file_facts(bundle))
    assert {"model.onnx", "model.safetensors", "model_fp16.onnx", "model_fp16.onnx_data", "golden.npz"} < set(names)
    for name in names:
        size = (bundle / name).stat().st_size
        flip(bundle / name, size // 2)
        report = verify_bundle(bundle)
        assert report.exit_code == 3, name
        assert name in failures(report)
        flip(bundle / name, size // 2)


def test_one_flipped_bit_anywhere_in_the_manifest(bundle: Path) -> None:
    whole = (bundle / "manifest.json").read_bytes()
    facts = Manifest.from_json(whole.decode())
    for place in range(0, len(whole), 41):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << bit
            (bundle / "manifest.json").write_bytes(damaged)
            # What still says the same, such as another space between two words of JSON, is no damage.
            with contextlib.suppress(BundleError):
                assert Bundle.open(bundle, verify=False).manifest == facts, (place, bit)
    (bundle / "manifest.json").write_bytes(whole.replace(b'"format": 1', b'"format":  1').replace(b"B-TERM", b"B-DERM"))
    with pytest.raises(BundleError, match="was changed after it was written"):
        Bundle.open(bundle)


@pytest.mark.parametrize("what", ["missing", "extra", "renamed", "truncated"])
def test_other_damage(bundle: Path, what: str) -> None:
    path = bundle / "vocab.txt"
    if what == "missing":
        path.unlink()
    elif what == "renamed":
        path.rename(bundle / "Vocab.txt")
    elif what == "truncated":
        path.write_bytes(path.read_bytes()[:-10])
    else:
        (bundle / "added.py").write_text("print()")
    report = verify_bundle(bundle)
    assert report.exit_code == 3
    assert ("added.py" if what == "extra" else "vocab.txt") in failures(report)


def swapped(graph: onnx.GraphProto) -> None:
    """Every step that reads the ids reads the mask, and the other way round."""
    other = {"input_ids": "attention_mask", "attention_mask": "input_ids"}
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = other.get(name, name)


def swapped_names(graph: onnx.GraphProto) -> None:
    """The graph's two inputs change names, and its steps do not."""
    (ids,) = (value for value in graph.input if value.name == "input_ids")
    (types,) = (value for value in graph.input if value.name == "token_type_ids")
    ids.name, types.name = "token_type_ids", "input_ids"
    other = {"input_ids": "token_type_ids", "token_type_ids": "input_ids"}
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = other.get(name, name)


@pytest.mark.parametrize("change", [swapped, swapped_names], ids=["in the steps", "by name"])
def test_swapped_inputs_with_fresh_hashes(
    bundle: Path, change: Callable[[onnx.GraphProto], None], capsys: pytest.CaptureFixture[str]
) -> None:
    change_graph(bundle, change)
    report = verify_bundle(bundle)
    assert report.exit_code in (1, 3)
    assert "numbers fp32" in failures(report)
    assert "numbers fp16" not in failures(report)
    assert main(["verify", str(bundle)]) == report.exit_code
    shown = capsys.readouterr()
    assert "model.onnx" in shown.out + shown.err
    assert "Traceback" not in shown.out + shown.err


def test_dropped_token_types_with_fresh_hashes(bundle: Path) -> None:
    def drop(graph: onnx.GraphProto) -> None:
        (gone,) = (value for value in graph.input if value.name == "token_type_ids")
        graph.input.remove(gone)
        for node in graph.node:
            for index, name in enumerate(node.input):
                node.input[index] = "input_ids" if name == "token_type_ids" else name

    change_graph(bundle, drop)
    report = verify_bundle(bundle)
    assert report.exit_code in (1, 3)
    assert "token_type_ids" in failures(report)


def test_token_types_that_are_not_read_with_fresh_hashes(bundle: Path) -> None:
    """The input is still there, but every step reads zeros in its place."""

    def ignore(graph: onnx.GraphProto) -> None:
        graph.node.insert(0, onnx.helper.make_node("Sub", ["token_type_ids"] * 2, ["no_types"]))
        for node in list(graph.node)[1:]:
            for index, name in enumerate(node.input):
                node.input[index] = "no_types" if name == "token_type_ids" else name

    change_graph(bundle, ignore)
    report = verify_bundle(bundle)
    assert report.exit_code == 1
    assert "output 'logits'" in failures(report)


@pytest.mark.parametrize(
    "tensor", ["bert.encoder.layer.0.attention.self.query.weight", "bert.encoder.layer.1.output.LayerNorm.bias"]
)
def test_a_flipped_weight_bit_with_fresh_hashes(bundle: Path, tensor: str) -> None:
    flip(bundle / "model.safetensors", read_header(bundle / "model.safetensors")[tensor].start + 3, 0x40)
    refresh(bundle)
    report = verify_bundle(bundle)
    assert report.exit_code == 1
    assert "numbers fp32: model.onnx does not give the reference's numbers" in failures(report)
    assert "output 'logits'" in failures(report)


def test_swapped_variants_with_fresh_hashes(bundle: Path) -> None:
    """fp16's graph under fp32's name is too far from the reference for fp32."""
    shutil.copy(bundle / "model_fp16.onnx", bundle / "model.onnx")
    refresh(bundle)
    report = verify_bundle(bundle)
    assert report.exit_code == 1
    assert "numbers fp32" in failures(report)
