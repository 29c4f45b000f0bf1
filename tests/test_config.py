"""Configurations against transformers' own: the same keys, the same text, the same typed updates."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from typing import Any

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from pinnace.errors import ConfigError
from pinnace.models.configs.activation_names import ACTIVATIONS
from pinnace.models.configs.bert import BertConfig
from pinnace.models.configs.config import PreTrainedConfig

CASES: list[dict[str, Any]] = [
    {},
    {"hidden_size": 24, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 5},
    {"num_labels": 3},
    {"num_labels": 1},
    {"num_labels": 2},
    {"num_labels": 12, "problem_type": "multi_label_classification"},
    {"num_labels": 1, "problem_type": "regression"},
    {"id2label": {"0": "no", "1": "yes", "2": "maybe"}, "label2id": {"no": 0, "yes": 1, "maybe": 2}},
    {"id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}, "num_labels": 9},
    {"dtype": "float16"},
    {"torch_dtype": "bfloat16"},
    {"torch_dtype": "bfloat16", "dtype": "float16"},
    {"architectures": ["BertModel"], "output_hidden_states": True, "output_attentions": True, "return_dict": False},
    {"is_decoder": True, "add_cross_attention": True, "bos_token_id": 1, "eos_token_id": [2, 3], "use_cache": False},
    {"classifier_dropout": 0.3, "hidden_dropout_prob": 0, "pad_token_id": None, "type_vocab_size": 1},
    {"name_or_path": "someone/model"},
    {"_name_or_path": "someone/model"},
    {"chunk_size_feed_forward": 4, "is_encoder_decoder": True, "tie_word_embeddings": False},
    {"gradient_checkpointing": False, "position_embedding_type": "absolute", "sep_token_id": 102, "pruned_heads": {}},
    {"directionality": "bidi", "pooler_fc_size": 768, "pooler_type": "first_token_transform", "output_past": True},
    {"top_k": 7, "do_sample": True, "num_beams": 4, "max_length": 9, "bad_words_ids": [[1]], "temperature": 0.5},
    *[{"hidden_act": name} for name in ("gelu", "relu", "silu", "gelu_new")],
]


def theirs(values: dict[str, Any]) -> Any:
    return transformers.BertConfig(**copy.deepcopy(values))


def unstamped(values: dict[str, Any]) -> dict[str, Any]:
    """The oracle stamps its own version into what it writes; ours keeps the version that was read."""
    return {name: value for name, value in values.items() if name != "transformers_version"}


@pytest.mark.parametrize("values", CASES, ids=str)
def test_dicts_equal_those_of_transformers(values: dict[str, Any]) -> None:
    ours, oracle = BertConfig(**copy.deepcopy(values)), theirs(values)
    assert ours.to_dict() == unstamped(oracle.to_dict())
    assert ours.to_diff_dict() == unstamped(oracle.to_diff_dict())
    assert ours.num_labels == oracle.num_labels
    assert ours.name_or_path == oracle.name_or_path


@pytest.mark.parametrize("use_diff", [True, False])
@pytest.mark.parametrize("values", CASES, ids=str)
def test_json_text_equals_that_of_transformers(values: dict[str, Any], use_diff: bool) -> None:
    text = theirs(values).to_json_string(use_diff=use_diff)
    lines = [line for line in text.splitlines() if "transformers_version" not in line]
    assert BertConfig(**values).to_json_string(use_diff=use_diff).splitlines() == lines


@pytest.mark.parametrize("values", CASES, ids=str)
def test_a_configuration_survives_every_round_trip(values: dict[str, Any]) -> None:
    config = BertConfig(**values)
    assert BertConfig.from_dict(config.to_dict()) == config
    assert BertConfig(**json.loads(config.to_json_string(use_diff=False))) == config
    assert pickle.loads(pickle.dumps(config)) == config  # noqa: S301
    assert copy.deepcopy(config) == config
    reread = BertConfig(**json.loads(config.to_json_string()))
    reread.name_or_path = config.name_or_path
    assert reread == config


@pytest.mark.parametrize("values", CASES, ids=str)
def test_transformers_reads_what_we_write(values: dict[str, Any]) -> None:
    text = BertConfig(**values).to_json_string()
    assert unstamped(transformers.BertConfig(**json.loads(text)).to_diff_dict()) == unstamped(
        theirs(values).to_diff_dict()
    )


SMALL = st.integers(1, 40)
VALID = {
    "vocab_size": SMALL,
    "hidden_size": SMALL.map(lambda n: 12 * n),
    "num_hidden_layers": SMALL,
    "intermediate_size": SMALL,
    "hidden_act": st.sampled_from(ACTIVATIONS),
    "hidden_dropout_prob": st.floats(0, 1),
    "classifier_dropout": st.none() | st.floats(0, 1),
    "initializer_range": st.floats(0, 1),
    "layer_norm_eps": st.floats(0, 1e-3),
    "pad_token_id": st.sampled_from([None, 0]),
    "bos_token_id": st.none() | SMALL,
    "eos_token_id": st.none() | SMALL | st.lists(SMALL),
    "use_cache": st.booleans(),
    "is_decoder": st.booleans(),
    "tie_word_embeddings": st.booleans(),
    "output_hidden_states": st.booleans(),
    "return_dict": st.booleans(),
    "is_encoder_decoder": st.booleans(),
    "chunk_size_feed_forward": st.integers(0, 9),
    "architectures": st.none() | st.lists(st.text(max_size=3)),
    "dtype": st.sampled_from([None, "float32", "float16", "bfloat16"]),
    "num_labels": SMALL,
    "problem_type": st.sampled_from([None, "regression", "multi_label_classification"]),
    "gradient_checkpointing": st.booleans(),
    "top_k": SMALL,
}


@settings(max_examples=100)
@given(st.fixed_dictionaries({}, optional=VALID))
def test_random_valid_values_give_what_transformers_gives(values: dict[str, Any]) -> None:
    ours, oracle = BertConfig(**values), theirs(values)
    assert ours.to_dict() == unstamped(oracle.to_dict())
    assert ours.to_diff_dict() == unstamped(oracle.to_diff_dict())


@pytest.mark.parametrize(
    "update",
    [
        "hidden_size=12",
        "hidden_size=24,num_attention_heads=2",
        "use_cache=false",
        "use_cache=Y",
        "is_decoder=1",
        "hidden_act=relu",
        "layer_norm_eps=1",
        "hidden_dropout_prob=0.25",
        "num_labels=4",
        "output_attentions=yes",
        "return_dict=no",
        "vocab_size= 99 ",
    ],
)
def test_update_from_string_reads_the_types_that_transformers_reads(update: str) -> None:
    ours, oracle = BertConfig(), transformers.BertConfig()
    ours.update_from_string(update)
    oracle.update_from_string(update)
    assert ours.to_dict() == unstamped(oracle.to_dict())
    for name in ours.to_dict():
        assert type(getattr(ours, name)) is type(getattr(oracle, name))


@pytest.mark.parametrize(
    "update",
    [
        "",
        "hidden_size",
        "a=b=c",
        "zzz=1",
        "hidden_size=abc",
        "hidden_size=1.5",
        "use_cache=maybe",
        "id2label=3",
        "layer_norm_eps=small",
    ],
)
def test_update_from_string_refuses_what_transformers_refuses(update: str) -> None:
    with pytest.raises((ValueError, TypeError)):
        transformers.BertConfig().update_from_string(update)
    config = BertConfig()
    with pytest.raises(ConfigError):
        config.update_from_string(f"vocab_size=77,{update}")
    assert config == BertConfig(), "a refused update must change nothing"


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("problem_type", "regression", "regression"),
        ("classifier_dropout", "0.1", 0.1),
        ("eos_token_id", "7", 7),
        ("pad_token_id", "none", None),
        ("classifier_dropout", "null", None),
        ("dtype", "float16", "float16"),
    ],
)
def test_a_key_that_may_be_none_is_set_from_text_as_from_a_mapping(key: str, text: str, value: Any) -> None:
    by_text, by_mapping = BertConfig(num_labels=1), BertConfig(num_labels=1)
    by_text.update_from_string(f"{key}={text}")
    by_mapping.update({key: value})
    assert getattr(by_text, key) == getattr(by_mapping, key) == value
    assert by_text == by_mapping
    by_text.update_from_string(f"{key}=none")
    assert getattr(by_text, key) is None
    by_text.update_from_string(f"{key}={text}")
    assert by_text == by_mapping


@pytest.mark.parametrize(
    ("update", "told"),
    [
        ("classifier_dropout=much", "'much'.*reads as float"),
        ("classifier_dropout=1.5", "from 0 to 1"),
        ("problem_type=guess", "one of regression"),
        ("hidden_size=none", "'none'.*reads as int"),
        ("hidden_act=none", "hidden_act is 'none'"),
        ("architectures=BertModel", "set others in config.json, or from Python with a mapping"),
    ],
)
def test_a_wrong_text_for_a_key_that_may_be_none(update: str, told: str) -> None:
    config = BertConfig()
    with pytest.raises(ConfigError, match=told):
        config.update_from_string(update)
    assert config == BertConfig()


def test_changing_the_number_of_labels_makes_generic_ones() -> None:
    ours, oracle = BertConfig(id2label={0: "x", 1: "y"}), transformers.BertConfig(id2label={0: "x", 1: "y"})
    for count in (2, 5):
        ours.num_labels = oracle.num_labels = count
        assert ours.id2label == oracle.id2label
    assert ours.label2id == oracle.label2id


def test_labels_complete_each_other() -> None:
    assert BertConfig(id2label={"0": "no", "1": "yes"}).label2id == {"no": 0, "yes": 1}
    assert BertConfig(label2id={"no": 0, "yes": 1, "?": 2}).id2label == {0: "no", 1: "yes", 2: "?"}


def test_dtype_is_a_word_whatever_is_given() -> None:
    import torch

    for word in ("float16", "torch.float16", torch.float16):
        config = BertConfig(dtype=word)
        assert config.dtype == config.torch_dtype == "float16"
    config.torch_dtype = torch.bfloat16
    assert config.dtype == "bfloat16"
    nested = {"dtype": torch.float16, "part": {"dtype": {"a": torch.int8}}}
    config.dict_dtype_to_str(nested)
    assert nested == {"dtype": "float16", "part": {"dtype": {"a": "int8"}}}


def test_update_sets_all_or_nothing() -> None:
    config = BertConfig()
    config.update({"hidden_size": 20, "num_attention_heads": 5, "num_labels": 3})
    assert (config.hidden_size, config.num_attention_heads, config.num_labels) == (20, 5, 3)
    before = config.to_dict()
    with pytest.raises(ConfigError, match="num_attention_heads"):
        config.update({"num_labels": 7, "hidden_size": 21})
    assert config.to_dict() == before
    wrong_key: dict[Any, Any] = {"hidden_size": 40, 5: 1}
    with pytest.raises(ConfigError, match="unknown key 5"):
        config.update(wrong_key)
    assert config.to_dict() == before


def test_from_dict_replaces_known_keys_and_returns_the_others() -> None:
    source = {"hidden_size": 24, "num_attention_heads": 2, "torch_dtype": "float32"}
    config, unused = BertConfig.from_dict(
        source, num_labels=3, dtype="float16", attn_implementation="sdpa", foo=1, return_unused_kwargs=True
    )
    oracle, theirs_unused = transformers.BertConfig.from_dict(
        dict(source), num_labels=3, dtype="float16", attn_implementation="sdpa", foo=1, return_unused_kwargs=True
    )
    assert source == {"hidden_size": 24, "num_attention_heads": 2, "torch_dtype": "float32"}
    assert config.to_dict() == unstamped(oracle.to_dict())
    assert unused == {"foo": 1}
    assert theirs_unused.items() >= unused.items()
    assert BertConfig.from_dict(source, dtype="auto").dtype == "float32"


def test_code_named_in_a_file_is_neither_read_nor_passed_on() -> None:
    hostile = {
        "auto_map": {"AutoConfig": "evil.Config"},
        "_attn_implementation": "attacker/kernel",
        "_attn_implementation_internal": "attacker/kernel",
        "_experts_implementation": "attacker/kernel",
        "custom_pipelines": {"x": {"impl": "evil.P"}},
        "use_kernels": True,
    }
    config = BertConfig(**hostile)
    assert config == BertConfig()
    assert not config.to_dict().keys() & hostile.keys()
    for name, value in hostile.items():
        with pytest.raises(ConfigError, match=name):
            setattr(config, name, value)


def test_repr_is_the_text() -> None:
    config = BertConfig(num_labels=3)
    assert repr(config) == f"BertConfig {config.to_json_string()}"
    assert "hidden_size" in list(config)
    assert config.use_return_dict is True


def test_special_floats_are_valid_json() -> None:
    config = PreTrainedConfig(task_specific_params={"low": float("-inf"), "high": float("inf"), "none": float("nan")})
    text = config.to_json_string()
    assert json.loads(text, parse_constant=pytest.fail)["task_specific_params"]["low"] == {"__float__": "-Infinity"}
    assert text.count("__float__") == 3


def test_the_activations_are_known_to_transformers() -> None:
    from transformers.activations import ACT2CLS

    assert set(ACTIVATIONS) <= set(ACT2CLS)
    for name in ACTIVATIONS:
        assert BertConfig(hidden_act=name).hidden_act == name


def test_configurations_import_no_heavy_library() -> None:
    code = (
        "import sys, pinnace.models.auto_config; from pinnace.models.checkpoints import hub, hub_upload; "
        "print([m for m in ('torch', 'transformers', 'onnx', 'numpy', 'huggingface_hub') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_an_embedding_size_that_says_nothing_is_dropped() -> None:
    for size in (None, 768):
        assert BertConfig(embedding_size=size) == BertConfig()
    with pytest.raises(ConfigError, match="unknown key 'embedding_size'"):
        BertConfig(embedding_size=768, hidden_size=384)


def test_labels_that_are_whole_numbers_become_texts() -> None:
    config = BertConfig(id2label={"0": 1, "1": 5}, label2id={"1": 0, "5": 1})
    assert (config.id2label, config.label2id) == ({0: "1", 1: "5"}, {"1": 0, "5": 1})
    config.update({"id2label": {0: 7, 1: "x"}})
    assert config.id2label == {0: "7", 1: "x"}
