"""Every wrong configuration is an error that names the key, what was got and what was expected."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pinnace.errors import ConfigError
from pinnace.models.configs.base import ConfigBase
from pinnace.models.configs.bert import BertConfig
from pinnace.models.configs.fields import fields_of
from pinnace.models.configs.keys import FIXED, GENERATION, KEPT, NEVER_ACTED_ON

WRONG: list[tuple[dict[str, Any], list[str]]] = [
    ({"hidden_size": "768"}, ["hidden_size", "'768'", "str", "int"]),
    ({"hidden_size": 768.0}, ["hidden_size", "float", "int"]),
    ({"hidden_size": True}, ["hidden_size", "bool", "int"]),
    ({"hidden_size": None}, ["hidden_size", "None", "int"]),
    ({"hidden_size": -12}, ["hidden_size", "-12"]),
    ({"hidden_size": 0}, ["hidden_size", "0"]),
    ({"hidden_size": 2**40}, ["hidden_size", "2147483647"]),
    ({"num_hidden_layers": 10**9}, ["num_hidden_layers", "4096"]),
    ({"vocab_size": [3]}, ["vocab_size", "list", "int"]),
    ({"use_cache": "true"}, ["use_cache", "'true'", "bool"]),
    ({"use_cache": 1}, ["use_cache", "int", "bool"]),
    ({"hidden_dropout_prob": 1.5}, ["hidden_dropout_prob", "1.5", "from 0 to 1"]),
    ({"attention_probs_dropout_prob": -0.1}, ["attention_probs_dropout_prob", "-0.1"]),
    ({"classifier_dropout": math.nan}, ["classifier_dropout", "nan"]),
    ({"layer_norm_eps": math.inf}, ["layer_norm_eps", "inf"]),
    ({"initializer_range": "small"}, ["initializer_range", "'small'", "float"]),
    ({"hidden_act": "gelo"}, ["hidden_act", "'gelo'", "did you mean 'gelu'"]),
    ({"hidden_act": math.tanh}, ["hidden_act", "str"]),
    ({"problem_type": "multi_label"}, ["problem_type", "multi_label_classification"]),
    ({"problem_type": "single_label_classification", "num_labels": 1}, ["problem_type", "num_labels", "regression"]),
    ({"position_embedding_type": "relative_key"}, ["position_embedding_type", "'relative_key'", "'absolute'"]),
    ({"pruned_heads": {"0": [1]}}, ["pruned_heads"]),
    ({"quantization_config": {"bits": 4}}, ["quantization_config", "quantized by another tool", "the original one"]),
    ({"dtype": "auto"}, ["dtype", "'auto'", "float16"]),
    ({"dtype": 16}, ["dtype", "16", "str"]),
    ({"model_type": "roberta"}, ["model_type", "'roberta'", "'bert'"]),
    ({"hidden_size": 770}, ["hidden_size", "770", "num_attention_heads", "12"]),
    ({"pad_token_id": 30522}, ["pad_token_id", "30522", "vocab_size"]),
    ({"pad_token_id": -1}, ["pad_token_id", "-1"]),
    ({"eos_token_id": ["x"]}, ["eos_token_id", "list of int"]),
    ({"add_cross_attention": True}, ["add_cross_attention", "is_decoder"]),
    ({"architectures": "BertModel"}, ["architectures", "'BertModel'", "list of str"]),
    ({"num_labels": 0}, ["num_labels", "0"]),
    ({"num_labels": "3"}, ["num_labels", "'3'"]),
    ({"num_labels": 10**12}, ["num_labels"]),
    ({"id2label": {}}, ["id2label"]),
    ({"id2label": ["a", "b"]}, ["id2label", "list", "dict"]),
    ({"id2label": {"a": "b"}}, ["id2label"]),
    ({"id2label": {"1": "b", "2": "c"}}, ["id2label", "0, 1, 2"]),
    ({"id2label": {"0": None}}, ["id2label", "which are texts"]),
    ({"id2label": {"0": True}}, ["id2label", "which are texts"]),
    ({"id2label": {"0": "a\ud800"}}, ["id2label", "surrogate"]),
    ({"label2id": {"a": [1]}, "id2label": {"0": "a"}}, ["label2id"]),
    ({"label2id": {"a": [1]}}, ["label2id"]),
    ({"hiden_size": 12}, ["hiden_size", "did you mean 'hidden_size'"]),
    ({"embedding_size": 128}, ["embedding_size"]),
    ({"chunk_size_feed_forward": -1}, ["chunk_size_feed_forward", "-1"]),
    ({"return_dict": "yes"}, ["return_dict"]),
]


@pytest.mark.parametrize(("values", "words"), WRONG, ids=str)
def test_a_wrong_value_is_named(values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        BertConfig(**values)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(("values", "words"), WRONG, ids=str)
def test_update_refuses_the_same_and_changes_nothing(values: dict[str, Any], words: list[str]) -> None:
    config = BertConfig()
    with pytest.raises(ConfigError) as caught:
        config.update(values)
    assert words[0] in str(caught.value)
    assert config == BertConfig()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden_size", "a"),
        ("hidden_size", -1),
        ("hidden_act", "unknown"),
        ("use_cache", None),
        ("problem_type", "x"),
        ("num_labels", 0),
        ("id2label", {1: "a"}),
        ("torch_dtype", "float99"),
        ("position_embedding_type", "relative_key_query"),
        ("hiden_size", 4),
        ("num_beams", 4),
        ("model_type", "roberta"),
        ("use_return_dict", False),
        ("_owner", "x"),
    ],
)
def test_setting_an_attribute_is_checked_too(name: str, value: Any) -> None:
    config = BertConfig()
    with pytest.raises(ConfigError):
        setattr(config, name, value)
    assert config == BertConfig()


def test_sizes_may_be_set_one_after_the_other_and_are_checked_together_before_use() -> None:
    config = BertConfig()
    config.hidden_size = 25
    with pytest.raises(ConfigError, match="num_attention_heads"):
        config.validate()
    config.num_attention_heads = 5
    config.validate()


def test_only_a_key_of_a_file_is_to_be_removed_from_it() -> None:
    with pytest.raises(ConfigError, match="unknown key 'foo'; if the model does not depend on it, remove the key from"):
        BertConfig(foo=1)
    with pytest.raises(ConfigError, match=r"unknown key 'foo'$"):
        BertConfig().update({"foo": 1})


def test_an_option_of_generation_points_to_its_file() -> None:
    with pytest.raises(ConfigError, match=r"generation_config\.json"):
        BertConfig().update({"num_beams": 4})


def test_an_attribute_that_is_not_there_is_an_attribute_error() -> None:
    config = BertConfig()
    assert not hasattr(config, "hiden_size")
    with pytest.raises(AttributeError, match="did you mean 'hidden_size'"):
        _ = config.hiden_size


def test_positional_arguments_and_long_values_stay_readable() -> None:
    with pytest.raises(ConfigError) as caught:
        BertConfig(hidden_act="x" * 10_000)
    assert len(str(caught.value)) < 600


def test_the_tables_of_keys_do_not_overlap() -> None:
    tables = {"kept": KEPT, "never": NEVER_ACTED_ON, "generation": GENERATION, "fixed": set(FIXED)}
    names = [name for table in tables.values() for name in table]
    assert len(names) == len(set(names))
    assert not set(names) & set(fields_of(ConfigBase))


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
KEYS = st.sampled_from([*fields_of(BertConfig), *sorted(BertConfig.kept), "num_labels", "torch_dtype", "name_or_path"])


@settings(max_examples=300)
@given(st.dictionaries(KEYS | st.text(max_size=8), JSON_VALUES, max_size=4))
def test_any_json_gives_a_configuration_or_a_config_error(values: dict[str, Any]) -> None:
    try:
        config = BertConfig(**values)
    except ConfigError as error:
        assert str(error)
    else:
        config.validate()
        config.to_json_string()
