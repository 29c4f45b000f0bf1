"""What ``genai_config.json`` says of a decoder's bundle is what the bundle is; `interop_genai.py` runs it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pinnace.errors import BundleError
from pinnace.export.builder import export
from pinnace.export.genai import GENAI_NAME, genai_config, write_genai_config
from pinnace.runtime.generation.config import GenerationConfig
from pinnace.spec import Manifest
from tests.generation_bundles import CHECKPOINT, Opened, decoder_of, opened

__all__ = ["decoder_of", "opened"]


def facts_of(folder: Path) -> tuple[dict[str, Any], Manifest]:
    text = (folder / GENAI_NAME).read_text("utf-8")
    return json.loads(text), Manifest.from_json((folder / "manifest.json").read_text("utf-8"))


@pytest.mark.parametrize("name", ["ort", "onnx", "apertus-ort", "apertus-onnx"])
def test_its_names_are_the_graphs(name: str, opened: Opened) -> None:
    folder = opened.make(name)
    facts, manifest = facts_of(folder)
    decoder = facts["model"]["decoder"]
    assert (folder / decoder["filename"]).is_file() and GENAI_NAME in manifest.files
    layers = range(decoder["num_hidden_layers"])
    for said, specs in ((decoder["inputs"], manifest.inputs), (decoder["outputs"], manifest.outputs)):
        names = {text % i if "%d" in text else text for text in said.values() for i in layers}
        assert names == {spec.name for spec in specs}
    past = next(spec for spec in manifest.inputs if spec.name == decoder["inputs"]["past_key_names"] % 0)
    assert past.shape == ("batch", decoder["num_key_value_heads"], "past_sequence", decoder["head_size"])
    assert facts["search"]["past_present_share_buffer"] is name.endswith("ort")
    assert facts["model"]["context_length"] == facts["search"]["max_length"] == manifest.limits.sequence
    assert facts["model"]["vocab_size"] == manifest.limits.vocabulary


def test_ids_and_search_are_those_of_the_checkpoint(opened: Opened) -> None:
    facts, _ = facts_of(opened.make("apertus-ort"))
    assert [facts["model"][f"{name}_token_id"] for name in ("bos", "eos", "pad")] == [1, 2, 3]
    assert [facts["model"]["decoder"][f"num_{name}_heads"] for name in ("attention", "key_value")] == [8, 2]
    assert facts["search"]["do_sample"] is False and facts["search"]["num_beams"] == 1


def test_generation_config_goes_before_the_models(opened: Opened) -> None:
    _, manifest = facts_of(opened.make("apertus-ort"))
    sizes = {"hidden_size": 8, "num_attention_heads": 2}
    config = SimpleNamespace(**sizes, bos_token_id=4, eos_token_id=[5, 6], pad_token_id=None)
    given = GenerationConfig(eos_token_id=(7,), do_sample=True, top_p=0.5, temperature=0.7, max_length=30)
    facts = genai_config(manifest, config, given)
    assert facts["model"]["eos_token_id"] == facts["model"]["pad_token_id"] == 7 and facts["model"]["bos_token_id"] == 4
    assert {name: facts["search"][name] for name in ("do_sample", "top_p", "temperature", "max_length")} == {
        "do_sample": True, "top_p": 0.5, "temperature": 0.7, "max_length": 30,
    }  # fmt: skip
    several = genai_config(manifest, config, GenerationConfig())["model"]
    assert several["eos_token_id"] == [5, 6] and several["pad_token_id"] == 5


def test_a_long_context_is_not_allocated_by_default(opened: Opened) -> None:
    folder = opened.make("apertus-ort")
    _, manifest = facts_of(folder)
    assert manifest.cache is not None
    manifest = dataclasses.replace(manifest, cache=dataclasses.replace(manifest.cache, capacity=65536))
    config = SimpleNamespace(hidden_size=8, num_attention_heads=2, bos_token_id=1, eos_token_id=2, pad_token_id=3)
    facts = genai_config(manifest, config, GenerationConfig())
    assert facts["model"]["context_length"] == 65536 and facts["search"]["max_length"] == 4096


def test_who_gets_none(opened: Opened, tmp_path: Path) -> None:
    fixed = {"batch": 1, "sequence": 1, "past_sequence": 7}
    export(CHECKPOINT, task="generate", target="onnx", static=fixed, output=tmp_path / "fixed", validate=False)
    assert not (tmp_path / "fixed" / GENAI_NAME).exists()
    _, manifest = facts_of(opened.make("ort"))
    config = SimpleNamespace(hidden_size=8, num_attention_heads=2, bos_token_id=1, eos_token_id=2, pad_token_id=3)
    assert not write_genai_config(tmp_path, dataclasses.replace(manifest, cache=None), config)
    (tmp_path / "generation_config.json").write_text('{"guidance_scale": 2.5}')
    with pytest.raises(BundleError, match="guidance_scale"):
        write_genai_config(tmp_path, manifest, config)
    assert not (tmp_path / GENAI_NAME).exists()


def test_hub_layout_names_the_graph_in_its_folder(tmp_path: Path) -> None:
    export(CHECKPOINT, task="generate", layout="hub", output=tmp_path / "hub", validate=False)
    facts, _ = facts_of(tmp_path / "hub")
    assert facts["model"]["decoder"]["filename"] == "onnx/model.onnx"
