"""ApertusConfig: both dialects of rotary positions, the shipped shapes, and keys that are refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from pinnace.errors import ConfigError
from pinnace.models.auto_config import AutoConfig
from pinnace.models.configs.apertus import ApertusConfig
from tests.apertus_oracle import ROTARY

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def test_defaults_are_those_of_transformers() -> None:
    theirs, ours = transformers.ApertusConfig(), ApertusConfig()
    documented = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps",
        "use_cache", "pad_token_id", "bos_token_id", "eos_token_id", "tie_word_embeddings", "rope_parameters",
        "attention_bias", "attention_dropout",
    )  # fmt: skip
    assert {name: getattr(ours, name) for name in documented} == {name: getattr(theirs, name) for name in documented}


@pytest.mark.parametrize("word", ["type", "rope_type", "both"])
def test_the_older_dialect_means_the_same(word: str) -> None:
    words = {"type": "llama3", "rope_type": "llama3"} if word == "both" else {word: "llama3"}
    older = ApertusConfig(rope_theta=5e5, rope_scaling={**words, **LLAMA3})
    assert older == ApertusConfig(rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3})
    theirs = transformers.ApertusConfig(rope_theta=5e5, rope_scaling={**words, **LLAMA3})
    assert {k: v for k, v in theirs.rope_parameters.items() if k != "type"} == older.rope_parameters
    assert "rope_scaling" not in older.to_dict()
    assert "rope_theta" not in older.to_dict()


def test_no_scaling_in_the_older_dialect_is_plain_rotary() -> None:
    assert ApertusConfig(rope_theta=1e4, rope_scaling=None).rope_parameters == {
        "rope_type": "default", "rope_theta": 1e4,
    }  # fmt: skip
    # A theta without a word on scaling keeps the architecture's own scaling.
    assert ApertusConfig(rope_theta=1e4).rope_parameters == {"rope_type": "llama3", "rope_theta": 1e4, **LLAMA3}


@pytest.mark.parametrize("kind", ROTARY)
def test_every_type_is_kept_and_written_for_transformers(kind: str, tmp_path: Path) -> None:
    ours = ApertusConfig(rope_parameters=dict(ROTARY[kind]))
    ours.save_pretrained(tmp_path)
    assert ApertusConfig.from_pretrained(tmp_path).rope_parameters == ROTARY[kind]
    assert transformers.ApertusConfig.from_pretrained(tmp_path).rope_parameters == ROTARY[kind]


def test_the_first_training_was_as_long_as_the_rows_where_nothing_else_is_said() -> None:
    short = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
    config = ApertusConfig(max_position_embeddings=128, rope_parameters=short)
    theirs = transformers.ApertusConfig(max_position_embeddings=128, rope_parameters=dict(short))
    assert config.rope_parameters == theirs.rope_parameters
    assert config.rope_parameters["original_max_position_embeddings"] == 128


@pytest.mark.parametrize(
    ("rope", "text"),
    [
        ({"rope_type": "lama3", "rope_theta": 1e4}, r"'lama3'.*one of default, linear.*did you mean 'llama3'"),
        ({"rope_type": "longrope", "rope_theta": 1e4}, "'longrope'.*one of default"),
        ({"rope_type": "linear", "rope_theta": 1e4}, "'linear' lack factor"),
        ({"rope_type": "llama3", "rope_theta": 1e4, "factor": 2.0}, "lack high_freq_factor, low_freq_factor"),
        ({"rope_type": "default", "rope_theta": 1e4, "factor": 2.0}, "'default' have the unknown key 'factor'"),
        ({"rope_type": "linear", "rope_theta": 1e4, "factr": 2.0, "factor": 2.0}, "did you mean 'factor'"),
        ({"rope_type": "linear", "rope_theta": 1e4, "factor": 0.5}, "factor is 0.5.*at least 1"),
        ({"rope_type": "linear", "rope_theta": 1e4, "factor": "8"}, "factor is '8'.*a number, at least 1"),
        ({"rope_type": "linear", "rope_theta": 1e4, "factor": True}, "factor is True"),
        ({"rope_type": "default", "rope_theta": 0}, "rope_theta is 0.*above 0"),
        ({"rope_type": "default", "rope_theta": float("nan")}, "rope_theta is nan"),
        ({"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}, "'partial_rotary_factor'"),
        ({"rope_type": "llama3", "rope_theta": 1e4, **LLAMA3, "high_freq_factor": 1.0}, "more than low_freq_factor"),
        ({**ROTARY["yarn"], "rope_theta": 1.0}, "rope_theta is 1.0.*more than 1"),
        ({**ROTARY["yarn"], "mscale": -0.1}, "mscale is -0.1.*a number, at least 0"),
        ({**ROTARY["yarn"], "mscale_all_dim": float("inf")}, "mscale_all_dim is inf"),
        ({**ROTARY["yarn"], "attention_factor": 0.0}, "attention_factor is 0.0.*above 0"),
        ({**ROTARY["yarn"], "truncate": 1}, "truncate is 1.*true or false"),
        ([1], r"rope_parameters is \[1\] \(list\), expected dict"),
    ],
)
def test_bad_rotary_positions_are_refused_by_name(rope: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        ApertusConfig(rope_parameters=rope)


@pytest.mark.parametrize(
    ("key", "neutral", "refused"),
    [
        ("qk_norm", True, False), ("post_norm", False, True), ("mlp_bias", False, True),
        ("partial_rotary_factor", 1.0, 0.5), ("pretraining_tp", 1, 2),
    ],
)  # fmt: skip
def test_parts_of_the_architecture_are_honoured_or_refused(key: str, neutral: Any, refused: Any) -> None:
    assert getattr(ApertusConfig(**{key: neutral}), key) == neutral
    with pytest.raises(ConfigError, match=f"{key} is {refused}.*no other value is supported"):
        ApertusConfig(**{key: refused})


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"num_key_value_heads": 5}, "num_attention_heads is 32, expected a multiple of num_key_value_heads, 5"),
        ({"hidden_size": 4100}, "hidden_size is 4100.*or head_dim"),
        ({"head_dim": 3}, "head size is 3.*even"),
        ({"pad_token_id": 131072}, "pad_token_id is 131072, expected below vocab_size"),
        ({"hidden_act": "xielo"}, "hidden_act is 'xielo'.*did you mean 'xielu'"),
        ({"eos_token_id": [1, "2"]}, "eos_token_id"),
        ({"sliding_window": 64}, "unknown key 'sliding_window'"),
        ({"text_config": {"hidden_size": 3}}, "unknown key 'text_config'"),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        ApertusConfig(**changes)


@pytest.mark.parametrize(
    ("shape", "head", "groups"),
    [
        ({"hidden_size": 4096, "intermediate_size": 21504, "num_key_value_heads": 8}, 128, 4),
        (
            {
                "hidden_size": 8192, "intermediate_size": 43008, "num_hidden_layers": 80, "num_attention_heads": 64,
                "num_key_value_heads": 8,
            },
            128,
            8,
        ),
        (
            {
                "hidden_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 4, "tie_word_embeddings": True,
                "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
            },
            64,
            4,
        ),
    ],
)  # fmt: skip
def test_shipped_shapes_load(shape: dict[str, Any], head: int, groups: int, tmp_path: Path) -> None:
    facts = {
        "architectures": ["ApertusForCausalLM"], "model_type": "apertus", "torch_dtype": "bfloat16",
        "eos_token_id": [68, 72], "qk_norm": True, "post_norm": False, "mlp_bias": False, "hidden_dropout": 0.0,
        **shape,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(facts), "ascii")
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, ApertusConfig)
    assert config.head_size == head
    assert config.num_attention_heads // config.num_key_value_heads == groups
    assert config.eos_token_id == [68, 72]
    assert config.longest_row == 65536


def test_a_head_size_of_its_own_and_no_null_for_others_to_trip_over() -> None:
    assert ApertusConfig(head_dim=64).head_size == 64
    assert ApertusConfig(head_dim=64).to_dict()["head_dim"] == 64
    assert "head_dim" not in ApertusConfig(head_dim=None).to_dict()
    assert "head_dim" not in json.loads(ApertusConfig().to_json_string())


def test_dynamic_scaling_takes_longer_rows() -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.5}
    assert ApertusConfig(max_position_embeddings=100, rope_parameters=rope).longest_row == 250


def test_two_configurations_share_nothing() -> None:
    one, other = ApertusConfig(), ApertusConfig()
    one.rope_parameters["factor"] = 2.0
    assert other.rope_parameters["factor"] == 8.0
    one.rope_parameters["factor"] = 0.0
    with pytest.raises(ConfigError, match="factor is 0"):
        one.validate()
