"""BERT and its heads against transformers: outputs, losses, gradients, masks and options of the encoder form."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.activations import ACT2FN

from pinnace.errors import ConfigError, InputError, UsageError
from pinnace.models.activations import ACTIVATIONS
from pinnace.models.bert import BertModel
from pinnace.models.bert_heads import BertForMaskedLM, BertForQuestionAnswering
from pinnace.models.configs import activation_names
from pinnace.models.configs.bert import BertConfig
from pinnace.models.registry import ARCHS, head_class
from pinnace.models.semantic import semantic_tracing

from .bert_oracle import HEADS, SMALL, assert_same, labels_for, pair, text_inputs

torch.set_num_threads(1)

CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one-layer-one-head": {"num_hidden_layers": 1, "num_attention_heads": 1, "hidden_size": 5},
    "one-segment": {"type_vocab_size": 1, "hidden_act": "relu", "layer_norm_eps": 1e-5},
    "three-segments": {"type_vocab_size": 3, "hidden_act": "gelu_new", "pad_token_id": None},
    "untied": {"tie_word_embeddings": False, "hidden_act": "silu", "num_attention_heads": 6, "pad_token_id": 3},
    "decoder": {"is_decoder": True, "num_hidden_layers": 3},
}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("head", HEADS)
def test_every_output_is_that_of_transformers(head: str, config: str) -> None:
    theirs, ours = pair(head, **CONFIGS[config])
    everything = {"output_hidden_states": True, "output_attentions": True}
    for batch, padding in ((1, "right"), (3, "right"), (3, "left")):
        types = CONFIGS[config].get("type_vocab_size", 2)
        given = text_inputs(head, batch, padding=padding, types=types)
        with torch.no_grad():
            assert_same(ours(**given, **everything), theirs(**given, **everything))
    with torch.no_grad():
        bare = {"input_ids": given["input_ids"]}
        assert_same(ours(**bare), theirs(**bare))


@pytest.mark.parametrize("seed", range(12))
def test_random_shapes(seed: int) -> None:
    chance = random.Random(seed)
    heads, size = chance.choice([1, 2, 3, 5, 7]), chance.choice([1, 2, 3, 5, 8])
    settings: dict[str, Any] = {
        "vocab_size": chance.randint(5, 60), "num_attention_heads": heads, "hidden_size": heads * size,
        "num_hidden_layers": chance.randint(1, 4), "intermediate_size": chance.randint(1, 40),
        "max_position_embeddings": chance.randint(9, 30), "type_vocab_size": chance.randint(1, 4),
        "hidden_act": chance.choice(activation_names.ACTIVATIONS), "layer_norm_eps": chance.choice([1e-12, 1e-5, 1e-2]),
        "num_labels": 2, "is_decoder": chance.random() < 0.2,
    }  # fmt: skip
    head = chance.choice(HEADS)
    theirs, ours = pair(head, **settings)
    given = text_inputs(
        head, chance.choice([1, 3]), chance.randint(4, 9), padding=chance.choice(["left", "right"]),
        types=settings["type_vocab_size"], vocabulary=settings["vocab_size"],
    )  # fmt: skip
    with torch.no_grad():
        assert_same(ours(**given, output_hidden_states=True), theirs(**given, output_hidden_states=True), atol=2e-5)


@pytest.mark.parametrize("head", [head for head in HEADS if head != "BertModel"])
def test_losses_are_those_of_transformers(head: str) -> None:
    theirs, ours = pair(head)
    given = text_inputs(head)
    given |= labels_for(head, given)
    expected = theirs(**given)
    assert expected.loss is not None
    assert_same(ours(**given), expected)
    assert ours(**given, return_dict=False)[0] == ours(**given).loss


@pytest.mark.parametrize(
    ("count", "labels", "kind"),
    [
        (1, torch.tensor([0.5, -1.0, 2.0]), "regression"),
        (4, torch.tensor([0, 3, 1]), "single_label_classification"),
        (4, torch.tensor([[0.0, 1, 1, 0]] * 3), "multi_label_classification"),
    ],
)
def test_the_labels_decide_the_kind_of_classification(count: int, labels: torch.Tensor, kind: str) -> None:
    theirs, ours = pair("BertForSequenceClassification", num_labels=count)
    given = text_inputs("BertForSequenceClassification")
    assert_same(ours(**given, labels=labels), theirs(**given, labels=labels))
    assert ours.config.problem_type == theirs.config.problem_type == kind


def test_regression_on_several_numbers() -> None:
    theirs, ours = pair("BertForSequenceClassification", num_labels=2, problem_type="regression")
    given = text_inputs("BertForSequenceClassification") | {"labels": torch.randn(3, 2)}
    assert_same(ours(**given), theirs(**given))


@pytest.mark.parametrize("name", activation_names.ACTIVATIONS)
def test_activations_are_those_of_transformers(name: str) -> None:
    x = torch.cat([torch.linspace(-12, 12, 401), torch.tensor([0.0, -0.0, 1e-8, 60.0, -60.0])])
    torch.testing.assert_close(ACTIVATIONS[name](x), ACT2FN[name](x), rtol=1e-6, atol=1e-6)


def test_every_name_of_an_activation_has_a_meaning() -> None:
    assert set(ACTIVATIONS) == set(activation_names.ACTIVATIONS)


def test_gradients_are_those_of_transformers() -> None:
    settings = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    theirs, ours = pair("BertForPreTraining", **settings)
    given = text_inputs("BertForPreTraining")
    given |= labels_for("BertForPreTraining", given)
    for model in (theirs, ours):
        model.train()(**given).loss.backward()
    expected = {name: weight.grad for name, weight in theirs.named_parameters()}
    for name, weight in ours.named_parameters():
        torch.testing.assert_close({name: weight.grad}, {name: expected[name]}, rtol=0, atol=1e-5)


def test_dropout_acts_in_training_only() -> None:
    _, ours = pair("BertForSequenceClassification", hidden_dropout_prob=0.3, classifier_dropout=0.0)
    given = text_inputs("BertForSequenceClassification")
    assert torch.equal(ours(**given).logits, ours(**given).logits)
    ours.train()
    assert not torch.equal(ours(**given).logits, ours(**given).logits)


@pytest.mark.parametrize(
    "place", ["hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"], ids=str
)
def test_each_dropout_has_its_place(place: str) -> None:
    # With the others at 0, each alone must make two passes differ; transformers' seeded passes agree in that.
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0}
    theirs, ours = pair("BertForTokenClassification", **{**none, place: 0.5})
    given = text_inputs("BertForTokenClassification")
    for model in (theirs.train(), ours.train()):
        assert not torch.equal(model(**given).logits, model(**given).logits)
    _, still = pair("BertForTokenClassification", **none)
    assert torch.equal(still.train()(**given).logits, still(**given).logits)


def test_seeded_dropout_is_that_of_transformers() -> None:
    theirs, ours = pair("BertForSequenceClassification", hidden_dropout_prob=0.4)
    given = text_inputs("BertForSequenceClassification")
    results = []
    for model in (theirs.train(), ours.train()):
        torch.manual_seed(7)
        results.append(model(**given).logits)
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-5)


def _additive(visible: torch.Tensor) -> torch.Tensor:
    return torch.zeros(visible.shape).masked_fill(visible == 0, torch.finfo(torch.float32).min)


@pytest.mark.parametrize("is_decoder", [False, True])
def test_masks_of_three_and_four_axes(is_decoder: bool) -> None:
    theirs, ours = pair("BertModel", is_decoder=is_decoder)
    ids = text_inputs("BertModel")["input_ids"]
    visible = (torch.rand(3, 7, 7) < 0.6).long()
    visible[:, :, 0] = 1
    expected = theirs(input_ids=ids, attention_mask=_additive(visible[:, None])).last_hidden_state
    for mask in (visible, visible[:, None], visible[:, None].bool(), _additive(visible[:, None])):
        got = ours(input_ids=ids, attention_mask=mask).last_hidden_state
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_a_row_alone_is_the_row_in_a_batch() -> None:
    _, ours = pair("BertModel")
    given = text_inputs("BertModel", padding="right")
    together = ours(**given).last_hidden_state
    for row in range(3):
        length = int(given["attention_mask"][row].sum())
        alone = ours(**{name: tensor[row : row + 1, :length] for name, tensor in given.items()}).last_hidden_state
        torch.testing.assert_close(together[row : row + 1, :length], alone, rtol=0, atol=1e-6)


def test_embeddings_and_positions_can_be_given() -> None:
    theirs, ours = pair("BertModel")
    given = text_inputs("BertModel")
    embeds = torch.randn(3, 7, 12)
    places = torch.tensor([[3, 1, 4, 1, 5, 9, 2]])
    rest = {"attention_mask": given["attention_mask"], "position_ids": places}
    assert_same(ours(inputs_embeds=embeds, **rest), theirs(inputs_embeds=embeds, **rest))
    assert_same(ours(**given, position_ids=places), theirs(**given, position_ids=places))
    words = ours.get_input_embeddings()(given.pop("input_ids"))
    torch.testing.assert_close(ours(inputs_embeds=words, **given)[0], theirs(inputs_embeds=words, **given)[0])


def test_choices_can_be_given_as_embeddings() -> None:
    theirs, ours = pair("BertForMultipleChoice")
    embeds = torch.randn(3, 4, 7, 12)
    assert ours(inputs_embeds=embeds).logits.shape == (3, 4)
    assert_same(ours(inputs_embeds=embeds), theirs(inputs_embeds=embeds))


def test_feed_forward_in_chunks_changes_nothing() -> None:
    theirs, ours = pair("BertModel", chunk_size_feed_forward=2)
    given = text_inputs("BertModel", length=6)
    assert_same(ours(**given), theirs(**given))
    odd = text_inputs("BertModel", length=7)  # transformers takes multiples alone
    theirs.config.chunk_size_feed_forward = 0
    for layer in theirs.encoder.layer:
        layer.chunk_size_feed_forward = 0
    assert_same(ours(**odd), theirs(**odd))


def test_options_fall_back_on_the_configuration() -> None:
    _, ours = pair("BertForMaskedLM", output_hidden_states=True, output_attentions=True, return_dict=False)
    given = text_inputs("BertForMaskedLM")
    logits, states, attentions = ours(**given)
    assert (logits.shape[-1], len(states), len(attentions)) == (41, 3, 2)
    asked = ours(**given, output_hidden_states=False, output_attentions=False, return_dict=True)
    assert list(asked) == ["logits"]


def test_an_output_is_a_dictionary_a_tuple_and_an_object() -> None:
    _, ours = pair("BertModel", add_pooling_layer=False)
    out = ours(**text_inputs("BertModel"))
    assert out.last_hidden_state is out[0] is out["last_hidden_state"] is out.to_tuple()[0] is out[:1][0]
    assert out.pooler_output is None
    assert "pooler_output" not in out
    assert dict(out).keys() == {"last_hidden_state"}
    with pytest.raises(KeyError):
        out["pooler_output"]


@pytest.mark.parametrize("head", HEADS)
def test_weights_are_counted_and_tied_like_those_of_transformers(head: str) -> None:
    theirs, ours = pair(head)
    assert ours.num_parameters() == theirs.num_parameters()
    assert ours.base_model is getattr(ours, "bert", ours)
    new = torch.nn.Embedding(50, 12)
    ours.set_input_embeddings(new)
    assert ours.get_input_embeddings() is new
    output = ours.get_output_embeddings()
    assert (output is None) == (theirs.get_output_embeddings() is None)
    if output is not None:
        ours.tie_weights()
        assert output.weight is new.weight
        assert output.bias is ours.cls.predictions.bias


def test_fresh_weights_have_the_documented_spread() -> None:
    config = BertConfig(**{**SMALL, "hidden_size": 120, "vocab_size": 500, "initializer_range": 0.3})
    model = BertForMaskedLM.from_config(config)
    words = model.get_input_embeddings().weight
    assert not model.training
    assert abs(float(words[1:].detach().std()) - 0.3) < 0.01
    assert not words[0].any()
    assert not model.get_parameter("bert.encoder.layer.0.output.dense.bias").any()
    assert model.num_parameters(exclude_embeddings=True) == model.num_parameters() - sum(
        table.weight.numel() for table in model.modules() if isinstance(table, torch.nn.Embedding)
    )
    words.requires_grad_(False)
    assert model.num_parameters(only_trainable=True) == model.num_parameters() - words.numel()


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ({}, "neither of input_ids and inputs_embeds"),
        ({"input_ids": torch.ones(1, 2, dtype=torch.long), "inputs_embeds": torch.ones(1, 2, 12)}, "both"),
        ({"input_ids": torch.ones(1, 25, dtype=torch.long)}, "position 24 is asked for.*0 to 23"),
        (
            {"input_ids": torch.ones(1, 4, dtype=torch.long), "attention_mask": torch.ones(1, 3)},
            r"attention_mask has shape \(1, 3\)",
        ),
        (
            {"input_ids": torch.ones(1, 4, dtype=torch.long), "attention_mask": torch.full((1, 1, 4, 4), 0.5)},
            "floating-point",
        ),
    ],
)
def test_inputs_that_do_not_fit_are_named(inputs: dict[str, torch.Tensor], text: str) -> None:
    with pytest.raises(InputError, match=text):
        BertModel(BertConfig(**SMALL))(**inputs)


def test_configurations_that_do_not_fit_are_named() -> None:
    with pytest.raises(ConfigError, match="num_labels=3"):
        BertForQuestionAnswering(BertConfig(**SMALL, num_labels=3))
    with pytest.raises(UsageError, match="BertModel needs a BertConfig, got str"):
        BertModel("google-bert/bert-base-uncased")  # type: ignore[arg-type]


@pytest.mark.parametrize("head", [head for head in HEADS if head != "BertLMHeadModel"])
def test_every_head_traces_to_semantic_nodes_without_reading_values(head: str) -> None:
    model_class = head_class(ARCHS["bert"], head)

    class Called(torch.nn.Module):
        def __init__(self, model: torch.nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor) -> Any:
            return self.model(input_ids, attention_mask, token_type_ids, return_dict=False)

    axes = dict(enumerate([torch.export.Dim.AUTO] * (3 if head == "BertForMultipleChoice" else 2)))
    with FakeTensorMode(), semantic_tracing():
        model = Called(model_class.from_config(BertConfig(**SMALL)))
        given = tuple(text_inputs(head).values())
        program = torch.export.export(model, given, dynamic_shapes=(axes, axes, axes), strict=False)
    nodes = [node for node in program.graph.nodes if node.target is torch.ops.pinnace.semantic.default]
    assert [node.args[1] for node in nodes].count("Attention") == 2  # one in each layer
    assert len(nodes) <= 1 + 2 * 10 + 7
