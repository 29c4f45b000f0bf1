"""Faults that an exporter can have, put in on purpose: each is caught before anything is published, and named."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch

from pinnace.cli.main import main
from pinnace.errors import CheckFailed
from pinnace.export import builder
from pinnace.export.builder import export
from pinnace.export.graph import MODULE, Emitter, Row
from pinnace.export.passes import tidy as right_tidy
from pinnace.export.static_cache import graph_interface
from pinnace.export.weights import bind_weights as right_bind
from pinnace.runtime.bundles.hygiene import check_graph
from pinnace.safetensors_header import read_header
from tests.bert_oracle import text_inputs
from tests.export_oracle import assert_same, reference, run, saved

SETTINGS: dict[str, Any] = {"num_labels": 3}
HEAD = "BertForTokenClassification"


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults") / "checkpoint"
    saved(folder, HEAD, **SETTINGS)
    return folder


def break_row(monkeypatch: pytest.MonkeyPatch, operator: str, wrong: Callable[[Row], Row]) -> None:
    """Put a wrong row into every lowering table."""
    rows = {key: {**table, operator: wrong(table[operator])} for key, table in builder.ROWS.items()}
    monkeypatch.setattr(builder, "ROWS", rows)


def in_layer(scope: str, change: Callable[[Emitter, list[ir.Value]], list[ir.Value]]) -> Callable[[Row], Row]:
    """A row that is right but in one module, where ``change`` has its way with the results."""

    def wrap(right: Row) -> Row:
        def row(e: Emitter) -> Sequence[ir.Value]:
            values = list(right(e))
            return change(e, values) if e.node.metadata_props.get(MODULE) == scope else values

        return row

    return wrap


def with_inputs(**moved: int) -> Callable[[Row], Row]:
    """An Embed row that reads the wrong inputs: ``ids=1`` reads as ids what stands at place 1."""
    places = {"ids": 0, "types": 1}

    def wrap(right: Row) -> Row:
        def row(e: Emitter) -> Sequence[ir.Value]:
            given = [e.node.inputs[i] for i in range(len(e.node.inputs))]
            for name, place in moved.items():
                e.node.replace_input_with(places[name], given[place])
            return right(e)

        return row

    return wrap


def refused(checkpoint: Path, folder: Path, **options: Any) -> str:
    """Export; it must fail with exit code 1, leave nothing new, and keep the old bundle. Gives the message."""
    old = folder / "bundle"
    old.mkdir(parents=True)
    (old / "manifest.json").write_text("the old bundle")
    with pytest.raises(CheckFailed) as caught:
        export(checkpoint, output=old, **options)
    assert caught.value.exit_code == 1
    assert [path.name for path in folder.iterdir()] == ["bundle"]
    assert (old / "manifest.json").read_text() == "the old bundle"
    return str(caught.value)


@pytest.mark.parametrize("target", ["ort", "onnx"])
@pytest.mark.parametrize("layer", ["bert.encoder.layer.0.output", "bert.encoder.layer.1.attention.output"])
def test_a_wrong_layer_is_named(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, layer: str
) -> None:
    wrong = in_layer(layer, lambda e, values: [e.op("Mul", values[0], e.constant(1.01, "float32")), *values[1:]])
    break_row(monkeypatch, "AddLayerNorm", wrong)
    message = refused(checkpoint, tmp_path, target=target)
    assert re.search(r"output 'logits' differs from PyTorch on batch\d", message)
    assert f"first layer that diverges: {layer} (largest difference" in message


def test_the_message_of_the_command(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = in_layer("", lambda e, values: [e.op("Neg", values[0])])
    break_row(monkeypatch, "Linear", wrong)
    assert main(["export", str(checkpoint), "-o", str(tmp_path / "bundle")]) == 1
    shown = capsys.readouterr()
    assert "output 'logits' differs" in shown.err
    assert (
        "every layer agrees: the fault lies in the head's last step, which reads classifier.bias, classifier.weight"
        in shown.err
    )
    assert "Traceback" not in shown.err + shown.out
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("target", ["ort", "onnx"])
def test_dropped_token_types(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    def without_types(right: Row) -> Row:
        def row(e: Emitter) -> Sequence[ir.Value]:
            types = e.needed(1)
            e.node.replace_input_with(1, e.op("Sub", types, types))
            return right(e)

        return row

    break_row(monkeypatch, "Embed", without_types)
    message = refused(checkpoint, tmp_path, target=target)
    assert "output 'logits'" in message
    assert "first layer that diverges: bert.embeddings (" in message


@pytest.mark.parametrize("target", ["ort", "onnx"])
def test_swapped_inputs(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    break_row(monkeypatch, "Embed", with_inputs(ids=1, types=0))
    message = refused(checkpoint, tmp_path, target=target)
    # Ids are no segments: the run fails where they are looked up, or the numbers differ there.
    assert "/bert/embeddings/" in message or "first layer that diverges: bert.embeddings" in message


def test_swapped_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path / "checkpoint", "BertForQuestionAnswering")

    def tidy(model: ir.Model) -> None:
        right_tidy(model)
        start, end = model.graph.outputs
        start.name, end.name = end.name, start.name

    monkeypatch.setattr(builder, "tidy", tidy)
    message = refused(tmp_path / "checkpoint", tmp_path / "out")
    assert "output 'start_logits'" in message
    assert "reads qa_outputs.bias, qa_outputs.weight, or in the outputs' order" in message


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (
            "bert.encoder.layer.1.intermediate.dense.weight",
            "first layer that diverges: bert.encoder.layer.1.intermediate",
        ),
        (
            "bert.encoder.layer.0.attention.self.key.weight",
            "first layer that diverges: bert.encoder.layer.0.attention.self",
        ),
        (
            "classifier.weight",
            "every layer agrees: the fault lies in the head's last step, which reads classifier.bias",
        ),
        ("bert.embeddings.LayerNorm.weight", "first layer that diverges: bert.embeddings"),
    ],
)
def test_a_flipped_weight_bit(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tensor: str, words: str
) -> None:
    """The writer damages one bit of one weight; the reference reads the checkpoint and sees it."""

    def damaging(model: ir.Model, located: Any, folder: Path, name: str, *rest: Any) -> tuple[str, ...]:
        files = right_bind(model, located, folder, name, *rest)
        content = bytearray((folder / files[0]).read_bytes())
        content[read_header(folder / files[0])[tensor].start + 3] ^= 0x40
        (folder / files[0]).write_bytes(content)
        return files

    monkeypatch.setattr(builder, "bind_weights", damaging)
    message = refused(checkpoint, tmp_path)
    assert "output 'logits'" in message
    assert words in message


def test_a_graph_that_onnx_runtime_refuses(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = in_layer("", lambda e, values: [e.op("NoSuchOperator", values[0])])
    break_row(monkeypatch, "Linear", wrong)
    message = refused(checkpoint, tmp_path)
    assert "does not open model.onnx" in message
    assert "NoSuchOperator" in message


def test_rows_that_depend_on_their_neighbours(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mask that is ignored shows in every padded row."""

    def unmasked(right: Row) -> Row:
        def row(e: Emitter) -> Sequence[ir.Value]:
            e.node.replace_input_with(3, None)
            return right(e)

        return row

    break_row(monkeypatch, "Attention", unmasked)
    message = refused(checkpoint, tmp_path)
    assert re.search(r"output 'logits' differs from PyTorch on batch\d-length\d+-pad-(right|left)", message)
    assert "first layer that diverges: bert.encoder.layer.0.attention.self" in message


def overflowing(folder: Path, peak: float) -> Any:
    """A model in which one channel of one layer reaches ``peak``, and the answer does not depend on it much."""
    theirs = saved(folder / "plain", HEAD, **SETTINGS)
    with torch.no_grad():
        layer = theirs.bert.encoder.layer[0]
        layer.intermediate.dense.weight[0] *= 10.0
        layer.intermediate.dense.bias[0] = peak / 20
        layer.output.dense.weight[:, 0] = torch.linspace(-20.0, 20.0, layer.output.dense.weight.shape[0])
    theirs.save_pretrained(folder / "checkpoint")
    return theirs


@pytest.mark.parametrize("target", ["ort", "onnx"])
def test_fp16_keeps_what_overflows_in_fp32(tmp_path: Path, target: str) -> None:
    theirs = overflowing(tmp_path, 200_000.0)
    given = text_inputs(HEAD)
    with torch.inference_mode():
        inner = theirs.bert(**given).last_hidden_state
        assert torch.isfinite(inner).all()
    made = export(tmp_path / "checkpoint", output=tmp_path / "bundle", target=target, precision="fp16")
    islands = made.manifest.variants["fp16"].islands
    assert islands
    assert all(name.startswith("/bert/encoder/layer.0/") for name in islands)
    assert any("/output/" in name for name in islands)
    assert made.certificate["variants"]["fp16"]["verdict"] == "passed"
    assert_same(run(made, given, "fp16"), reference(theirs, given), atol=0.02)
    graph = check_graph(made.path, "model_fp16.onnx", made.manifest.files)
    assert {node.op_type for node in graph.nodes() if node.name.startswith("/casts/")} == {"Cast"}


def test_without_the_island_fp16_would_overflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overflowing(tmp_path, 400_000.0)
    monkeypatch.setattr(builder, "too_large_for_fp16", lambda *_: ())
    with pytest.raises(CheckFailed, match=r"bert\.encoder\.layer\.0\.output"):
        export(tmp_path / "checkpoint", output=tmp_path / "bundle", precision="fp16")
    assert not (tmp_path / "bundle").exists()


def test_a_weight_beyond_fp16_is_named(tmp_path: Path) -> None:
    theirs = saved(tmp_path / "plain", HEAD, **SETTINGS)
    with torch.no_grad():
        theirs.bert.encoder.layer[1].output.dense.bias[2] = 7e4
    theirs.save_pretrained(tmp_path / "checkpoint")
    message = refused(tmp_path / "checkpoint", tmp_path / "out", precision="fp16")
    assert "'bert.encoder.layer.1.output.dense.bias' reaches 7e+04, beyond fp16's 65504" in message
    assert "--precision fp32" in message


def test_a_graph_that_the_runtime_would_not_open(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime works a size out that the interface leaves open, so that the manifest would state another shape."""
    right = graph_interface

    def open_rows(*given: Any, **options: Any) -> Any:
        face = right(*given, **options)
        outputs = tuple(dataclasses.replace(spec, shape=("rows", *spec.shape[1:])) for spec in face.outputs)
        return dataclasses.replace(face, outputs=outputs)

    monkeypatch.setattr(builder, "graph_interface", open_rows)
    told = refused(checkpoint, tmp_path, static={"batch": 2})
    assert "the bundle would not open" in told and "output 'logits' has the shape [2, " in told
