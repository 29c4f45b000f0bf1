"""Generation options: transformers' words and files, every wrong value and contradiction named."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

from pinnace.errors import BundleError, CheckpointError, InputError, UsageError
from pinnace.export.builder import export
from pinnace.publishing import file_facts
from pinnace.runtime.checks.verify import verify_bundle
from pinnace.runtime.generation.config import DEFAULT_NEW_TOKENS, GenerationConfig
from pinnace.runtime.generation.fields import FIELDS
from pinnace.spec import MANIFEST_NAME, Manifest
from tests.generation_bundles import CHECKPOINT, Opened, decoder_of, opened

__all__ = ["decoder_of", "opened"]

OURS_ALONE = {"presence_penalty", "frequency_penalty", "logit_bias", "seed"}


def written(folder: Path, **facts: Any) -> Path:
    (folder / "generation_config.json").write_text(json.dumps(facts))
    return folder


def test_the_words_are_those_of_transformers() -> None:
    names = {field.name for field in dataclasses.fields(GenerationConfig)}
    assert names == set(FIELDS)
    assert names - OURS_ALONE <= set(vars(transformers.GenerationConfig()))


def test_the_defaults_are_those_of_transformers() -> None:
    theirs = transformers.GenerationConfig._get_default_generation_params()
    ours = GenerationConfig()
    for name, value in theirs.items():
        if name in FIELDS and name != "max_length" and value is not None:
            assert getattr(ours, name) == value, name


def test_no_word_of_transformers_is_read_as_a_misspelling(tmp_path: Path) -> None:
    """Each is known: as an option, as bookkeeping, or refused by name because it changes the result."""
    for name in vars(transformers.GenerationConfig()):
        if name not in FIELDS:
            folder = written(tmp_path, **{name: None})
            assert GenerationConfig.from_folder(folder) == GenerationConfig()


def test_a_file_that_transformers_writes(tmp_path: Path) -> None:
    theirs = transformers.GenerationConfig(
        do_sample=True, temperature=0.6, top_p=0.9, eos_token_id=[2, 68], pad_token_id=3, bos_token_id=1,
        max_new_tokens=50, stop_strings=["\n\n"], bad_words_ids=[[1, 2], [3]], sequence_bias=[[[4, 5], 1.5]],
        early_stopping="never", num_beams=2,
    )  # fmt: skip
    theirs.save_pretrained(tmp_path)
    ours = GenerationConfig.from_folder(tmp_path)
    assert (ours.do_sample, ours.temperature, ours.top_p) == (True, 0.6, 0.9)
    assert ours.eos_token_id == (2, 68)
    assert ours.stop_strings == ("\n\n",)
    assert ours.bad_words_ids == ((1, 2), (3,))
    assert ours.sequence_bias == (((4, 5), 1.5),)
    assert ours.early_stopping == "never"


def test_one_end_token_or_many(tmp_path: Path) -> None:
    assert GenerationConfig.from_folder(written(tmp_path, eos_token_id=2)).eos_token_id == (2,)
    assert GenerationConfig().merged(eos_token_id=np.array([2, 3, 2])).eos_token_id == (2, 3)
    assert GenerationConfig(eos_token_id=(2,)).merged(eos_token_id=[]).eos_token_id == ()


def test_no_file_gives_the_defaults(tmp_path: Path) -> None:
    assert GenerationConfig.from_folder(tmp_path) == GenerationConfig()


def test_without_a_file_a_row_ends_as_the_model_says(tmp_path: Path) -> None:
    tokens = {"bos_token_id": None, "eos_token_id": [2, 68], "pad_token_id": 3}
    (tmp_path / "config.json").write_text(json.dumps({**tokens, "hidden_size": 8, "max_length": 20}))
    assert GenerationConfig.from_folder(tmp_path) == GenerationConfig(eos_token_id=(2, 68), pad_token_id=3)
    assert GenerationConfig.from_folder(written(tmp_path, top_p=0.5)) == GenerationConfig(top_p=0.5)


def test_a_file_may_say_what_has_no_effect(tmp_path: Path) -> None:
    facts = {"temperature": 0.0, "top_p": 5, "top_k": -1, "early_stopping": True, "renormalize_logits": False}
    config = GenerationConfig.from_folder(written(tmp_path, chat_format="x", **facts))
    assert config.merged(do_sample=False).temperature == 0 and config.top_k == -1
    with pytest.raises(UsageError, match="temperature"):
        config.merged(do_sample=True)


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        ({"penalty_alpha": 0.6}, "penalty_alpha is '0.6', which changes the result"),
        ({"guidance_scale": 1.5}, "guidance_scale"),
        ({"exponential_decay_length_penalty": [5, 1.1]}, "exponential_decay_length_penalty"),
        ({"epsilon_cutoff": 3e-4}, "epsilon_cutoff"),
        ({"force_words_ids": [[1]]}, "force_words_ids"),
        ({"temprature": 0.5}, "Did you mean 'temperature'"),
        ({"do_sample": 1}, "do_sample: got '1', expected true or false"),
        ({"do_sample": True, "temperature": 0}, "temperature: got 0"),
        ({"top_k": 0.5}, "top_k"),
        ({"num_beams": 2.5}, "num_beams"),
        ({"num_beams": 3, "num_return_sequences": 4}, "at most num_beams"),
        ({"eos_token_id": "2"}, "eos_token_id"),
        ({"eos_token_id": [-1]}, "eos_token_id"),
    ],
)
def test_a_file_that_cannot_be_followed(tmp_path: Path, facts: dict[str, Any], text: str) -> None:
    with pytest.raises(BundleError, match=f"(?s){text}.*the checkpoint's generation_config.json, and export again"):
        GenerationConfig.from_folder(written(tmp_path, **facts))


@pytest.mark.parametrize("content", ["{", "[1]", "[" * 100_000, '{"a": ' + "1" * 2_000_000 + "}", "\xff"])
def test_a_file_that_is_no_small_object(tmp_path: Path, content: str) -> None:
    (tmp_path / "generation_config.json").write_text(content, encoding="latin-1")
    with pytest.raises(BundleError, match=r"generation_config\.json"):
        GenerationConfig.from_folder(tmp_path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    for name in ("generation_config.json", "config.json"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(BundleError, match=f"{name} is not a regular file"):
            GenerationConfig.from_folder(tmp_path)
        (tmp_path / name).unlink()


@pytest.mark.parametrize("facts", [{"epsilon_cutoff": 0.1}, {"do_sample": True, "temperature": 0}])
def test_a_checkpoints_file_is_read_before_it_is_exported(facts: dict[str, Any], tmp_path: Path) -> None:
    checkpoint = shutil.copytree(CHECKPOINT, tmp_path / "checkpoint")
    written(checkpoint, **facts)
    told: list[str] = []
    with pytest.raises(CheckpointError, match=f"{checkpoint}.*generation_config.json: .*{list(facts)[-1]}"):
        export(checkpoint, task="generate", output=tmp_path / "bundle", progress=told.append)
    assert not (tmp_path / "bundle").exists() and not any("tracing" in line for line in told)


def test_verify_reads_the_file_of_a_bundle(opened: Opened, tmp_path: Path) -> None:
    bundle = shutil.copytree(opened.make("ort"), tmp_path / "bundle")
    assert [check.detail for check in verify_bundle(bundle).checks if check.name == "generation"] == [
        "generation_config.json can be followed"
    ]
    written(bundle, epsilon_cutoff=0.1)  # as a bundle of an older release has it, whose manifest fits
    manifest = Manifest.from_json((bundle / MANIFEST_NAME).read_text("utf-8"))
    (bundle / MANIFEST_NAME).unlink()
    (bundle / MANIFEST_NAME).write_text(dataclasses.replace(manifest, files=file_facts(bundle)).to_json(), "utf-8")
    report = verify_bundle(bundle)
    assert report.exit_code == 3 and [check.name for check in report.checks if not check.ok] == ["generation"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"suppress_tokens": {1, "a"}}, "suppress_tokens: got .*expected a token id or a list"),
        ({"stop_strings": {1, "a"}}, "stop_strings: got .*expected a string or a list"),
        ({"early_stopping": np.array([1, 2])}, "early_stopping: got .*expected True, False or 'never'"),
        ({"temprature": 1.0}, "Did you mean 'temperature'"),
        ({"force_words_ids": [[1]]}, "Pinnace does not have force_words_ids"),
        ({"guidance_scale": 1.5}, "Pinnace does not have guidance_scale"),
        ({"use_cache": True}, "use_cache changes nothing here; leave it out"),
        ({"max_new_tokens": 0}, "max_new_tokens: got '0', expected a whole number from 1"),
        ({"max_new_tokens": 2**63}, "max_new_tokens"),
        ({"max_new_tokens": True}, "max_new_tokens"),
        ({"num_beams": 10**9}, "num_beams: got '1000000000', expected a whole number from 1 to 1024"),
        ({"do_sample": True, "temperature": 0}, "pass do_sample=False"),
        ({"do_sample": True, "temperature": math.nan}, "temperature"),
        ({"do_sample": True, "top_p": 0}, "above 0 and at most 1"),
        ({"do_sample": True, "top_p": 1.2}, "top_p: got 1.2"),
        ({"do_sample": True, "min_p": -0.1}, "min_p"),
        ({"do_sample": True, "min_p": 10**400}, "min_p"),
        ({"do_sample": True, "typical_p": 0}, "typical_p"),
        ({"do_sample": True, "top_k": -1}, "top_k: got -1, expected a number of at least 0"),
        ({"top_k": -1}, "top_k has no effect"),
        ({"temperature": 0.5}, "temperature has no effect without sampling"),
        ({"do_sample": False, "top_k": 5}, "top_k has no effect"),
        ({"seed": 0}, "seed has no effect without sampling"),
        ({"early_stopping": True}, "early_stopping has no effect without beams"),
        ({"length_penalty": 2.0}, "length_penalty has no effect without beams"),
        ({"num_beams": 2, "early_stopping": "sometimes"}, "True, False or 'never'"),
        ({"num_beams": 4, "num_beam_groups": 3, "diversity_penalty": 1.0}, "multiple of num_beam_groups"),
        ({"num_beams": 4, "num_beam_groups": 2}, "needs a diversity_penalty"),
        ({"num_beams": 4, "diversity_penalty": 1.0}, "needs num_beam_groups"),
        ({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0, "do_sample": True}, "without do_sample"),
        ({"num_beams": 2, "num_return_sequences": 3}, "at most num_beams"),
        ({"num_return_sequences": 3}, "needs do_sample=True or num_beams"),
        ({"min_new_tokens": 5, "max_new_tokens": 4}, "min_new_tokens is above max_new_tokens"),
        ({"min_length": 5, "max_length": 4}, "min_length is above max_length"),
        ({"max_length": 5, "max_new_tokens": 4}, "say the same: pass one"),
        ({"prompt_lookup_num_tokens": 4, "do_sample": True}, "gives the greedy result"),
        ({"prompt_lookup_num_tokens": 4, "num_beams": 2}, "gives the greedy result"),
        ({"forced_eos_token_id": 3, "suppress_tokens": [3]}, "forces tokens that suppress_tokens forbids"),
        ({"do_sample": True, "temperature": 1e-40}, "at least 0.00001"),
        ({"repetition_penalty": 0}, "from 0.001 to 1000"),
        ({"frequency_penalty": 1e300}, "frequency_penalty"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"3": math.inf}}, "logit_bias"),
        ({"sequence_bias": {(): 1.0}}, "sequence_bias"),
        ({"bad_words_ids": [[]]}, "bad_words_ids"),
        ({"bad_words_ids": [1]}, "bad_words_ids"),
        ({"stop_strings": [""]}, "stop_strings"),
        ({"stop_strings": ["x"] * 65}, "at most 64"),
        ({"stop_strings": "x" * 1025}, "1 to 1024 characters"),
        ({"max_time": 0}, "max_time"),
        ({"seed": -1}, "seed"),
    ],
)
def test_wrong_values_and_contradictions(options: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        GenerationConfig().merged(**options)


def test_a_later_length_replaces_an_earlier_one() -> None:
    config = GenerationConfig(max_length=20, min_length=3)
    assert config.merged(max_new_tokens=5).max_length is None
    assert config.merged(max_new_tokens=5).merged(max_length=9).max_new_tokens is None
    assert config.merged(min_new_tokens=2).min_length == 0


def test_none_goes_back_to_the_default() -> None:
    config = GenerationConfig(top_k=3, do_sample=True, temperature=0.5)
    assert config.merged(temperature=None) == GenerationConfig(do_sample=True, top_k=3)
    # In a call of transformers, None is no filter.
    assert config.merged(top_k=None).top_k == 0


def test_forms_of_biases() -> None:
    assert GenerationConfig().merged(logit_bias={"5": -100, 6: 1}).logit_bias == ((5, -100.0), (6, 1.0))
    assert GenerationConfig().merged(sequence_bias={(1, 2): -math.inf}).sequence_bias == (((1, 2), -math.inf),)


def test_how_long_a_row_may_get() -> None:
    assert GenerationConfig().length_limit(10) == 10 + DEFAULT_NEW_TOKENS
    assert GenerationConfig(max_new_tokens=5).length_limit(10) == 15
    assert GenerationConfig(max_new_tokens=5).new_tokens(10, capacity=12) == 2
    assert GenerationConfig(max_length=20).new_tokens(12) == 8
    with pytest.raises(InputError, match=r"(?s)20 in all.*raise max_length"):
        GenerationConfig(max_length=20).length_limit(20)
    with pytest.raises(InputError, match=r"(?s)the model takes 64 in all: no room.*Shorten the prompt\.$"):
        GenerationConfig().new_tokens(64, capacity=64)


def test_a_config_is_a_value() -> None:
    config = GenerationConfig(stop_strings=("a",), eos_token_id=(1,))
    assert pickle.loads(pickle.dumps(config)) == config  # noqa: S301 - our own bytes
    assert hash(config) == hash(config.merged())
