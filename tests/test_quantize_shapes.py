"""Quantizing graphs of fixed shape, and models that take few tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pinnace
from pinnace.errors import UsageError
from pinnace.quantize.calibration import Activations, observe
from pinnace.quantize.examples.random_inputs import inputs_of, random_feeds, random_inputs
from pinnace.quantize.examples.source import read_examples
from pinnace.quantize.judging import latency
from pinnace.quantize.projections import find_groups
from pinnace.quantize.recipe import load_graph
from pinnace.quantize.request import check_bundle
from pinnace.quantize.schemes import SCHEMES
from pinnace.runtime.bundles.bundle import Bundle
from pinnace.runtime.tokenization.tokenizer import load_tokenizer
from pinnace.spec import Manifest
from tests.bert_oracle import pair
from tests.conftest import DATA
from tests.generation_bundles import MakeBundle, decoder_of
from tests.quantized_bundles import WIDE, copied, quick_clock

__all__ = ["decoder_of", "quick_clock"]

BundleOf = Callable[[str], Path]


def fixed(bundle: Path, **sizes: int) -> Manifest:
    """A bundle's manifest as if its graph had been exported with ``--static``."""
    manifest = Bundle.open(bundle).manifest
    inputs = (
        dataclasses.replace(spec, shape=tuple(sizes.get(str(axis), axis) for axis in spec.shape))
        for spec in manifest.inputs
    )
    return dataclasses.replace(manifest, inputs=tuple(inputs))


def observed(bundle: Path, feed: dict[str, Any]) -> dict[str, Activations]:
    """What every group of a bundle reads."""
    model = load_graph(bundle / "model.onnx")
    return observe(model, bundle, {group.name: group.everywhere for group in find_groups(model.graph)}, [feed])


def test_a_cache_of_fixed_capacity_is_calibrated_as_one_that_grows(decoder_of: MakeBundle, tmp_path: Path) -> None:
    """Empty slots are not attended to, and the rows of padding are left out."""
    ids = np.random.default_rng(0).integers(3, 6144, (2, 24))
    found = []
    for name, width in (("apertus-onnx", 24), ("apertus-static", 512)):
        bundle = copied(decoder_of(name), tmp_path / name)  # a probe is written into it
        feed = inputs_of(Bundle.open(bundle).manifest, ids)
        assert feed["attention_mask"].shape == (2, width) and feed["attention_mask"].sum() == ids.size
        feed["attention_mask"][1, 10:] = 0
        found.append(observed(bundle, feed))
    growing, static = found
    assert growing.keys() == static.keys()
    for name, own in static.items():
        assert own.count == growing[name].count == 34
        np.testing.assert_allclose(own.peak, growing[name].peak, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(own.mean, growing[name].mean, rtol=1e-4, atol=1e-5)


def test_the_padding_of_choices_is_left_out(tmp_path: Path) -> None:
    model, _ = pair("BertForMultipleChoice", hidden_size=36, intermediate_size=64)
    model.save_pretrained(tmp_path / "checkpoint")
    bundle = tmp_path / "bundle"
    pinnace.export(str(tmp_path / "checkpoint"), task="multiple-choice", output=bundle, validate=False)
    feed = inputs_of(Bundle.open(bundle).manifest, np.full((1, 12), 9))
    feed["attention_mask"][0, 1, 8:] = 0
    assert observed(bundle, feed)["bert.encoder.layer.0.intermediate.dense.weight"].count == 12 + 8


@pytest.mark.parametrize(
    ("name", "sizes", "shape"),
    [
        ("tiny-classify", {}, (3, 20)),
        ("tiny-classify", {"sequence": 8}, (3, 8)),
        ("tiny-classify", {"batch": 2}, (2, 20)),
        ("tiny-classify", {"batch": 1, "sequence": 64}, (1, 64)),
        ("tiny-choice", {"choices": 4, "sequence": 8}, (3, 4, 8)),
        ("tiny-choice", {"batch": 2, "choices": 4, "sequence": 8}, (2, 4, 8)),
    ],
)
def test_random_inputs_have_the_shape_that_the_graph_fixes(
    bundle_of: BundleOf, name: str, sizes: dict[str, int], shape: tuple[int, ...]
) -> None:
    manifest = fixed(bundle_of(name), **sizes)
    made = random_inputs(manifest, np.random.default_rng(0), 3, 20)
    assert {array.shape for array in made.values()} == {shape} and made["attention_mask"].all()
    for feed in random_feeds(manifest):
        assert all(isinstance(axis, str) or axis == size for spec in manifest.inputs
                   for axis, size in zip(spec.shape, feed[spec.name].shape, strict=True))  # fmt: skip


@pytest.mark.usefixtures("quick_clock")
@pytest.mark.parametrize(
    ("static", "kinds"),
    [({"batch": 2}, ["short row", "batch"]), ({"batch": 1, "sequence": 64}, ["fixed batch"])],
    ids=["rows", "rows and tokens"],
)
def test_an_encoder_of_fixed_shape_is_judged_and_timed(
    tmp_path: Path, static: dict[str, int], kinds: list[str]
) -> None:
    bundle = tmp_path / "bundle"
    source = str(DATA / "tiny-classify")
    pinnace.export(source, task="classify", output=bundle, static=static, validate=False, **WIDE)
    report = pinnace.quantize(bundle, precision="int8", threads=1, allow_degraded=True)
    assert report.chosen is not None and list(report.chosen.latency.milliseconds) == kinds
    assert report.chosen.candidate.evaluation.examples > 100


@pytest.mark.parametrize(
    ("sizes", "refused"),
    [
        ({"sequence": 1}, "input_ids has the fixed shape \\['batch', 1\\]"),
        ({"batch": 1}, "input_ids has the fixed shape \\[1, 'sequence'\\]"),
        ({"past_sequence": 4}, "past_key_values.0.key has the fixed shape"),
    ],
)
def test_a_decoder_of_fixed_rows_or_tokens_is_refused_at_once(
    decoder_of: MakeBundle, tmp_path: Path, sizes: dict[str, int], refused: str
) -> None:
    manifest = fixed(decoder_of("onnx"), **sizes)
    for judge, scheme in ((True, "int4-uncalibrated"), (False, "int8")):
        with pytest.raises(UsageError, match=refused):
            check_bundle(manifest, [SCHEMES[scheme]], None, judge=judge)
    check_bundle(manifest, [SCHEMES["int4-uncalibrated"]], None, judge=False)
    check_bundle(Bundle.open(decoder_of("static")).manifest, [SCHEMES["int8"]], None, judge=True)
    said: list[str] = []
    bundle = copied(decoder_of("onnx"), tmp_path / "bundle")
    (bundle / "manifest.json").write_text(manifest.to_json())
    with pytest.raises(UsageError, match=refused):
        pinnace.quantize(bundle, precision="int8", progress=said.append)
    assert said == []


def test_a_decoder_of_few_tokens_is_timed(decoder_of: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt and its steps share what the model takes."""
    bundle = Bundle.open(decoder_of("onnx"))
    limits = dataclasses.replace(bundle.manifest.limits, sequence=7)
    short = Bundle(bundle.path, dataclasses.replace(bundle.manifest, limits=limits), verified=True)
    monkeypatch.setattr(latency, "ROUND_SECONDS", 0.0)
    found = latency.measure(short, ("fp32",), threads=1, rounds=1)
    assert list(found["fp32"].milliseconds) == ["prompt of 4", "3 steps"]


@pytest.mark.parametrize("tokens", [8, 32, 64])
@pytest.mark.parametrize("task", ["fill-mask", "pretraining"])
def test_the_masks_of_built_in_texts_lie_within_a_short_row(task: str, tokens: int) -> None:
    """Also with a vocabulary of 640 pieces, which cuts most words into letters."""
    tokenizer = load_tokenizer(DATA / "tiny-mlm")
    for example in read_examples(None, task, tokens=tokens):
        texts = [example.input] if isinstance(example.input, str) else [example.input[k] for k in ("text", "text_pair")]
        row = tokenizer(*texts, truncation=True, max_length=tokens)
        assert tokenizer.mask_token_id in row["input_ids"], example.input


def test_a_long_row_leaves_the_masks_where_they_were() -> None:
    assert read_examples(None, "fill-mask", tokens=512) == read_examples(None, "fill-mask")


@pytest.mark.parametrize("static", [{"batch": 1}, {"sequence": 1, "capacity": 32}])
def test_an_export_of_a_quantized_decoder_refuses_fixed_shapes_before_it_traces(
    tmp_path: Path, static: dict[str, int]
) -> None:
    said: list[str] = []
    with pytest.raises(UsageError, match=f"--static fixes {min(static.keys() - {'capacity'})}"):
        pinnace.export(
            str(DATA / "apertus-glossary"), task="generate", output=tmp_path / "bundle", precision="int8",
            static=static, progress=said.append,
        )  # fmt: skip
    assert said == [] and not list(tmp_path.iterdir())
