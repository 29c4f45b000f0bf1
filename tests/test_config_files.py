"""Configurations in files: real ones of several ages, damaged ones, and what is written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import transformers

from pinnace.errors import ConfigError, MachineError, UsageError
from pinnace.models.auto_config import AutoConfig
from pinnace.models.configs.bert import BertConfig
from pinnace.models.configs.config import PreTrainedConfig

DATA = Path(__file__).parent / "data"
FOLDERS = sorted(path.parent for path in DATA.glob("*/config.json") if '"bert"' in path.read_text(encoding="utf-8"))

# Written by hand after the key sets of transformers 2, 4 and 5, Google's multilingual files and sentence-transformers.
CORE: dict[str, Any] = {
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 48,
    "initializer_range": 0.02,
    "intermediate_size": 96,
    "max_position_embeddings": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "type_vocab_size": 2,
    "vocab_size": 100,
}
DIALECTS: dict[str, dict[str, Any]] = {
    "2018": CORE,
    "v2": CORE
    | {
        "finetuning_task": None,
        "is_decoder": False,
        "num_labels": 9,
        "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
        "label2id": {"LABEL_0": 0, "LABEL_1": 1},
        "output_attentions": False,
        "output_hidden_states": False,
        "output_past": True,
        "pruned_heads": {},
        "torchscript": False,
        "use_bfloat16": False,
        "do_sample": False,
        "eos_token_ids": 0,
        "max_length": 20,
        "num_beams": 1,
        "repetition_penalty": 1.0,
        "temperature": 1.0,
        "top_k": 50,
        "top_p": 1.0,
    },
    "multilingual": CORE
    | {
        "model_type": "bert",
        "architectures": ["BertForMaskedLM"],
        "directionality": "bidi",
        "pooler_fc_size": 768,
        "pooler_num_attention_heads": 12,
        "pooler_num_fc_layers": 3,
        "pooler_size_per_head": 128,
        "pooler_type": "first_token_transform",
        "pad_token_id": 0,
        "layer_norm_eps": 1e-12,
    },
    "tinybert": CORE
    | {
        "model_type": "bert",
        "cell": {},
        "emb_size": 312,
        "pre_trained": "",
        "structure": [],
        "training": "",
        "license": "mit",
        "ner_labels": ["O"],
    },
    "v4": CORE
    | {
        "_name_or_path": "someone/base",
        "architectures": ["BertForSequenceClassification"],
        "classifier_dropout": None,
        "gradient_checkpointing": False,
        "id2label": {"0": "no", "1": "yes", "2": "maybe"},
        "label2id": {"no": 0, "yes": 1, "maybe": 2},
        "layer_norm_eps": 1e-12,
        "model_type": "bert",
        "pad_token_id": 0,
        "position_embedding_type": "absolute",
        "problem_type": "single_label_classification",
        "sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity",
        "torch_dtype": "float32",
        "transformers_version": "4.30.2",
        "use_cache": True,
    },
    # every key that transformers 4.57 knows: its BertConfig(...).to_dict()
    "v4 in full": json.loads((DATA / "bert_config.transformers-4.57.json").read_text(encoding="utf-8")),
    "v5": CORE
    | {
        "add_cross_attention": False,
        "architectures": ["BertModel"],
        "bos_token_id": None,
        "dtype": "bfloat16",
        "eos_token_id": None,
        "is_decoder": False,
        "model_type": "bert",
        "sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid", "version": "5.1"},
        "tie_word_embeddings": True,
        "transformers_version": "5.23.0",
    },
}


def written(folder: Path, text: str | bytes, name: str = "config.json") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def unstamped(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != "transformers_version"}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_reads_like_in_transformers(dialect: str, tmp_path: Path) -> None:
    written(tmp_path, json.dumps(DIALECTS[dialect]))
    config = BertConfig.from_pretrained(tmp_path)
    oracle = transformers.BertConfig.from_pretrained(tmp_path)
    assert unstamped(config.to_dict()) == unstamped(oracle.to_dict())
    assert config.transformers_version == DIALECTS[dialect].get("transformers_version")


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_tracked_checkpoints_read_like_in_transformers(folder: Path) -> None:
    config = BertConfig.from_pretrained(folder)
    assert unstamped(config.to_dict()) == unstamped(transformers.BertConfig.from_pretrained(folder).to_dict())
    auto = AutoConfig.from_pretrained(folder)
    assert isinstance(auto, BertConfig)
    assert auto.name_or_path == str(folder)


def test_the_tracked_checkpoints_are_there() -> None:
    assert FOLDERS


@pytest.mark.parametrize("use_diff", [True, False])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_what_is_written_is_read_again(dialect: str, use_diff: bool, tmp_path: Path) -> None:
    config = BertConfig(**DIALECTS[dialect])
    config.to_json_file(tmp_path / "any name.json", use_diff=use_diff)
    reread = BertConfig.from_json_file(tmp_path / "any name.json")
    reread.name_or_path = config.name_or_path
    assert reread == config
    assert [path.name for path in tmp_path.iterdir()] == ["any name.json"]


def test_save_makes_the_folder_and_the_same_bytes(tmp_path: Path) -> None:
    config = BertConfig(**DIALECTS["v4"])
    for name in ("a", "b"):
        config.save_pretrained(tmp_path / "deep" / name)
    first, second = (tmp_path / "deep" / name / "config.json" for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()
    assert transformers.BertConfig.from_pretrained(first.parent).num_labels == 3
    assert first.stat().st_mode & 0o777 == 0o666 & ~_umask()


def test_save_refuses_what_cannot_be(tmp_path: Path) -> None:
    file = written(tmp_path, "{}")
    with pytest.raises(UsageError, match="is a file"):
        BertConfig().save_pretrained(file)
    with pytest.raises(UsageError, match="push_to_hub"):
        BertConfig().save_pretrained(tmp_path, repo_id="x/y")
    with pytest.raises(MachineError, match="cannot make"):
        BertConfig().save_pretrained(file / "inside")
    with pytest.raises(MachineError, match="cannot write"):
        BertConfig().to_json_file(tmp_path / "no such folder" / "config.json")
    config = BertConfig()
    config.hidden_size = 25
    with pytest.raises(ConfigError, match="num_attention_heads"):
        config.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    BertConfig().save_pretrained(tmp_path)
    before = (tmp_path / "config.json").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MachineError, match="No space left"):
        BertConfig(num_labels=7).save_pretrained(tmp_path)
    assert (tmp_path / "config.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_file_a_subfolder_and_replaced_keys(tmp_path: Path) -> None:
    file = written(tmp_path / "inner", json.dumps(DIALECTS["v5"]))
    assert BertConfig.from_pretrained(file) == BertConfig.from_pretrained(tmp_path, subfolder="inner")
    config, unused = BertConfig.from_pretrained(
        str(file), output_attentions=True, num_labels=5, torch_dtype="float16", foo=False, return_unused_kwargs=True
    )
    assert (config.output_attentions, config.num_labels, config.dtype) == (True, 5, "float16")
    assert unused == {"foo": False}
    assert isinstance(BertConfig.from_pretrained(file, foo=False), BertConfig)
    values, rest = BertConfig.get_config_dict(file, revision="x", proxies={}, other=1)
    assert (values, rest) == (DIALECTS["v5"], {"other": 1})


def test_a_part_of_a_composite_file(tmp_path: Path) -> None:
    part = DIALECTS["v5"]
    written(tmp_path, json.dumps({"model_type": "clip_like", "text": part, "vision": {"model_type": "vit"}}))
    assert BertConfig.from_pretrained(tmp_path) == BertConfig(**part)


def test_remote_code_is_never_an_option(tmp_path: Path) -> None:
    written(tmp_path, json.dumps(CORE))
    with pytest.raises(UsageError, match="trust_remote_code"):
        BertConfig.from_pretrained(tmp_path, trust_remote_code=True)
    assert BertConfig.from_pretrained(tmp_path, trust_remote_code=False).hidden_size == 48


def test_auto_config_needs_a_known_model_type(tmp_path: Path) -> None:
    written(tmp_path, json.dumps(CORE))
    with pytest.raises(ConfigError, match="model_type is missing"):
        AutoConfig.from_pretrained(tmp_path)
    written(tmp_path, json.dumps(CORE | {"model_type": "barth"}))
    with pytest.raises(ConfigError, match=r"barth[\s\S]*Did you mean 'bert'"):
        AutoConfig.from_pretrained(tmp_path)
    written(tmp_path, json.dumps(DIALECTS["v4"]))
    config, unused = AutoConfig.from_pretrained(tmp_path, foo=1, hidden_size=8, return_unused_kwargs=True)
    assert isinstance(config, BertConfig)
    assert (config.hidden_size, unused) == (8, {"foo": 1})


def test_the_base_class_reads_the_common_keys() -> None:
    config = PreTrainedConfig(num_labels=3, name_or_path=Path("x"))
    assert (config.num_labels, config.name_or_path, config.model_type) == (3, "x", "")
    assert unstamped(PreTrainedConfig().to_dict()) == unstamped(transformers.PreTrainedConfig().to_dict())
    with pytest.raises(ConfigError, match=r"unknown key.*AutoConfig"):
        PreTrainedConfig.from_pretrained(FOLDERS[0])


def _umask() -> int:
    current = os.umask(0o022)
    os.umask(current)
    return current
