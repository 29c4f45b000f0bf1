"""What a subclass can do: aliases, nested configurations, older keys, lists and dicts as defaults."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from pinnace.errors import ConfigError, UsageError
from pinnace.models import auto_config
from pinnace.models.auto_config import AutoConfig
from pinnace.models.configs.bert import BertConfig
from pinnace.models.configs.config import PreTrainedConfig
from pinnace.models.configs.fields import setting, size


class TextConfig(PreTrainedConfig):
    model_type = "demo_text"
    base_config_key = "text_config"
    attribute_map: ClassVar[dict[str, str]] = {"n_embd": "hidden_size"}

    hidden_size: int = size(16)
    rope_parameters: dict[str, float | str] = setting({"rope_type": "llama3", "factor": 8.0})
    eos_token_id: int | list[int] | None = setting([2, 3])

    @classmethod
    def upgrade_keys(cls, values: dict[str, Any]) -> dict[str, Any]:
        if "rope_theta" in values:
            values["rope_parameters"] = {"rope_type": "default", "rope_theta": values.pop("rope_theta")}
        return values


class DemoConfig(PreTrainedConfig):
    model_type = "demo"

    text_config: TextConfig = setting(TextConfig())
    text_encoder: BertConfig | None = None
    scale: float = setting(1.0, at_least=0)


class FlatConfig(PreTrainedConfig):
    model_type = "flat"
    attribute_map: ClassVar[dict[str, str]] = {"hidden_act": "activation"}

    encoder_layers: int = size(3)
    decoder_layers: int = size(5)
    encoder_attention_heads: int = size(2)
    decoder_attention_heads: int = size(4)
    decoder_hidden_act: str = "relu"
    activation: str = "gelu"
    is_encoder_decoder: bool = True


@pytest.fixture
def registry() -> Iterator[None]:
    yield
    auto_config.REGISTERED.clear()


def test_an_alias_reads_sets_and_builds_the_field() -> None:
    config = TextConfig(n_embd=8)
    assert config.hidden_size == config.n_embd == 8
    config.n_embd = 4
    assert config.hidden_size == 4
    config.update({"n_embd": 5})
    config.update_from_string("n_embd=6")
    assert config.to_dict()["hidden_size"] == 6
    assert "n_embd" not in config.to_dict()
    assert TextConfig.from_dict({"hidden_size": 2}, n_embd=9).hidden_size == 9
    with pytest.raises(ConfigError, match="n_embd"):
        TextConfig(n_embd=1, hidden_size=2)
    with pytest.raises(ConfigError, match="hidden_size"):
        config.n_embd = 0


def test_defaults_are_not_shared_between_instances() -> None:
    first, second = TextConfig(), TextConfig()
    first.rope_parameters["factor"] = 2.0
    assert second.rope_parameters["factor"] == 8.0
    demo = DemoConfig()
    demo.text_config.hidden_size = 3
    assert DemoConfig().text_config.hidden_size == 16


def test_older_keys_are_upgraded() -> None:
    assert TextConfig(rope_theta=10.0).rope_parameters == {"rope_type": "default", "rope_theta": 10.0}


def test_nested_dicts_become_configurations_and_are_checked() -> None:
    config = DemoConfig(text_config={"hidden_size": 4, "model_type": "demo_text"}, text_encoder={"vocab_size": 9})
    assert isinstance(config.text_config, TextConfig)
    assert isinstance(config.text_encoder, BertConfig)
    assert config.text_encoder.vocab_size == 9
    assert DemoConfig.from_dict(config.to_dict()) == config
    assert DemoConfig(**config.to_diff_dict()) == config
    merged = DemoConfig.from_dict(config.to_dict(), text_config={"eos_token_id": 7})
    assert (merged.text_config.hidden_size, merged.text_config.eos_token_id) == (4, 7)
    with pytest.raises(ConfigError, match="hidden_size"):
        DemoConfig(text_config={"hidden_size": "4"})
    with pytest.raises(ConfigError, match="text_config"):
        DemoConfig(text_config=[1])
    with pytest.raises(ConfigError, match="text_config"):
        DemoConfig(text_config=None)
    config.text_config.__dict__["hidden_size"] = -1
    with pytest.raises(ConfigError, match="TextConfig: hidden_size"):
        config.validate()


def test_the_short_form_of_a_nested_configuration_keeps_its_type() -> None:
    short = DemoConfig(dtype="float16", text_config={"dtype": "float16"}).to_diff_dict()
    assert short["text_config"]["model_type"] == "demo_text"
    assert short["text_config"]["dtype"] == short["dtype"] == "float16"
    assert "output_hidden_states" not in short["text_config"]


def test_the_text_part() -> None:
    plain = BertConfig()
    assert plain.get_text_config() is plain
    assert plain.get_text_config(decoder=True) is plain
    demo = DemoConfig()
    assert demo.get_text_config() is demo.text_config
    assert demo.get_text_config(decoder=True) is demo.text_config
    assert demo.get_text_config(encoder=True) is demo
    both = DemoConfig(text_encoder=BertConfig())
    assert both.get_text_config(encoder=True) is both.text_encoder
    assert both.get_text_config(decoder=True) is both.text_config
    with pytest.raises(ConfigError, match=r"text_encoder.*text_config"):
        both.get_text_config()
    with pytest.raises(ConfigError, match="several"):
        both.get_text_config(decoder=True, encoder=True)


def test_one_side_of_a_flat_configuration_loses_its_prefix() -> None:
    flat = FlatConfig()
    assert flat.get_text_config() is flat
    decoder, encoder = flat.get_text_config(decoder=True), flat.get_text_config(encoder=True)
    assert (decoder.num_hidden_layers, decoder.num_attention_heads, decoder.hidden_act) == (5, 4, "relu")
    assert (encoder.num_hidden_layers, encoder.num_attention_heads, encoder.hidden_act) == (3, 2, "gelu")
    assert flat == FlatConfig()


def test_a_registered_class_is_built_by_auto_config(registry: None) -> None:
    with pytest.raises(UsageError, match="demo"):
        AutoConfig.for_model("demo")
    DemoConfig.register_for_auto_class()
    DemoConfig.register_for_auto_class(AutoConfig)
    assert isinstance(AutoConfig.for_model("demo", scale=2.0), DemoConfig)
    with pytest.raises(UsageError, match="AutoConfig"):
        DemoConfig.register_for_auto_class("AutoModel")
    with pytest.raises(UsageError, match="model_type"):
        PreTrainedConfig.register_for_auto_class()
    with pytest.raises(UsageError, match="BertConfig"):
        AutoConfig.register("bert", type("Mine", (PreTrainedConfig,), {"model_type": "bert"}))
    with pytest.raises(UsageError, match="model_type"):
        AutoConfig.register("other", DemoConfig)
    mine = type("MyBert", (BertConfig,), {})
    AutoConfig.register("bert", mine, exist_ok=True)
    assert type(AutoConfig.for_model("bert")) is mine


def test_auto_config_knows_bert_and_names_the_nearest() -> None:
    assert AutoConfig.for_model("bert", hidden_size=24) == BertConfig(hidden_size=24)
    with pytest.raises(UsageError, match="Did you mean 'bert'"):
        AutoConfig.for_model("bart")
    with pytest.raises(UsageError):
        AutoConfig()
