"""BERT as a decoder against transformers: cache, cross-attention, kept logits, and its trace."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from pinnace.errors import ConfigError, InputError
from pinnace.models.bert_heads import BertLMHeadModel
from pinnace.models.cache import KeyValueCache
from pinnace.models.configs.bert import BertConfig
from pinnace.models.semantic import semantic_tracing

from .bert_oracle import SMALL, assert_same, pair, text_inputs

torch.set_num_threads(1)
HEAD = "BertLMHeadModel"


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def _close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("padding", ["left", "right"])
def test_each_step_with_a_cache_is_that_of_transformers(padding: str) -> None:
    theirs, ours = pair(HEAD, is_decoder=True)
    given = text_inputs(HEAD, padding=padding)
    given.pop("token_type_ids")
    wanted = {"output_hidden_states": True, "output_attentions": True}
    expected, got = theirs(**given, **wanted), ours(**given, **wanted)
    mask = given["attention_mask"]
    for length in (1, 3):
        ids = torch.randint(1, 41, (3, length))
        mask = torch.cat([mask, torch.ones(3, length, dtype=torch.long)], dim=1)
        expected = theirs(input_ids=ids, attention_mask=mask, past_key_values=expected.past_key_values, **wanted)
        got = ours(input_ids=ids, attention_mask=mask, past_key_values=got.past_key_values, **wanted)
        assert_same(got, expected)
        for layer, (key, value) in enumerate(got.past_key_values):
            _close(key, expected.past_key_values.layers[layer].keys)
            _close(value, expected.past_key_values.layers[layer].values)


def test_cached_is_uncached_and_the_past_is_left_alone() -> None:
    _, ours = pair(HEAD, is_decoder=True)
    ids = torch.randint(1, 41, (2, 9))
    whole = ours(input_ids=ids).logits
    first = ours(input_ids=ids[:, :4])
    for _ in range(2):  # the same past serves twice
        rest = ours(input_ids=ids[:, 4:], past_key_values=first.past_key_values)
        _close(rest.logits, whole[:, 4:])
    plain = ours(input_ids=ids[:, 4:], past_key_values=first.past_key_values.to_legacy_cache()).logits
    assert torch.equal(plain, rest.logits)
    assert first.past_key_values.get_seq_length() == 4
    moved = ours(input_ids=ids[:, 4:], past_key_values=first.past_key_values, cache_position=torch.arange(4, 9))
    assert torch.equal(moved.logits, rest.logits)


def test_a_cache_can_be_taken_over_and_reordered() -> None:
    layers = tuple((torch.randn(2, 3, 5, 4), torch.randn(2, 3, 5, 4)) for _ in range(2))
    cache = KeyValueCache.from_legacy_cache(layers)
    assert cache.get_seq_length() == 5
    assert KeyValueCache.from_legacy_cache(None).get_seq_length() == 0
    turned = cache.reorder(torch.tensor([1, 1, 0]))
    assert torch.equal(turned[1][0][1], layers[1][0][1])
    assert turned[0][0].shape == (3, 3, 5, 4)


@pytest.mark.parametrize("use_cache", [True, False])
def test_whether_the_cache_is_returned(use_cache: bool) -> None:
    _, ours = pair(HEAD, is_decoder=True, use_cache=use_cache)
    given = text_inputs(HEAD)
    assert ("past_key_values" in ours(**given)) == use_cache
    assert "past_key_values" in ours(**given, use_cache=True)
    assert "past_key_values" not in ours(**given, use_cache=False)
    assert "past_key_values" not in ours(**given, labels=given["input_ids"])


def test_an_encoder_never_returns_a_cache() -> None:
    _, ours = pair(HEAD)
    assert "past_key_values" not in ours(**text_inputs(HEAD), use_cache=True)


@pytest.mark.parametrize("with_mask", [True, False])
def test_cross_attention_is_that_of_transformers(with_mask: bool) -> None:
    theirs, ours = pair(HEAD, is_decoder=True, add_cross_attention=True)
    given = text_inputs(HEAD)
    encoder: dict[str, Any] = {"encoder_hidden_states": torch.randn(3, 5, 12)}
    if with_mask:
        encoder["encoder_attention_mask"] = torch.tensor([[1] * 5, [1, 1, 1, 0, 0], [0, 1, 1, 1, 1]])
    wanted = {"output_attentions": True, "output_hidden_states": True}
    theirs_cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    expected = theirs(**given, **encoder, **wanted, past_key_values=theirs_cache, use_cache=True)
    got = ours(**given, **encoder, **wanted)
    assert_same(got, expected)
    assert [len(layer) for layer in got.past_key_values] == [4, 4]
    step = {
        "input_ids": torch.randint(1, 41, (3, 2)),
        "attention_mask": torch.cat([given["attention_mask"], torch.ones(3, 2, dtype=torch.long)], 1),
    }
    expected = theirs(**step, **encoder, **wanted, past_key_values=expected.past_key_values)
    # The encoder's keys come from the cache: other hidden states must change nothing.
    encoder["encoder_hidden_states"] = torch.zeros(3, 5, 12)
    assert_same(ours(**step, **encoder, **wanted, past_key_values=got.past_key_values), expected)


def test_the_encoder_without_cross_attention_is_refused() -> None:
    _, ours = pair(HEAD, is_decoder=True)
    with pytest.raises(InputError, match="add_cross_attention=False"):
        ours(**text_inputs(HEAD), encoder_hidden_states=torch.randn(3, 5, 12))
    with pytest.raises(ConfigError, match="is_decoder"):
        BertConfig(**SMALL, add_cross_attention=True)


def test_a_past_of_another_depth_is_refused() -> None:
    _, ours = pair(HEAD, is_decoder=True)
    past = ((torch.zeros(1, 3, 2, 4), torch.zeros(1, 3, 2, 4)),)
    with pytest.raises(InputError, match="has 1 layers, expected 2"):
        ours(input_ids=torch.ones(1, 1, dtype=torch.long), past_key_values=past)


@pytest.mark.parametrize(
    "which",
    [
        0, 1, 3, torch.tensor([0, 4]), torch.tensor([[6, 0], [1, 1], [5, 2]]),
        torch.tensor([[True] + [False] * 6, [False, True, True] + [False] * 4, [False] * 7]),
    ],
    ids=["all", "last", "last-three", "positions", "positions-of-each-row", "booleans"],
)  # fmt: skip
def test_logits_to_keep(which: int | Tensor) -> None:
    theirs, ours = pair(HEAD, is_decoder=True)
    given = text_inputs(HEAD)
    assert_same(ours(**given, logits_to_keep=which), theirs(**given, logits_to_keep=which))


def test_loss_of_the_next_word_is_that_of_transformers() -> None:
    theirs, ours = pair(HEAD, is_decoder=True, add_cross_attention=True)
    given = text_inputs(HEAD) | {"encoder_hidden_states": torch.randn(3, 5, 12)}
    labels = given["input_ids"].masked_fill(given["attention_mask"] == 0, -100)
    assert_same(ours(**given, labels=labels), theirs(**given, labels=labels))


def test_a_decoder_traces_with_growing_cache() -> None:
    class Step(torch.nn.Module):
        def __init__(self, model: BertLMHeadModel) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: Tensor, mask: Tensor, places: Tensor, past: Any) -> Any:
            out = self.model(ids, mask, position_ids=places, past_key_values=past, logits_to_keep=1)
            return out.logits, tuple(out.past_key_values)

    auto = torch.export.Dim.AUTO
    with FakeTensorMode(), semantic_tracing():
        model = Step(BertLMHeadModel.from_config(BertConfig(**SMALL, is_decoder=True)))
        ids = torch.ones(2, 3, dtype=torch.long)
        past = tuple((torch.zeros(2, 3, 5, 4), torch.zeros(2, 3, 5, 4)) for _ in range(2))
        axes = ({0: auto, 1: auto},) * 3 + (tuple(({0: auto, 2: auto},) * 2 for _ in past),)
        program = torch.export.export(
            model, (ids, torch.ones(2, 8, dtype=torch.long), ids, past), dynamic_shapes=axes, strict=False
        )
    emitted = [node for node in program.graph.nodes if node.target is torch.ops.pinnace.semantic.default]
    assert [node.args[1] for node in emitted].count("CachedAttention") == 2
    present = program.graph.output_node().args[0][1].meta["val"]
    assert isinstance(present.shape[2], torch.SymInt)  # P + T stays open
