"""Apertus 1.5 as text: its language model is taken out of the checkpoint, and held to transformers' Apertus."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pinnace.errors import ConfigError, InputError
from pinnace.export.builder import export
from pinnace.models.auto_config import AutoConfig
from pinnace.models.checkpoints.checkpoint import INDEX_NAME
from pinnace.models.configs.apertus import ApertusConfig
from pinnace.runtime.bundles.bundle import Bundle
from pinnace.runtime.engine.session import Session
from pinnace.runtime.generation.config import GenerationConfig
from pinnace.runtime.generation.generator import Generator
from tests.apertus_oracle import ROTARY, SMALL, pair
from tests.export_oracle import run
from tests.test_apertus_export import empty_past

READ, WRITTEN = 61, 41
# What swiss-ai/Apertus-v1.5-8B says beside its text_config, the two other models cut short.
BESIDE: dict[str, Any] = {
    "architectures": ["Apertus1p5ForConditionalGeneration"],
    "model_type": "apertus1p5",
    "image_token_id": 45,
    "audio_token_id": 46,
    "image_token_offset": 48,
    "audio_token_offset": 56,
    "audio_tokenizer_config": {"model_type": "wavtokenizer", "dtype": "float32"},
    "vision_tokenizer_config": {"model_type": "apertus1p5_vision_tokenizer", "codebook_size": 8},
    "dtype": "bfloat16",
    "tie_word_embeddings": False,
    "transformers_version": "5.13.0",
}
OTHERS = {
    "model.vision_tokenizer.encoder.conv_in.weight": torch.zeros(4, 3, 3, 3),
    "model.audio_tokenizer.head.linear.bias": torch.zeros(4),
}


def text_config(**changes: Any) -> dict[str, Any]:
    small = {**SMALL, "vocab_size": READ, "output_vocab_size": WRITTEN, "rope_parameters": ROTARY["llama3"]}
    return {"model_type": "apertus1p5_text", "post_norm": False, "qk_norm": True, "mlp_bias": False, **small, **changes}


def laid_out(folder: Path, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """Lay out a checkpoint as Apertus 1.5 is published; returns transformers' Apertus with the same weights."""
    torch.manual_seed(5)
    theirs, _ = pair("ApertusForCausalLM", vocab_size=READ, rope_parameters=dict(ROTARY["llama3"]))
    theirs.lm_head = torch.nn.Linear(SMALL["hidden_size"], WRITTEN, bias=False)
    stored = {name: tensor.to(dtype, copy=True) for name, tensor in theirs.state_dict().items()}
    theirs.load_state_dict(stored)  # rounded as they are stored
    language = {name.replace("model.", "model.language_model.", 1): tensor for name, tensor in stored.items()}
    folder.mkdir()
    files = {
        "model-apertus-model-00001-of-00001.safetensors": language,
        "model-vision_tokenizer-model.safetensors": OTHERS,
    }
    for file, tensors in files.items():
        save_file(tensors, folder / file)
    index = {name: file for file, tensors in files.items() for name in tensors}
    (folder / INDEX_NAME).write_text(json.dumps({"metadata": {}, "weight_map": index}), "utf-8")
    (folder / "config.json").write_text(json.dumps({**BESIDE, "text_config": text_config(**changes)}), "utf-8")
    return theirs


@pytest.mark.parametrize("target", ["ort", "onnx"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_language_model_gives_transformers_numbers(dtype: torch.dtype, target: str, tmp_path: Path) -> None:
    theirs = laid_out(tmp_path / "checkpoint", dtype)
    made = export(tmp_path / "checkpoint", output=tmp_path / "bundle", target=target)
    assert made.manifest.task == "text-generation"
    assert made.manifest.head == "ApertusForCausalLM"
    assert set(made.unexpected) == set(OTHERS)
    assert made.certificate["variants"]["fp32"]["verdict"] == "passed"
    # Codes of images and sounds are read, and no score is given for them.
    ids = np.array([[5, 48, READ - 1, 7, 60, WRITTEN, 9]])
    assert made.manifest.limits.vocabulary == READ
    assert made.manifest.outputs[0].shape[-1] == WRITTEN
    places = np.arange(ids.shape[1])[None]
    given = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": places}
    got = run(made, {**given, **empty_past(made, 1)})
    with torch.inference_mode():
        want = theirs(torch.from_numpy(ids)).logits
    np.testing.assert_allclose(got["logits"][:, 0], want[:, -1], rtol=0, atol=2e-5)


def test_it_generates_text_and_refuses_what_it_cannot_read(tmp_path: Path) -> None:
    theirs = laid_out(tmp_path / "checkpoint", torch.bfloat16)
    made = export(tmp_path / "checkpoint", output=tmp_path / "bundle", validate=False)
    generator = Generator(Session(Bundle.open(made.path)), config=GenerationConfig(max_new_tokens=12))
    prompt = [5, 48, 60, 7]
    with torch.inference_mode():
        ids = torch.tensor([prompt])
        for _ in range(12):
            ids = torch.cat([ids, theirs(ids).logits[:, -1:].argmax(-1)], 1)
    assert generator.generate([prompt])[0][0].ids.tolist() == ids[0, len(prompt) :].tolist()
    with pytest.raises(InputError, match=f"has the id {READ} at 1; expected 0 to {READ - 1}"):
        generator.generate([[5, READ]])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_bundle_of_it_is_a_checkpoint_again(dtype: torch.dtype, tmp_path: Path) -> None:
    laid_out(tmp_path / "checkpoint", dtype)
    first = export(tmp_path / "checkpoint", output=tmp_path / "first", validate=False)
    weights = first.manifest.variants["fp32"].weights
    assert len(weights) == 1
    assert not any("vision" in name for name in load_file(first.path / weights[0]))
    written = json.loads((first.path / "config.json").read_text("utf-8"))
    assert (written["model_type"], written["output_vocab_size"]) == ("apertus", WRITTEN)
    assert not any(name.startswith(("image", "audio", "vision", "text")) for name in written)
    assert not (first.path / INDEX_NAME).exists()
    if weights[0] == "model.safetensors":
        again = export(first.path, task="generate", output=tmp_path / "again", validate=False)
        assert again.manifest.files["model.onnx"].sha256 == first.manifest.files["model.onnx"].sha256


def test_the_configuration_is_read_by_any_of_its_names(tmp_path: Path) -> None:
    whole = {**BESIDE, "text_config": text_config()}
    (tmp_path / "config.json").write_text(json.dumps(whole), "utf-8")
    ours = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(ours, ApertusConfig)
    assert (ours.vocab_size, ours.output_vocab_size) == (READ, WRITTEN)
    assert ours.architectures == ["ApertusForCausalLM"]
    assert ApertusConfig.from_pretrained(tmp_path).to_diff_dict() == ours.to_diff_dict()
    alone = ApertusConfig(**text_config(architectures=["Apertus1p5TextForCausalLM"], dtype="bfloat16"))
    assert {**alone.to_diff_dict(), "transformers_version": "5.13.0"} == ours.to_diff_dict()
    inner = text_config(model_type="apertus", output_vocab_size=None)
    tied = {**BESIDE, "text_config": inner, "tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps(tied), "utf-8")
    ours = ApertusConfig.from_pretrained(tmp_path)
    assert (ours.tie_word_embeddings, ours.architectures) == (True, ["ApertusForCausalLM"])
    assert AutoConfig.from_pretrained(tmp_path).to_diff_dict() == ours.to_diff_dict()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"text_config": None}, "'apertus1p5' .*, whose language model stands in text_config: got 'NoneType'"),
        ({"text_config": {"model_type": "llama"}}, "got 'llama' there, expected a model_type of 'apertus1p5_text'"),
        ({"text_config": text_config(output_vocab_size=62)}, "output_vocab_size is 62, expected at most vocab_size"),
        ({"tie_word_embeddings": True}, "output_vocab_size is 41 and vocab_size 61, so that tie_word_embeddings"),
        ({"text_config": text_config(new_part=1)}, "unknown key 'new_part'"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
    ],
)  # fmt: skip
def test_what_is_not_such_a_configuration_is_named(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        AutoConfig.for_model(**{**BESIDE, "text_config": text_config(), **changes})


def test_an_embedding_with_more_rows_than_the_configuration_says_is_explained(tmp_path: Path) -> None:
    laid_out(tmp_path / "checkpoint", vocab_size=WRITTEN, output_vocab_size=None)
    with pytest.raises(Exception, match=r"they fit where config\.json says: vocab_size is 61") as caught:
        export(tmp_path / "checkpoint", output=tmp_path / "bundle")
    assert getattr(caught.value, "exit_code", None) == 3
