"""Unusual checkpoints that are right export whole; what cannot be written is refused by name before the long work."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from pinnace.errors import CheckpointError, PinnaceError, UsageError
from pinnace.export import validate
from pinnace.export.builder import export
from pinnace.export.tokenizer_files import MAX_BYTES, copy_settings
from pinnace.models.checkpoints.checkpoint import INDEX_NAME, SINGLE_NAME
from pinnace.runtime.checks.verify import verify_bundle
from pinnace.runtime.tokenization.tokenizer import load_tokenizer
from tests.apertus_oracle import ROTARY
from tests.apertus_oracle import pair as apertus_pair
from tests.bert_oracle import text_inputs
from tests.conftest import DATA
from tests.export_oracle import assert_same, exported, reference, run, saved

TOKENIZER = DATA / "tiny-mlm"
TOKENS = 640  # of that tokenizer
NOT_UTF8 = os.fsdecode(b"caf\xe9")
HALF = "\ud83d"


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def with_tokenizer(folder: Path, head: str = "BertForMaskedLM", **settings: Any) -> Path:
    """Save a random model of transformers beside a trained tokenizer."""
    saved(folder, head, **{"vocab_size": TOKENS, "max_position_embeddings": 128, **settings})
    for path in TOKENIZER.glob("*token*"):
        shutil.copy(path, folder)
    return folder


def change(path: Path, **facts: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **facts}))


# -- models ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["ort", "onnx"])
@pytest.mark.parametrize(
    ("head", "task"),
    [
        ("BertModel", "feature-extraction"),
        ("BertForMaskedLM", "fill-mask"),
        ("BertForSequenceClassification", "text-classification"),
    ],
)
def test_a_decoder_without_a_cache(tmp_path: Path, head: str, task: str, target: str) -> None:
    settings = {"is_decoder": True}
    theirs, made = exported(tmp_path, head, settings=settings, task=task, target=target, validate=True)
    given = text_inputs(head)
    assert_same(run(made, given), reference(theirs, given, use_cache=False))
    assert verify_bundle(made.path).ok


@pytest.mark.parametrize("size", [1, 2])
def test_feed_forward_in_chunks_leaves_the_graph_alone(tmp_path: Path, size: int) -> None:
    saved(tmp_path / "checkpoint", "BertForTokenClassification")
    whole = export(tmp_path / "checkpoint", output=tmp_path / "whole", validate=False)
    change(tmp_path / "checkpoint" / "config.json", chunk_size_feed_forward=size)
    made = export(tmp_path / "checkpoint", output=tmp_path / "bundle")
    assert made.manifest.files["model.onnx"] == whole.manifest.files["model.onnx"]


@pytest.mark.parametrize("positions", [16, 64])
@pytest.mark.parametrize("target", ["ort", "onnx"])
def test_dynamic_scaling_is_checked_in_steps_up_to_its_stretch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, positions: int, target: str
) -> None:
    right, lengths = validate._compare_steps, []

    def noted(*given: Any) -> None:
        lengths.append(int(given[1].real_keys.sum()))
        right(*given)

    monkeypatch.setattr(validate, "_compare_steps", noted)
    settings = {"rope_parameters": dict(ROTARY["dynamic"]), "max_position_embeddings": positions}
    torch.manual_seed(3)
    apertus_pair("ApertusForCausalLM", **settings)[0].save_pretrained(tmp_path / "checkpoint")
    made = export(tmp_path / "checkpoint", output=tmp_path / "bundle", target=target)
    assert made.certificate["variants"]["fp32"]["longest_row"] == 2 * positions
    assert lengths == [14]


# -- the sentence ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, True),
        ({"type_vocab_size": 1}, True),
        ({"max_position_embeddings": 32}, True),
        ({"max_position_embeddings": 16}, True),
        ({"max_position_embeddings": 2}, False),
        ({"vocab_size": 300}, False),  # smaller than the tokenizer's
    ],
    ids=str,
)
def test_the_sentence_is_one_that_the_model_takes(tmp_path: Path, settings: dict[str, Any], sentence: bool) -> None:
    made = export(with_tokenizer(tmp_path / "checkpoint", **settings), output=tmp_path / "bundle")
    assert ("sentence" in made.certificate["variants"]["fp32"]["cases"]) == sentence


# -- files of the tokenizer --------------------------------------------------------------------------------------------


def test_added_tokens_of_an_old_tokenizer_stay(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    saved(folder, "BertForMaskedLM", vocab_size=TOKENS + 2)
    shutil.copy(TOKENIZER / "vocab.txt", folder)
    (folder / "added_tokens.json").write_text(json.dumps({"[USR]": TOKENS, "COVID-19": TOKENS + 1}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))
    made = export(folder, output=tmp_path / "bundle", validate=False)
    text = "[USR] the COVID-19 boat"
    want = load_tokenizer(folder)(text)["input_ids"]
    assert {TOKENS, TOKENS + 1} < set(want)
    assert load_tokenizer(made.path)(text)["input_ids"] == want


def test_named_chat_templates_are_copied(tmp_path: Path) -> None:
    templates, target = tmp_path / "checkpoint" / "additional_chat_templates", tmp_path / "bundle"
    templates.mkdir(parents=True)
    target.mkdir()
    for name in ("tool_use.jinja", "rag-2.jinja", "evil.py", ".hidden.jinja", "two words.jinja"):
        (templates / name).write_text("{{ messages }}")
    copied = copy_settings(tmp_path / "checkpoint", target)
    assert copied == ("additional_chat_templates/rag-2.jinja", "additional_chat_templates/tool_use.jinja")
    assert sorted(path.name for path in (target / templates.name).iterdir()) == ["rag-2.jinja", "tool_use.jinja"]
    os.truncate(templates / "tool_use.jinja", MAX_BYTES + 1)
    with pytest.raises(CheckpointError, match=r"tool_use\.jinja has .* more than"):
        copy_settings(tmp_path / "checkpoint", target)


@pytest.mark.parametrize("only_words", [False, True])
def test_half_a_character_in_the_tokenizers_settings(tmp_path: Path, only_words: bool) -> None:
    folder = with_tokenizer(tmp_path / "checkpoint")
    change(folder / "tokenizer_config.json", note=HALF, chat_template=HALF)
    if only_words:
        (folder / "tokenizer.json").unlink()
        shutil.copy(TOKENIZER / "vocab.txt", folder)
        with pytest.raises(CheckpointError, match="half of a surrogate pair"):
            export(folder, output=tmp_path / "bundle", validate=False)
    else:
        made = export(folder, output=tmp_path / "bundle", validate=False)
        assert json.loads((made.path / "tokenizer_config.json").read_text("utf-8"))["note"] == HALF


@pytest.mark.parametrize("task", ["feature-extraction", "fill-mask"])
def test_modules_matter_for_vectors_alone_and_early(tmp_path: Path, task: str) -> None:
    folder = with_tokenizer(tmp_path / "checkpoint")
    kinds = [f"sentence_transformers.models.{name}" for name in ("Transformer", "Pooling", "Dense")]
    (folder / "modules.json").write_text(json.dumps([{"type": kind} for kind in kinds]))
    said: list[str] = []
    options: dict[str, Any] = {"output": tmp_path / "bundle", "validate": False, "progress": said.append}
    if task == "fill-mask":
        assert export(folder, task=task, **options).manifest.pooling is None
        return
    with pytest.raises(CheckpointError, match="has the module Dense") as caught:
        export(folder, task=task, **options)
    assert str(folder / "modules.json") in str(caught.value)
    assert not said


# -- weights -----------------------------------------------------------------------------------------------------------


def test_one_shard_with_an_index_stays_a_checkpoint(tmp_path: Path) -> None:
    folder, shard = tmp_path / "checkpoint", "model-00001-of-00001.safetensors"
    theirs = saved(folder, "BertForTokenClassification")
    (folder / SINGLE_NAME).rename(folder / shard)
    index = {"metadata": {}, "weight_map": dict.fromkeys(load_file(folder / shard), shard)}
    (folder / INDEX_NAME).write_text(json.dumps(index))
    first = export(folder, output=tmp_path / "first", validate=False)
    assert (first.path / INDEX_NAME).read_bytes() == (folder / INDEX_NAME).read_bytes()
    again = export(first.path, output=tmp_path / "again", validate=False)
    loaded = transformers.BertForTokenClassification.from_pretrained(again.path).eval()
    given = text_inputs("BertForTokenClassification")
    assert_same(reference(loaded, given), reference(theirs, given))


def test_a_tied_pair_that_is_missing_is_made_once(tmp_path: Path) -> None:
    folder, pair = tmp_path / "checkpoint", ("word_embeddings.weight", "predictions.decoder.weight")
    saved(folder, "BertForMaskedLM")
    kept = {name: t for name, t in load_file(folder / SINGLE_NAME).items() if not name.endswith(pair)}
    save_file(kept, folder / SINGLE_NAME, {"format": "pt"})
    made = export(folder, output=tmp_path / "bundle", init_missing=True)
    assert made.fresh == ("bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight")
    assert list(load_file(made.path / "model-init.safetensors")) == ["bert.embeddings.word_embeddings.weight"]


# -- requests ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "task"), [("BertForSequenceClassification", "text-classification"), ("BertModel", "feature-extraction")]
)
def test_all_logits_are_for_causal_tasks(tmp_path: Path, head: str, task: str) -> None:
    saved(tmp_path / "checkpoint", head)
    said: list[str] = []
    with pytest.raises(UsageError, match=f"--all-logits is for text-generation; got the task {task}"):
        export(tmp_path / "checkpoint", task=task, output=tmp_path / "bundle", all_logits=True, progress=said.append)
    assert not said
    assert not (tmp_path / "bundle").exists()


def test_a_checkpoint_in_a_folder_whose_name_is_not_utf8(tmp_path: Path) -> None:
    saved(tmp_path / NOT_UTF8, "BertModel")
    made = export(tmp_path / NOT_UTF8, task="embed", output=tmp_path / "bundle")
    assert made.manifest.source.name == "caf\ufffd"
    assert verify_bundle(made.path).ok


@pytest.mark.parametrize("name", [NOT_UTF8, f"{NOT_UTF8}/bundle", HALF])
def test_an_output_whose_path_is_not_utf8(tmp_path: Path, name: str) -> None:
    saved(tmp_path / "checkpoint", "BertModel")
    said: list[str] = []
    with pytest.raises(UsageError, match="is not UTF-8") as caught:
        export(tmp_path / "checkpoint", task="embed", output=f"{tmp_path}/{name}", progress=said.append)
    str(caught.value).encode()
    assert not said


def test_a_label_that_is_no_text(tmp_path: Path) -> None:
    saved(tmp_path / "checkpoint", "BertForSequenceClassification")
    change(tmp_path / "checkpoint" / "config.json", id2label={"0": HALF, "1": "b"}, label2id=None)
    said: list[str] = []
    with pytest.raises(PinnaceError, match=r"id2label .* surrogate") as caught:
        export(tmp_path / "checkpoint", output=tmp_path / "bundle", progress=said.append)
    assert caught.value.exit_code == 3
    assert not said


@pytest.mark.parametrize(
    "facts",
    [
        {"id2label": ["A", "B", "C"]},
        {"id2label": {"1": "A", "2": "B", "3": "C"}},
        {"id2label": {"0": HALF, "1": "B", "2": "C"}},
        {"id2label": None, "label2id": {"A": [1], "B": 1, "C": 2}},
        {"num_labels": 3},
    ],
    ids=["list", "from one", "half a character", "turned", "number"],
)
def test_labels_of_the_caller_replace_wrong_ones(tmp_path: Path, facts: dict[str, Any]) -> None:
    folder = tmp_path / "checkpoint"
    saved(folder, "BertForSequenceClassification", num_labels=3)
    change(folder / "config.json", **{"label2id": None, **facts})
    made = export(folder, output=tmp_path / "bundle", validate=False, labels=["X", "Y", "Z"])
    assert made.manifest.labels == ("X", "Y", "Z")
    with pytest.raises(UsageError, match="2 labels are given, and the model has 3"):
        export(folder, output=tmp_path / "other", validate=False, labels=["X", "Y"])


def test_the_number_of_labels_can_change_where_there_is_no_head(tmp_path: Path) -> None:
    """The remedy of the error; where the head is there, its shape says so."""
    folder = tmp_path / "checkpoint"
    saved(folder, "BertForSequenceClassification", num_labels=3)
    options: dict[str, Any] = {"output": tmp_path / "bundle", "validate": False, "labels": ["X", "Y"]}
    remedy = "where the checkpoint has no such head, --config num_labels=2 with --init-missing makes one"
    with pytest.raises(UsageError, match=remedy):
        export(folder, **options)
    with pytest.raises(CheckpointError, match=r"classifier\.weight: the model needs \[2"):
        export(folder, config="num_labels=2", init_missing=True, **options)
    saved(folder, "BertModel")
    made = export(folder, task="classify", config="num_labels=2", init_missing=True, **options)
    assert made.manifest.labels == ("X", "Y")
