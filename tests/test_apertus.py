"""Apertus in PyTorch, held to transformers: every head, rotary type, grouping, mask, cache step, loss and gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from pinnace.errors import CheckpointError, InputError
from pinnace.models import ops
from pinnace.models.apertus import ApertusForCausalLM, ApertusForTokenClassification, ApertusModel
from pinnace.models.cache import KeyValueCache
from pinnace.models.configs.apertus import ApertusConfig
from pinnace.models.registry import ARCHS
from pinnace.models.rotary import angles, frequencies
from tests.apertus_oracle import ATOL, ROTARY, SMALL, pair, text_inputs

DATA = Path(__file__).parent / "data"
HEADS = tuple(ARCHS["apertus"].heads)
SHAPES: dict[str, dict[str, Any]] = {
    "one group": {"num_key_value_heads": 1},
    "two groups": {"num_key_value_heads": 2},
    "no groups": {"num_key_value_heads": 4},
    "one layer": {"num_hidden_layers": 1},
    "own head size": {"head_dim": 12},
    "tied": {"tie_word_embeddings": True},
    "biases": {"attention_bias": True},
    "relu2": {"hidden_act": "relu2"},
    "silu": {"hidden_act": "silu"},
    "v4 dialect": {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0}},
    "no padding id": {"pad_token_id": None},
}
EVERYTHING = {"output_hidden_states": True, "output_attentions": True}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


def assert_close(ours: Any, theirs: Any, real: Tensor | None = None) -> None:
    """Every field agrees; where ``real`` (B, T) is given, hidden vectors of padding are left out."""
    assert list(ours.keys()) == list(theirs.keys())
    for name in ours:
        if name == "past_key_values":
            _assert_caches(ours[name], theirs[name])
            continue
        mine, other = ours[name], theirs[name]
        pairs = zip(mine, other, strict=True) if isinstance(mine, tuple) else [(mine, other)]
        for a, b in pairs:
            chosen = real if real is not None and a.shape[:2] == real.shape else slice(None)
            if real is not None and a.ndim == 4:
                chosen = real[:, None, :, None].expand_as(a)
            torch.testing.assert_close(a[chosen], b[chosen], rtol=0, atol=ATOL, msg=name)


def _assert_caches(ours: KeyValueCache, theirs: Any) -> None:
    for (key, value), layer in zip(ours, theirs.layers, strict=True):
        torch.testing.assert_close(key, layer.keys, rtol=0, atol=ATOL)
        torch.testing.assert_close(value, layer.values, rtol=0, atol=ATOL)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("kind", ROTARY)
def test_every_head_with_every_rotary_type(head: str, kind: str) -> None:
    theirs, ours = pair(head, rope_parameters=dict(ROTARY[kind]))
    given = text_inputs(length=60)
    with torch.no_grad():
        assert_close(ours(**given, **EVERYTHING), theirs(**given, **EVERYTHING), given["attention_mask"].bool())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("padding", ["left", "right"])
def test_every_shape(shape: str, padding: str) -> None:
    theirs, ours = pair("ApertusForCausalLM", **SHAPES[shape])
    given = text_inputs(padding=padding)
    with torch.no_grad():
        got, want = ours(**given, **EVERYTHING), theirs(**given, **EVERYTHING)
    # Keys of padding depend on what padding attends to, so they are left out.
    chosen = ("logits", "hidden_states")
    mine, other = ({name: each[name] for name in chosen} for each in (got, want))
    assert_close(mine, other, given["attention_mask"].bool())


def test_a_row_in_steps_is_the_row_at_once() -> None:
    theirs, ours = pair("ApertusForCausalLM", num_key_value_heads=1)
    ids = torch.randint(4, 41, (2, 9))
    with torch.no_grad():
        whole = ours(ids)
        first = ours(ids[:, :4])
        step = ours(ids[:, 4:], past_key_values=first.past_key_values, attention_mask=torch.ones(2, 9))
        want = theirs(ids)
    torch.testing.assert_close(step.logits, whole.logits[:, 4:], rtol=0, atol=ATOL)
    torch.testing.assert_close(step.logits, want.logits[:, 4:], rtol=0, atol=ATOL)
    _assert_caches(step.past_key_values, want.past_key_values)
    assert first.past_key_values.get_seq_length() == 4  # a step leaves what it was given alone


def test_dynamic_positions_follow_each_row_and_not_its_neighbours() -> None:
    theirs, ours = pair("ApertusModel", rope_parameters=dict(ROTARY["dynamic"]), max_position_embeddings=16)
    ids = torch.randint(4, 41, (1, 30))
    with torch.no_grad():
        long, short = ours(ids).last_hidden_state, ours(ids[:, :10]).last_hidden_state
        torch.testing.assert_close(long, theirs(ids).last_hidden_state, rtol=0, atol=ATOL)
        both = torch.cat([ids, ids])
        mask = torch.ones(2, 30, dtype=torch.long)
        mask[1, 10:] = 0
        places = torch.arange(30).repeat(2, 1) * mask
        batch = ours(both, mask, places).last_hidden_state
    torch.testing.assert_close(batch[:1], long, rtol=0, atol=ATOL)
    torch.testing.assert_close(batch[1:, :10], short, rtol=0, atol=ATOL)
    with torch.no_grad():
        assert not torch.allclose(long[:, :10], short, atol=1e-3)  # the stretch is really there


def test_a_scale_of_zero_is_none_in_yarn() -> None:
    """As transformers 5 writes it into files; both ask whether the number is true."""
    for zero in ({"mscale": 0.0, "mscale_all_dim": 0.0}, {"mscale": 1.0, "mscale_all_dim": 0.0}, {"mscale": 0}):
        theirs, ours = pair("ApertusModel", rope_parameters={**ROTARY["yarn"], **zero})
        given = text_inputs()
        with torch.inference_mode():
            want, got = theirs(**given).last_hidden_state, ours(**given).last_hidden_state
        real = given["attention_mask"].bool()
        torch.testing.assert_close(got[real], want[real], rtol=0, atol=ATOL)


@pytest.mark.parametrize("kind", ROTARY)
def test_far_positions_turn_by_the_same_angle(kind: str) -> None:
    settings = {**SMALL, "hidden_size": 512, "max_position_embeddings": 65536}
    config = transformers.ApertusConfig(**settings, rope_parameters=dict(ROTARY[kind]))
    places = torch.tensor([[0, 1, 9_999, 65_535]])
    cos, sin = transformers.models.apertus.modeling_apertus.ApertusRotaryEmbedding(config)(torch.zeros(1), places)
    ours = angles(
        places, frequencies(ApertusConfig(**settings, rope_parameters=dict(ROTARY[kind])).rope_parameters, 128, 65536)
    )
    torch.testing.assert_close(ours[0], cos[..., :64], rtol=0, atol=1e-6)
    torch.testing.assert_close(ours[1], sin[..., :64], rtol=0, atol=1e-6)


def test_losses_and_gradients() -> None:
    for head, labels in (("ApertusForCausalLM", 41), ("ApertusForTokenClassification", 3)):
        theirs, ours = pair(head, num_labels=3)
        given = text_inputs()
        wanted = torch.randint(0, labels, (3, 7))
        wanted[:, ::3] = -100
        results = [model(**given, labels=wanted) for model in (ours, theirs)]
        torch.testing.assert_close(results[0].loss, results[1].loss, rtol=0, atol=1e-5)
        for result in results:
            result.loss.backward()
        other = dict(theirs.named_parameters())
        for name, weight in ours.named_parameters():
            torch.testing.assert_close(weight.grad, other[name].grad, rtol=1e-3, atol=1e-5, msg=name)


def test_options_of_the_call() -> None:
    theirs, ours = pair("ApertusForCausalLM")
    ids = torch.randint(4, 41, (2, 6))
    with torch.no_grad():
        want = theirs(ids)
        whole = ours(ids)
        embeds = ours(inputs_embeds=ours.get_input_embeddings()(ids))
        last = ours(ids, logits_to_keep=1).logits
        chosen = ours(ids, logits_to_keep=torch.tensor([[2], [4]])).logits
        named = ours(ids, use_cache=False, return_dict=False)
        moved = ours(ids, cache_position=torch.arange(3, 9))
        moved_theirs = theirs(ids, position_ids=torch.arange(3, 9)[None])
    torch.testing.assert_close(whole.logits, want.logits, rtol=0, atol=ATOL)
    assert torch.equal(embeds.logits, whole.logits)
    torch.testing.assert_close(last, whole.logits[:, -1:], rtol=0, atol=ATOL)
    torch.testing.assert_close(chosen[:, 0], whole.logits[torch.arange(2), torch.tensor([2, 4])], rtol=0, atol=ATOL)
    assert isinstance(named, tuple)
    assert len(named) == 1
    torch.testing.assert_close(moved.logits, moved_theirs.logits, rtol=0, atol=ATOL)


def test_masks_of_four_axes_replace_the_causal_order() -> None:
    theirs, ours = pair("ApertusModel")
    ids = torch.randint(4, 41, (2, 5))
    visible = torch.ones(5, 5, dtype=torch.bool).tril()
    visible[3, 1] = False
    additive = torch.zeros(2, 1, 5, 5).masked_fill(~visible, torch.finfo(torch.float32).min)
    with torch.no_grad():
        want = theirs(ids, attention_mask=additive).last_hidden_state
        for mask in (additive, visible.expand(2, 1, 5, 5), visible.expand(2, 5, 5)):
            torch.testing.assert_close(ours(ids, mask).last_hidden_state, want, rtol=0, atol=ATOL)


def test_bad_inputs_are_named() -> None:
    model = ApertusModel.from_config(ApertusConfig(**SMALL))
    ids = torch.ones(1, 3, dtype=torch.long)
    with pytest.raises(InputError, match="neither of input_ids and inputs_embeds"):
        model()
    with pytest.raises(InputError, match=r"attention_mask has shape \(1, 4\), expected \(1, 3\)"):
        model(ids, torch.ones(1, 4))
    cache = model(ids).past_key_values
    with pytest.raises(InputError, match="past_key_values has 1 layers, expected 2"):
        model(ids, past_key_values=cache[:1])


def test_the_trained_checkpoint_loads_from_its_shards() -> None:
    folder = DATA / "apertus-glossary"
    ours = ApertusForCausalLM.from_pretrained(folder)
    theirs = transformers.ApertusForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.randint(4, 6144, (2, 33))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, rtol=0, atol=1e-4)
    report = ours.load_report
    assert report is not None
    assert not (report.missing or report.unexpected or report.untied)
    assert ApertusForCausalLM.from_pretrained(folder, dtype="auto").dtype == torch.bfloat16


def test_a_checkpoint_saved_here_opens_there(tmp_path: Path) -> None:
    _, ours = pair("ApertusForCausalLM", tie_word_embeddings=True, rope_parameters=dict(ROTARY["yarn"]))
    ours.save_pretrained(tmp_path)
    theirs = transformers.ApertusForCausalLM.from_pretrained(tmp_path).eval()
    again = ApertusForCausalLM.from_pretrained(tmp_path)
    ids = torch.randint(4, 41, (1, 8))
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, ours(ids).logits, rtol=0, atol=ATOL)
        assert torch.equal(again(ids).logits, ours(ids).logits)
    assert again.lm_head.weight is again.model.embed_tokens.weight


def test_a_model_without_a_head_is_enough_for_a_fresh_head(tmp_path: Path) -> None:
    ApertusModel.from_config(ApertusConfig(**SMALL)).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"lacks 2 weights of ApertusForTokenClassification\n +score"):
        ApertusForTokenClassification.from_pretrained(tmp_path)
    model = ApertusForTokenClassification.from_pretrained(tmp_path, init_missing=True, num_labels=5)
    assert model.load_report is not None
    assert model.load_report.missing == ("score.bias", "score.weight")
    assert model(torch.ones(1, 3, dtype=torch.long)).logits.shape == (1, 3, 5)


def test_lost_buffers_start_as_published(tmp_path: Path) -> None:
    _, ours = pair("ApertusModel")
    ours.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    kept = {name: tensor for name, tensor in stored.items() if not name.endswith((".beta", ".eps"))}
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    again = ApertusModel.from_pretrained(tmp_path, init_missing=True)
    assert again.load_report is not None
    assert len(again.load_report.missing) == 4
    ids = torch.randint(4, 41, (1, 8))
    with torch.no_grad():
        torch.testing.assert_close(again(ids).last_hidden_state, ours(ids).last_hidden_state)


def test_a_fresh_model_starts_as_transformers_starts_it() -> None:
    ours = ApertusForCausalLM(ApertusConfig(**SMALL)).state_dict()
    theirs = transformers.ApertusForCausalLM(transformers.ApertusConfig(**SMALL)).state_dict()
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        if "norm" in name or "act_fn" in name:
            torch.testing.assert_close(ours[name], tensor, msg=name)


def test_xielu_is_what_it_is_called() -> None:
    theirs = transformers.activations.XIELUActivation(dtype=torch.float64)
    x = torch.cat([torch.linspace(-40, 40, 2001), torch.tensor([0.0, -0.0, 1e-7, -1e-7, -1e-5])]).double()
    got = ops.xielu(x, theirs.alpha_p, theirs.alpha_n, theirs.beta, theirs.eps)
    torch.testing.assert_close(got, theirs(x), rtol=1e-12, atol=0)


def test_half_precision_stays_half() -> None:
    model = ApertusForCausalLM.from_config(ApertusConfig(**SMALL)).to(torch.bfloat16)
    out = model(torch.ones(1, 3, dtype=torch.long), **EVERYTHING)
    found = {out.logits.dtype, *(t.dtype for t in out.hidden_states), *(t.dtype for t in out.past_key_values[0])}
    assert found == {torch.bfloat16}
