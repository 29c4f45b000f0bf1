"""Inputs of a decoder with a cache: sizes that depend on each other, an empty cache, half precision."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pinnace.errors import InputError
from pinnace.runtime.engine.inputs import check_inputs, example_inputs
from pinnace.spec import CacheSpec, Manifest, TensorSpec
from tests.tiny_bundle import LENGTH, VOCABULARY, make_manifest

CACHE_SHAPE = ("batch", 2, "past_sequence", 4)
DTYPES = {"input_ids": "int64", "attention_mask": "int64", "position_ids": "int64", "past_key_values.0.key": "float32"}


def decoder(tmp_path: Path, *, in_place: bool = False) -> Manifest:
    inputs = (
        TensorSpec("input_ids", "int64", ("batch", "sequence")),
        TensorSpec("attention_mask", "int64", ("batch", "total_sequence")),
        TensorSpec("position_ids", "int64", ("batch", "sequence")),
        TensorSpec("past_key_values.0.key", "float32", CACHE_SHAPE),
    )
    outputs = (TensorSpec("logits", "float32", ("batch", 1, VOCABULARY)),)
    cache = CacheSpec(layers=1, heads=2, head_size=4, capacity=LENGTH, in_place=in_place)
    return dataclasses.replace(make_manifest(tmp_path), inputs=inputs, outputs=outputs, cache=cache)


def step(past: int, new: int, total: int | None = None, dtype: str = "float32") -> dict[str, np.ndarray[Any, Any]]:
    return {
        "input_ids": np.zeros((3, new), np.int64),
        "attention_mask": np.ones((3, past + new if total is None else total), np.int64),
        "position_ids": np.zeros((3, new), np.int64),
        "past_key_values.0.key": np.zeros((3, 2, past, 4), dtype),
    }


@pytest.mark.parametrize(("past", "new"), [(0, 5), (7, 1), (LENGTH - 1, 1)])
def test_good_steps(tmp_path: Path, past: int, new: int) -> None:
    assert set(check_inputs(decoder(tmp_path), step(past, new), DTYPES, 1 << 30)) == set(DTYPES)


@pytest.mark.parametrize(
    ("inputs", "word"),
    [
        (step(7, 1, total=1), r"attention_mask covers 1 positions, expected 8: 7 in the cache and 1 new"),
        (step(LENGTH, 1), "17 tokens a row, the model takes 16"),
        (step(3, 0), "sequence is 0"),
        ({**step(3, 1), "position_ids": np.full((3, 1), LENGTH)}, r"position_ids\[0, 0\] is 16; expected 0 to 15"),
        (step(3, 1, dtype="float64"), "past_key_values.0.key has the type float64, expected float32"),
        (
            {**step(3, 1), "past_key_values.0.key": np.zeros((3, 1, 3, 4), np.float32)},
            r"has shape \[3, 1, 3, 4\]; expected",
        ),
    ],
)
def test_bad_steps(tmp_path: Path, inputs: dict[str, Any], word: str) -> None:
    with pytest.raises(InputError, match=word):
        check_inputs(decoder(tmp_path), inputs, DTYPES, 1 << 30)


def test_a_shared_buffer_is_larger_than_its_content(tmp_path: Path) -> None:
    inputs = step(LENGTH, 1, total=6)
    assert check_inputs(decoder(tmp_path, in_place=True), inputs, DTYPES, None)["attention_mask"].shape == (3, 6)


def test_a_half_precision_graph_takes_its_own_type(tmp_path: Path) -> None:
    half = {**DTYPES, "past_key_values.0.key": "float16"}
    assert check_inputs(decoder(tmp_path), step(2, 1, dtype="float16"), half, None)
    with pytest.raises(InputError, match="float32, expected float16"):
        check_inputs(decoder(tmp_path), step(2, 1), half, None)


def test_examples_are_accepted(tmp_path: Path) -> None:
    for manifest in (decoder(tmp_path), decoder(tmp_path, in_place=True)):
        example = example_inputs(manifest, DTYPES)
        assert set(check_inputs(manifest, example, DTYPES, 1 << 30)) == set(DTYPES)
        assert example["past_key_values.0.key"].shape == (1, 2, 0, 4)
