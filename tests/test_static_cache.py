"""A cache of fixed capacity: new keys go to their slots only, stale slots are not seen, wrong sizes are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch

from pinnace.errors import CheckFailed, UsageError
from pinnace.export import lowering_onnx, lowering_static
from pinnace.export.builder import Exported, export
from pinnace.runtime.bundles.bundle import Bundle
from pinnace.runtime.checks.verify import verify_bundle
from pinnace.runtime.engine.session import Session
from pinnace.runtime.generation.generator import Generator
from tests.apertus_oracle import pair
from tests.export_oracle import run

Array = npt.NDArray[Any]
CAPACITY = 24
ATOL = 2e-5


def exported(folder: Path, settings: dict[str, Any] | None = None, **options: Any) -> tuple[Any, Exported]:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    theirs, _ = pair("ApertusForCausalLM", **settings or {})
    theirs.save_pretrained(folder / "checkpoint")
    static = {"capacity": CAPACITY, **options.pop("static", {})}
    choices = {"target": "onnx", "opset": 24, "static": static, "validate": False, **options}
    return theirs, export(folder / "checkpoint", task="generate", output=folder / "bundle", **choices)


def slots(made: Exported, rows: int) -> dict[str, Array]:
    """A cache full of another text's keys and values."""
    rng = np.random.default_rng(1)
    return {
        spec.name: rng.standard_normal((rows, *map(int, spec.shape[1:])), np.float32) * 3
        for spec in made.manifest.inputs
        if len(spec.shape) == 4
    }


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_prompts_and_steps_are_those_of_transformers(tmp_path: Path, kv_heads: int) -> None:
    theirs, made = exported(tmp_path, {"num_key_value_heads": kv_heads})
    rng = np.random.default_rng(0)
    cache, lengths = slots(made, 3), np.zeros(3, np.int64)
    rows: list[list[int]] = [[], [], []]
    for counts in ([9, 4, 1], [1, 1, 1], [1, 1, 1]):
        width = max(counts)
        ids = rng.integers(4, 41, (3, width))
        for row, count in enumerate(counts):
            rows[row].extend(ids[row, :count].tolist())
        before, lengths = lengths, lengths + counts
        given = {
            "input_ids": ids,
            "attention_mask": (np.arange(CAPACITY) < lengths[:, None]).astype(np.int64),
            "position_ids": before[:, None] + np.arange(width),
        }
        got = run(made, {**given, **cache})
        for row, tokens in enumerate(rows):
            with torch.inference_mode():
                want = theirs(torch.tensor([tokens]), use_cache=True)
            np.testing.assert_allclose(got["logits"][row, 0], want.logits[0, -1], rtol=0, atol=ATOL)
            for i, layer in enumerate(want.past_key_values.layers):
                for part, tensor in (("key", layer.keys), ("value", layer.values)):
                    present, past = got[f"present.{i}.{part}"][row], cache[f"past_key_values.{i}.{part}"][row]
                    np.testing.assert_allclose(present[:, : len(tokens)], tensor[0], rtol=0, atol=ATOL)
                    # Behind the new tokens, padding included, nothing has changed.
                    end = int(before[row]) + width
                    np.testing.assert_array_equal(present[:, end:], past[:, end:])
        cache = {n.replace("present", "past_key_values"): a for n, a in got.items() if n.startswith("present")}


@pytest.mark.parametrize("static", [{}, {"batch": 1, "sequence": 1}, {"batch": 2, "sequence": 5}], ids=str)
def test_checked_and_standard(tmp_path: Path, static: dict[str, int]) -> None:
    _, made = exported(tmp_path, static=static, validate=True)
    cache, shapes = made.manifest.cache, {s.name: s.shape for s in (*made.manifest.inputs, *made.manifest.outputs)}
    assert cache is not None and cache.fixed and cache.in_place and cache.capacity == CAPACITY
    assert made.manifest.limits.sequence == CAPACITY
    assert shapes["past_key_values.1.key"] == shapes["present.1.key"]
    assert shapes["attention_mask"] == (static.get("batch", "batch"), CAPACITY)
    graph = onnx.load(made.path / "model.onnx", load_external_data=False)
    onnx.checker.check_model(made.path / "model.onnx")
    assert {node.domain for node in graph.graph.node} <= {"", "pinnace"}
    kinds = [node.op_type for node in graph.graph.node]
    assert kinds.count("TensorScatter") == 2 * cache.layers and kinds.count("Concat") <= 1
    assert verify_bundle(made.path).ok
    # GenAI would give it a mask that grows.
    assert not (made.path / "genai_config.json").exists()


def test_half_precision_passes_its_gate(tmp_path: Path) -> None:
    _, made = exported(tmp_path, validate=True, precision="fp16")
    assert made.certificate["variants"]["fp16"]["verdict"] == "passed"


@pytest.mark.parametrize("fault", ["one slot too far", "stale slots seen", "heads' groups mixed up"])
def test_faults_are_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    if fault == "one slot too far":
        true = lowering_static._lengths_and_start
        monkeypatch.setattr(
            lowering_static, "_lengths_and_start", lambda e, mask, new: (true(e, mask, new)[0], true(e, mask, new)[0])
        )
    elif fault == "stale slots seen":
        monkeypatch.setattr(
            lowering_static,
            "_visible_slots",
            lambda e, _mask, q, start: e.op("LessOrEqual", *[_places(e, q, start)] * 2),
        )
    else:
        monkeypatch.setattr(lowering_onnx, "ungroup_heads", lambda e, context, *_: _unsorted(e, context))
    with pytest.raises(CheckFailed):
        exported(tmp_path, validate=True)
    assert not (tmp_path / "bundle").exists()


def _places(e: Any, query: Any, start: Any) -> Any:
    """Zeros (B, 1, T, capacity), so that every slot counts as visible."""
    mask = e.needed(3)
    steps = e.op("Range", e.constant(0), e.op("Squeeze", e.op("Shape", query, start=1, end=2)), e.constant(1))
    rows = e.op("Unsqueeze", e.op("Add", e.op("Unsqueeze", start, e.constant([1])), steps), e.constant([1, 3]))
    return e.op("Mul", e.op("Add", rows, e.op("Unsqueeze", mask, e.constant([1, 2]))), e.constant(0))


def _unsorted(e: Any, context: Any) -> Any:
    return e.op("Reshape", e.op("Transpose", context, perm=[0, 2, 1, 3]), e.constant([0, -1, 32]))


def test_its_generator_stops_at_the_capacity(tmp_path: Path) -> None:
    _, made = exported(tmp_path)
    generator = Generator(Session(Bundle.open(made.path)))
    assert generator.decoder.limit == CAPACITY
    (step,) = generator.generate([np.arange(4, 4 + CAPACITY - 2)], max_new_tokens=2, eos_token_id=())
    assert len(step[0].ids) == 2


def test_a_graph_of_one_shape_is_not_generated_with(tmp_path: Path) -> None:
    _, made = exported(tmp_path, static={"batch": 1, "sequence": 1})
    with pytest.raises(UsageError, match="input_ids has the fixed shape"):
        Generator(Session(Bundle.open(made.path)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"target": "ort"}, "--target onnx --opset 24"),
        ({"opset": 23}, "got --target onnx --opset 23"),
        ({"static": {"past_sequence": 3}}, "past_sequence contradict"),
        ({"attentions": True}, "--attentions contradict"),
        ({"static": {"capacity": 0}}, "expected 1 to"),
        ({"static": {"capacity": 1 << 20}}, "expected 1 to"),
        ({"static": {"sequence": CAPACITY + 1}}, f"expected {CAPACITY + 1} to"),
    ],
    ids=str,
)
def test_what_cannot_be_is_named(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        exported(tmp_path, **changes)
    assert not (tmp_path / "bundle").exists()


def test_a_task_without_a_cache_has_no_capacity(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="token-classification keeps no keys and values"):
        export(
            "apertus", task="ner", random_weights=True, output=tmp_path / "bundle", target="onnx", opset=24,
            config="hidden_size=32,num_hidden_layers=1,num_attention_heads=4,num_key_value_heads=2,intermediate_size=64,"
            "vocab_size=41,max_position_embeddings=64", static={"capacity": 8},
        )  # fmt: skip
