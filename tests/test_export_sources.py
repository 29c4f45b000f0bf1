"""Whatever a BERT folder contains becomes a bundle or a named error: shards, half types, old names, links, lacks."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from pinnace.errors import CheckpointError, PinnaceError
from pinnace.export.builder import export
from pinnace.models.checkpoints.hub import HubOptions
from pinnace.runtime.checks.verify import verify_bundle
from pinnace.safetensors_header import read_header
from tests.bert_oracle import text_inputs
from tests.conftest import DATA
from tests.export_oracle import assert_same, exported, reference, run, saved

HEAD = "BertForTokenClassification"


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def rename(folder: Path, change: Callable[[str], str]) -> None:
    path = folder / "model.safetensors"
    tensors = {change(name): tensor for name, tensor in load_file(path).items()}
    save_file(tensors, path, {"format": "pt"})


def sizes(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
@pytest.mark.parametrize("layout", ["flat", "hub"])
def test_half_checkpoints_are_converted(tmp_path: Path, kind: str, layout: str) -> None:
    saved(tmp_path / "fp32", HEAD).to(getattr(torch, kind)).save_pretrained(tmp_path / "half")
    theirs = transformers.BertForTokenClassification.from_pretrained(
        tmp_path / "half", dtype=torch.float32, attn_implementation="eager"
    ).eval()
    made = export(tmp_path / "half", output=tmp_path / "bundle", precision="fp16", layout=layout)
    weights = tmp_path / "bundle" / made.manifest.variants["fp32"].weights[0]
    assert {entry.dtype for entry in read_header(weights).values()} == {"F32"}
    given = text_inputs(HEAD)
    assert_same(run(made, given), reference(theirs, given))
    assert json.loads((made.path / "config.json").read_text())["dtype"] == "float32"
    if kind == "float16":  # its numbers are fp16's own, so nothing is lost on the way back
        back = load_file(made.path / made.manifest.variants["fp16"].weights[0])
        stored = load_file(tmp_path / "half" / "model.safetensors")
        assert all(torch.equal(tensor, stored[name]) for name, tensor in back.items())


def test_the_converted_file_is_a_checkpoint_too(tmp_path: Path) -> None:
    saved(tmp_path / "fp32", HEAD).to(torch.bfloat16).save_pretrained(tmp_path / "half")
    made = export(tmp_path / "half", output=tmp_path / "bundle", validate=False)
    theirs = transformers.BertForTokenClassification.from_pretrained(made.path).eval()
    given = text_inputs(HEAD)
    assert_same(run(made, given), reference(theirs, given))


def test_shards_are_copied_with_their_index(tmp_path: Path) -> None:
    theirs = saved(tmp_path / "whole", HEAD)
    theirs.save_pretrained(tmp_path / "sharded", max_shard_size="6KB")
    shards = sorted(name for name in sizes(tmp_path / "sharded") if name.startswith("model-"))
    assert len(shards) > 2
    made = export(tmp_path / "sharded", output=tmp_path / "bundle", precision="fp16")
    assert made.manifest.variants["fp32"].weights == tuple(shards)
    for name in (*shards, "model.safetensors.index.json"):
        assert (made.path / name).read_bytes() == (tmp_path / "sharded" / name).read_bytes()
    given = text_inputs(HEAD)
    assert_same(run(made, given), reference(theirs, given))
    assert verify_bundle(made.path).ok


def test_a_link_tree_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names in a snapshot, contents in blobs: as a folder, and as an id off-line."""
    theirs = saved(tmp_path / "plain", HEAD)
    revision = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "cache" / "models--someone--tiny-ner"
    snapshot = repository / "snapshots" / revision
    for folder in (repository / "blobs", repository / "refs", snapshot):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    for index, path in enumerate(sorted((tmp_path / "plain").iterdir())):
        shutil.copy(path, repository / "blobs" / f"{index:040x}")
        (snapshot / path.name).symlink_to(f"../../blobs/{index:040x}")
    by_folder = export(snapshot, output=tmp_path / "one")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    options = HubOptions(cache_dir=str(tmp_path / "cache"), local_files_only=True)
    by_id = export("someone/tiny-ner", output=tmp_path / "two", hub=options)
    assert by_folder.manifest.source.name == by_id.manifest.source.name == "someone/tiny-ner"
    assert by_id.manifest.source.revision == revision
    given = text_inputs(HEAD)
    for made in (by_folder, by_id):
        assert not any(path.is_symlink() for path in made.path.iterdir())
        assert_same(run(made, given), reference(theirs, given))


OLD_NAMES = {
    "gamma": lambda name: name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
        "LayerNorm.bias", "LayerNorm.beta"
    ),
    "bare": lambda name: name.removeprefix("bert."),
}


@pytest.mark.parametrize("kind", OLD_NAMES)
def test_old_names(tmp_path: Path, kind: str) -> None:
    theirs = saved(tmp_path / "old", HEAD)
    rename(tmp_path / "old", OLD_NAMES[kind])
    made = export(tmp_path / "old", output=tmp_path / "bundle", validate=False)
    assert made.fresh == made.unexpected == ()
    assert (made.path / "model.safetensors").read_bytes() == (tmp_path / "old" / "model.safetensors").read_bytes()
    given = text_inputs(HEAD)
    assert_same(run(made, given), reference(theirs, given))


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_a_head_prefix_and_no_pooler(tmp_path: Path, prefix: str) -> None:
    theirs = saved(tmp_path / "plain", "BertModel", add_pooling_layer=False)
    rename(tmp_path / "plain", lambda name: prefix + name)
    made = export(tmp_path / "plain", task="embed", output=tmp_path / "bundle")
    assert [spec.name for spec in made.manifest.outputs] == ["last_hidden_state"]
    given = text_inputs("BertModel")
    want = reference(theirs, given)
    assert_same(run(made, given), {"last_hidden_state": want["last_hidden_state"]})


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_a_missing_head(tmp_path: Path, kind: str) -> None:
    saved(tmp_path / "fp32", "BertModel").to(getattr(torch, kind)).save_pretrained(tmp_path / "base")
    output = tmp_path / "bundle"
    with pytest.raises(CheckpointError, match=r"(?s)classifier\.bias.*classifier\.weight.*--init-missing") as caught:
        export(tmp_path / "base", task="ner", output=output)
    assert caught.value.exit_code == 3
    assert not output.exists()
    made = export(tmp_path / "base", task="ner", output=output, init_missing=True, precision="fp16")
    assert made.fresh == ("classifier.bias", "classifier.weight")
    report = verify_bundle(output)
    assert report.ok, report
    read = {name for variant in made.manifest.variants.values() for name in variant.weights}
    assert {name for name in sizes(output) if name.endswith((".safetensors", "_data"))} == read
    loaded = export(tmp_path / "base", task="ner", output=tmp_path / "again", init_missing=True, precision="fp16")
    assert loaded.manifest.files == made.manifest.files


def test_random_weights_need_no_checkpoint(tmp_path: Path) -> None:
    small = "hidden_size=16,num_hidden_layers=1,num_attention_heads=2,intermediate_size=20,vocab_size=50"
    made = export("bert", task="qa", random_weights=True, config=small, output=tmp_path / "bundle")
    assert made.manifest.source.name == "bert (random weights)"
    assert verify_bundle(made.path).ok
    same = export("bert", task="qa", random_weights=True, config=small, output=tmp_path / "again")
    assert same.manifest.files == made.manifest.files


def test_random_weights_in_a_checkpoints_shape(tmp_path: Path) -> None:
    theirs, made = exported(tmp_path, HEAD, random_weights=True, layout="hub", validate=True)
    given = text_inputs(HEAD)
    assert abs(run(made, given)["logits"] - reference(theirs, given)["logits"]).max() > 0.01


def test_tied_words_are_stored_once(tmp_path: Path) -> None:
    theirs, made = exported(tmp_path, "BertForMaskedLM", precision="fp16", validate=True)
    fp16 = made.path / "model_fp16.onnx_data"
    words = 41 * 12 * 2
    weights = sum(2 * p.numel() for p in theirs.parameters())
    assert fp16.stat().st_size - weights < words + 8000


def test_settings_are_copied_by_an_allow_list(tmp_path: Path) -> None:
    model = tmp_path / "tiny"
    shutil.copytree(DATA / "tiny-classify", model)
    for name in ("modeling_evil.py", "pytorch_model.bin", ".env", "chat_template.py", "training_args.bin"):
        (model / name).write_text("secret")
    tokenizer = json.loads((model / "tokenizer_config.json").read_text())
    evil: dict[str, Any] = {
        "auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]},
        "name_or_path": "/home/someone/tiny",
        "special_tokens_map_file": "/etc/passwd",
        "vocab_file": "../../secret.txt",
        "tokenizer_file": "/etc/shadow",
    }
    (model / "tokenizer_config.json").write_text(json.dumps({**tokenizer, **evil}))
    config = json.loads((model / "config.json").read_text())
    extra = {"auto_map": {"AutoModel": "evil.Model"}, "_name_or_path": "/home/someone/tiny"}
    (model / "config.json").write_text(json.dumps({**config, **extra}))
    made = export(model, output=tmp_path / "bundle")
    assert not sizes(made.path) & {
        "modeling_evil.py",
        "pytorch_model.bin",
        ".env",
        "chat_template.py",
        "training_args.bin",
    }
    for path in made.path.rglob("*.json"):
        text = path.read_text()
        for word in ("evil", "/home/someone", "/etc/", "secret", "auto_map"):
            assert word not in text, f"{word} in {path.name}"


def modules(*kinds: str, **facts: Any) -> list[dict[str, Any]]:
    """The modules.json of a Transformer and others."""
    names = (f"sentence_transformers.models.{kind}" for kind in ("Transformer", *kinds))
    return [{"path": "", "type": next(names)}, *({"type": name, **facts} for name in names)]


@pytest.mark.parametrize(
    ("facts", "mode"),
    [
        ({"pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": False}, "max"),
        ({"pooling_mode": "mean"}, "mean"),
        ({"pooling_mode": ["cls"]}, "cls"),
    ],
)
def test_pooling_is_read(tmp_path: Path, facts: dict[str, Any], mode: str) -> None:
    shutil.copytree(DATA / "tiny-embed", tmp_path / "tiny")
    (tmp_path / "tiny" / "1_Pooling" / "config.json").write_text(json.dumps(facts))
    pooling = export(tmp_path / "tiny", output=tmp_path / "bundle", validate=False).manifest.pooling
    assert pooling is not None
    assert (pooling.mode, pooling.normalize) == (mode, True)


@pytest.mark.parametrize(
    ("file", "content", "word"),
    [
        ("1_Pooling/config.json", {"pooling_mode_weightedmean_tokens": True}, "weightedmean"),
        ("1_Pooling/config.json", {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, "cls"),
        ("1_Pooling/config.json", [1], "JSON object"),
        ("modules.json", [{"type": "sentence_transformers.models.Dense"}], "Dense"),
        ("modules.json", {"type": "x"}, "list of modules"),
        ("modules.json", [1], "list of modules"),
        ("modules.json", modules("Pooling"), "path of Pooling is None"),
        ("modules.json", modules("Pooling", path="../1_Pooling"), "path of Pooling is '../1_Pooling'"),
        ("modules.json", modules("Pooling", path="/1_Pooling"), "path of Pooling is '/1_Pooling'"),
        ("modules.json", modules("Pooling", path="x/1_Pooling"), "path of Pooling is 'x/1_Pooling'"),
        ("modules.json", modules("Pooling", path=""), "path of Pooling is ''"),
        ("modules.json", modules("Pooling", path=["1_Pooling"]), "path of Pooling is"),
        ("modules.json", modules("Pooling", "Pooling", path="1_Pooling"), "2 Pooling modules"),
        ("modules.json", modules("Pooling", path="2_Pooling"), "2_Pooling/config.json, which says how it pools,"),
        ("sentence_bert_config.json", {"max_seq_length": 0}, "max_seq_length is 0, expected a whole number"),
        ("sentence_bert_config.json", {"max_seq_length": -1}, "max_seq_length is -1"),
        ("sentence_bert_config.json", {"max_seq_length": "8"}, "max_seq_length is '8'"),
        ("config_sentence_transformers.json", {"default_prompt_name": "x"}, "default_prompt_name is 'x'"),
        ("config_sentence_transformers.json", {"prompts": ["query: "]}, "prompts is .* expected an object of texts"),
        ("1_Pooling/config.json", {"pooling_mode": "cls", "include_prompt": "no"}, "include_prompt is 'no'"),
    ],
)
def test_pooling_that_pinnace_does_not_have(tmp_path: Path, file: str, content: Any, word: str) -> None:
    shutil.copytree(DATA / "tiny-embed", tmp_path / "tiny")
    (tmp_path / "tiny" / file).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=word) as caught:
        export(tmp_path / "tiny", output=tmp_path / "bundle", validate=False)
    assert str(tmp_path / "bundle") not in str(caught.value)
    assert caught.value.exit_code == 3
    assert os.listdir(tmp_path) == ["tiny"]  # noqa: PTH208


@pytest.mark.parametrize("place", ["2_Pooling", "pooling"])
def test_pooling_lies_where_the_modules_say(tmp_path: Path, place: str) -> None:
    model = tmp_path / "tiny"
    shutil.copytree(DATA / "tiny-embed", model)
    (model / place).mkdir()
    (model / place / "config.json").write_text('{"word_embedding_dimension": 16, "pooling_mode_cls_token": true}')
    (model / "modules.json").write_text(json.dumps(modules("Pooling", path=place)))
    made = export(model, output=tmp_path / "bundle", validate=False)
    assert made.manifest.pooling is not None
    assert (made.manifest.pooling.mode, made.manifest.pooling.normalize) == ("cls", False)
    for name in ("modules.json", f"{place}/config.json"):  # sentence-transformers opens the bundle by them
        assert (made.path / name).read_bytes() == (model / name).read_bytes()
    assert not (made.path / "1_Pooling").exists()
    assert verify_bundle(made.path).ok


@pytest.mark.parametrize("content", [[], modules(), modules("Normalize")], ids=["empty", "alone", "normalized"])
def test_without_a_pooling_module_the_vectors_are_those_of_tokens(tmp_path: Path, content: Any) -> None:
    shutil.copytree(DATA / "tiny-embed", tmp_path / "tiny")
    (tmp_path / "tiny" / "modules.json").write_text(json.dumps(content))
    with pytest.warns(UserWarning, match="no Pooling module, so the bundle gives vectors of tokens"):
        made = export(tmp_path / "tiny", output=tmp_path / "bundle", validate=False)
    assert made.manifest.pooling is None


@pytest.mark.parametrize("task", ["embed", "mlm"])
def test_settings_of_sentences_that_are_no_object_are_named_in_the_checkpoint(tmp_path: Path, task: str) -> None:
    model = tmp_path / "tiny"
    shutil.copytree(DATA / ("tiny-embed" if task == "embed" else "tiny-mlm"), model)
    (model / "modules.json").write_text(json.dumps(modules()))
    (model / "sentence_bert_config.json").write_text("[1]")
    with pytest.raises(CheckpointError, match=re.escape(f"{model}/sentence_bert_config.json must hold a JSON object")):
        export(model, task=task, output=tmp_path / "bundle", validate=False)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "config.json"])
def test_broken_settings_are_named(tmp_path: Path, name: str) -> None:
    shutil.copytree(DATA / "tiny-classify", tmp_path / "tiny")
    (tmp_path / "tiny" / name).write_text("{broken")
    with pytest.raises(PinnaceError, match=re.escape(name)) as caught:
        export(tmp_path / "tiny", output=tmp_path / "bundle", validate=False)
    assert caught.value.exit_code == 3
