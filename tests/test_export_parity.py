"""The written ONNX gives transformers' numbers: every head, target, activation, and shape of a configuration."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pinnace.export.lowering_onnx import ACTIVATION_ROWS
from tests.bert_oracle import HEADS, text_inputs
from tests.export_oracle import assert_same, exported, reference, run

TARGETS = ("ort", "onnx")
# One activation for each pair of head and target: together the pairs meet them all.
PAIRS = [(head, target) for target in TARGETS for head in HEADS]
ACTIVATIONS = [name for name in ACTIVATION_ROWS if name != "linear"]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def shape_of(index: int, head: str) -> dict[str, Any]:
    """A random small configuration with odd sizes."""
    chance = random.Random(index)
    heads = chance.choice([1, 2, 3, 5])
    return {
        "vocab_size": chance.randrange(31, 60),
        "hidden_size": heads * chance.choice([3, 4, 7]),
        "num_hidden_layers": chance.choice([1, 2, 3]),
        "num_attention_heads": heads,
        "intermediate_size": chance.randrange(5, 40),
        "max_position_embeddings": chance.randrange(17, 33),
        "type_vocab_size": chance.choice([1, 2, 3]),
        "hidden_act": ACTIVATIONS[index % len(ACTIVATIONS)],
        "layer_norm_eps": chance.choice([1e-12, 1e-5]),
        "tie_word_embeddings": chance.random() < 0.5,
        "num_labels": 2 if head == "BertForQuestionAnswering" else chance.choice([1, 2, 5]),
    }


def test_the_pairs_meet_every_activation() -> None:
    assert len(PAIRS) >= len(ACTIVATIONS)
    assert len(HEADS) == 9


@pytest.mark.parametrize(("index", "head", "target"), [(i, *names) for i, names in enumerate(PAIRS)])
def test_every_head_and_target(tmp_path: Path, index: int, head: str, target: str) -> None:
    settings = shape_of(index, head)
    theirs, made = exported(tmp_path, head, settings=settings, target=target)
    assert made.manifest.head == head
    assert made.unexpected == made.fresh == ()
    causal = head == "BertLMHeadModel"
    for batch, length, padding in ((1, 1, "right"), (1, 16, "right"), (3, 7, "right"), (3, 7, "left")):
        if causal and padding == "left":
            continue  # a cache is filled by right-padded prompts
        given: dict[str, Any] = dict(
            text_inputs(
                head,
                batch,
                length,
                padding=padding,
                types=settings["type_vocab_size"],
                vocabulary=settings["vocab_size"],
            )
        )
        if causal:
            last = given["attention_mask"].sum(1) - 1
            del given["token_type_ids"]
            given["position_ids"] = torch.arange(length).expand(batch, -1).contiguous()
            want = reference(theirs, given, use_cache=False)
            want["logits"] = want["logits"][np.arange(batch), last.numpy()][:, None]
            cache = made.manifest.cache
            assert cache is not None
            empty = torch.zeros(batch, cache.heads, 0, cache.head_size)
            given |= {s.name: empty for s in made.manifest.inputs if s.name.startswith("past")}
            got = {name: array for name, array in run(made, given).items() if not name.startswith("present")}
        else:
            want, got = reference(theirs, given), run(made, given)
        assert_same(got, want)
