"""Dynamic rotary scaling turns keys by how long a row is: one in a batch must be as long as it is alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pinnace.export.builder import export
from pinnace.runtime.engine.session import load
from pinnace.runtime.generation.generator import Generator
from pinnace.runtime.pipelines.feeds import make_feeds
from pinnace.runtime.pipelines.table import pipeline
from pinnace.spec import Manifest
from tests.apertus_oracle import pair
from tests.generation_bundles import VOCABULARY, prompts, save_tokenizer

POSITIONS = 8  # those that were trained; the model takes four times as many
LENGTHS = (POSITIONS, POSITIONS + 1, 2 * POSITIONS, POSITIONS - 1, 1, 3 * POSITIONS)
TEXTS = ["abcdefgh", "abcdefghi", "", "abcdefghijklmnopqrstuvwx", "a", "abcdefg"]
both_targets = pytest.mark.parametrize("target", ["ort", "onnx"])


def make_bundle(folder: Path, head: str, target: str, **settings: Any) -> Path:
    torch.manual_seed(0)
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    model, _ = pair(head, rope_parameters=rope, max_position_embeddings=POSITIONS, vocab_size=VOCABULARY, **settings)
    model.save_pretrained(folder / "checkpoint")
    save_tokenizer(folder / "checkpoint")
    return export(folder / "checkpoint", output=folder / "bundle", target=target, validate=False).path


@both_targets
def test_generated_rows_are_those_of_each_alone(tmp_path: Path, target: str) -> None:
    generator = Generator(load(make_bundle(tmp_path, "ApertusForCausalLM", target), threads=1))
    rows = prompts(*LENGTHS)
    options: dict[str, Any] = {"max_length": 4 * POSITIONS, "eos_token_id": [], "logprobs": 0}
    together = [one[0] for one in generator.generate(rows, **options)]
    for row, got in zip(rows, together, strict=True):
        alone = generator.generate([row], **options)[0][0]
        assert got.ids.tolist() == alone.ids.tolist(), len(row)
        assert got.logprobs is not None and alone.logprobs is not None
        np.testing.assert_allclose(got.logprobs, alone.logprobs, rtol=0, atol=1e-4)


@both_targets
@pytest.mark.parametrize("head", ["ApertusModel", "ApertusForTokenClassification"])
def test_encoded_rows_are_those_of_each_alone(tmp_path: Path, target: str, head: str) -> None:
    bundle = make_bundle(tmp_path, head, target, num_labels=3)
    pipe = pipeline(Manifest.from_json((bundle / "manifest.json").read_text("utf-8")).task, bundle, threads=1)
    together, alone = ([numbers(answer) for answer in pipe(TEXTS, batch_size=most)] for most in (len(TEXTS), 1))
    assert [len(row) for row in together] == [len(row) for row in alone]
    for got, want in zip(together, alone, strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


def numbers(answer: Any) -> Any:
    """The vectors of a text's tokens, or the scores of its entities."""
    return [record["score"] for record in answer] if not answer or isinstance(answer[0], dict) else answer[0]


@pytest.mark.parametrize("fixed", [(None, None), (4, None), (4, 6)])
def test_padding_stays_at_its_rows_last_place(fixed: tuple[int | None, int | None], tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, "ApertusModel", "ort")
    manifest = Manifest.from_json((bundle / "manifest.json").read_text("utf-8"))
    rows, tokens = fixed
    shape = (rows or "batch", tokens or "sequence")
    inputs = tuple(dataclasses.replace(spec, shape=shape) for spec in manifest.inputs)
    encodings = [SimpleNamespace(ids=[5] * n, attention_mask=[1] * n, type_ids=[0] * n) for n in (4, 2, 0)]
    feeds = make_feeds(dataclasses.replace(manifest, inputs=inputs), encodings, 2, 1, rows)
    places = feeds["position_ids"]
    assert places.dtype == np.int64 and places.shape == feeds["input_ids"].shape == (rows or 3, tokens or 4)
    assert places.max(axis=1).tolist() == [3, 1, 0, 0][: rows or 3]
    for row, count in zip(places, (4, 2, 1), strict=False):
        assert row[:count].tolist() == list(range(count))
