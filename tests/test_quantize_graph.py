"""Rewritten graphs: products are those of the definition, rows do not know their batch, shared weights are right."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from safetensors.numpy import load_file, save_file

import pinnace.export
from pinnace.quantize import int8
from pinnace.quantize import recipe as recipes
from pinnace.quantize.emit import Emitter
from pinnace.quantize.observed import Observed
from pinnace.quantize.projections import find_groups, find_projections
from pinnace.quantize.ranges import rounded_fixed, rounded_tokens
from pinnace.quantize.recipe import KEEP, Recipe, apply, load_graph
from pinnace.quantize.rounding.nearest import channel_codes
from pinnace.quantize.tensors import read_weight
from tests.conftest import DATA
from tests.generation_bundles import MakeBundle, decoder_of
from tests.quantize_graphs import encoder_feed, largest_gap, observed, outputs, random_ids, rewritten
from tests.saturating_sums import can_saturate
from tests.test_quantize_projections import all_sizes, named

__all__ = ["all_sizes", "decoder_of"]

BundleOf = Callable[[str], Path]
QA, NER = "bert-glossary-qa", "bert-glossary-ner"
VOCABULARY = 7541
ALIKE = 1e-6  # a row alone and the row in a batch: the kernels of fp32 parts add up in another order


@pytest.fixture(scope="module")
def qa(bundle_of: BundleOf) -> Path:
    return bundle_of(QA)


def test_taking_the_embedding_apart_changes_nothing(qa: Path, tmp_path: Path) -> None:
    path, model = rewritten(qa, tmp_path, KEEP)
    assert not any(node.op_type == "EmbedLayerNormalization" for node in model.graph)
    feeds = [encoder_feed(random_ids(1, 2, 40, VOCABULARY), [[1] * 40, [1] * 25 + [0] * 15])]
    assert largest_gap(outputs(path, feeds), outputs(qa / "model.onnx", feeds)) < 1e-5


def product_alone(qa: Path, folder: Path, way: str, **options: Any) -> tuple[Any, Any, Any, Any]:
    """One product of the trained model: activations as fp32 gives them, weight, bias, and the integer result."""
    name = "bert.encoder.layer.1.output.dense.weight"
    feeds = [encoder_feed(random_ids(2, 3, 100, VOCABULARY))]
    seen = observed(qa, feeds, folder) if way == "fixed" else None
    model = load_graph(qa / "model.onnx")
    found = next(group for group in find_groups(model.graph) if group.name == name)
    weight, bias = read_weight(found.members[0].weight), found.members[0].bias
    weight = weight if found.members[0].transposed else weight.T
    reads, result = str(found.activations.name), str(found.members[0].result.name)
    recipe = Recipe({name: way}, {}, **options)
    applied = apply(model, recipe, seen or Observed({}))
    values = {str(value.name): value for node in model.graph for value in node.outputs}
    model.graph.outputs.extend([values[reads], values[result]])
    folder.mkdir(exist_ok=True)
    applied.plan.write(folder / "m.onnx_data")
    ir.save(model, folder / "m.onnx")
    got = outputs(folder / "m.onnx", feeds)[0]
    how = seen.range_of(found, per_token=False, reduced=True, smoothing=False) if seen else None
    correction = seen.corrections(found, how, reduced=True)[name] if seen and how else 0
    added = (0 if bias is None else read_weight(bias)) + correction
    return got[reads], (weight, added), got[result], how


def test_token_products_are_those_of_the_definition(qa: Path, tmp_path: Path) -> None:
    x, (weight, bias), got, _ = product_alone(qa, tmp_path, "token", smoothing=False)
    codes, steps = channel_codes(weight, reduced=True)
    assert not can_saturate(codes.T)
    expected = rounded_tokens(x) @ (codes * steps[:, None]).T.astype(np.float32) + bias
    # A number that lies between two codes may be rounded either way: a code is a 127th of a row's peak.
    assert np.abs(got - expected).max() < 0.01 * np.abs(expected).max()
    assert np.median(np.abs(got - expected)) < 1e-5


def test_fixed_products_are_those_of_the_definition(qa: Path, tmp_path: Path) -> None:
    x, (weight, bias), got, how = product_alone(qa, tmp_path, "fixed", smoothing=False)
    codes, steps = channel_codes(weight, reduced=True)
    expected = rounded_fixed(x, how.scale, how.zero) @ (codes * steps[:, None]).T.astype(np.float32) + bias
    assert np.abs(got - expected).max() < 0.01 * np.abs(expected).max()
    assert np.median(np.abs(got - expected)) < 1e-5


@pytest.mark.parametrize("way", ["fixed", "token"])
@pytest.mark.parametrize("smoothing", [False, True])
def test_a_row_alone_is_the_row_in_any_batch(qa: Path, tmp_path: Path, way: str, smoothing: bool) -> None:
    """And whatever stands in its padding."""
    ids = random_ids(3, 4, 24, VOCABULARY)
    seen = observed(qa, [encoder_feed(ids)], tmp_path) if smoothing or way == "fixed" else None
    path, _ = rewritten(qa, tmp_path / "q", way, "rows8", seen, smoothing=smoothing)
    alone = outputs(path, [encoder_feed(row) for row in ids])
    padded, mask = np.zeros((4, 37), np.int64), np.zeros((4, 37), np.int64)
    padded[:, :24], mask[:, :24] = ids, 1
    loud = padded.copy()
    loud[:, 24:] = random_ids(4, 4, 13, VOCABULARY)
    exact = outputs(qa / "model.onnx", [encoder_feed(ids)])[0]
    for feed in (encoder_feed(ids), encoder_feed(padded, mask), encoder_feed(loud, mask)):
        together = outputs(path, [feed])[0]
        for i, single in enumerate(alone):
            for name, value in single.items():
                np.testing.assert_allclose(together[name][i, :24], value[0], rtol=0, atol=5 * ALIKE)
    assert 0.98 < np.corrcoef(exact["start_logits"].ravel(), np.concatenate(
        [row["start_logits"] for row in alone]).ravel())[0, 1] < 1  # fmt: skip


@pytest.mark.parametrize("way", ["fixed", "token", "blocks8", "blocks4"])
def test_rows_of_zeros_give_the_bias_alone(tmp_path: Path, qa: Path, way: str) -> None:
    """A weight and activations that are nothing but zeros are not divided by."""
    zeroed(qa, tmp_path / "b", "bert.encoder.layer.0.intermediate.dense.weight", "bert.embeddings.LayerNorm.weight",
           "bert.embeddings.LayerNorm.bias")  # fmt: skip
    feeds = [encoder_feed(random_ids(5, 2, 300, VOCABULARY))]
    seen = observed(tmp_path / "b", feeds, tmp_path) if way == "fixed" else None
    path, _ = rewritten(tmp_path / "b", tmp_path / "q", way, "rows8", seen, smoothing=way == "fixed")
    got, exact = outputs(path, feeds), outputs(tmp_path / "b" / "model.onnx", feeds)
    assert all(np.isfinite(value).all() for value in got[0].values())
    assert largest_gap(got, exact) < 0.1 * max(np.abs(value).max() for value in exact[0].values()) + 0.3


def zeroed(bundle: Path, folder: Path, *names: str) -> None:
    folder.mkdir()
    (folder / "model.onnx").write_bytes((bundle / "model.onnx").read_bytes())
    raw = bytearray((bundle / "model.safetensors").read_bytes())
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    for name in names:
        start, end = (8 + size + place for place in header[name]["data_offsets"])
        raw[start:end] = bytes(end - start)
    (folder / "model.safetensors").write_bytes(raw)


@pytest.mark.parametrize("name", [QA, "apertus"])
def test_smoothing_is_exact_in_fp32(
    bundle_of: BundleOf, decoder_of: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Folded into LayerNorm and RMSNorm, or a product of its own: without rounding, the model gives its own numbers."""
    folded = {"in norms": 0, "apart": 0}

    def unrounded(emit: Emitter, plan: Any, group: Any, how: Any, **_: Any) -> dict[str, Any]:
        factors = np.random.default_rng(group.inputs).uniform(0.2, 5, group.inputs).astype(np.float32)
        x = emit.smooth(plan, group, factors)
        folded["in norms" if x is group.activations else "apart"] += 1
        for member in group.members:
            weight = plan.constant(f"{member.name}_t", np.ascontiguousarray(int8.smoothed(member, factors).T))
            y = emit.op("MatMul", x, weight)
            emit.replace(member.result, y if member.bias is None else emit.op("Add", y, member.bias))
        return {}

    monkeypatch.setattr(recipes, "quantize_group", unrounded)
    bundle = bundle_of(QA) if name == QA else decoder_of("apertus-ort-all")
    path, _ = rewritten(bundle, tmp_path, "token", smoothing=False)
    feeds = [encoder_feed(random_ids(1, 2, 40, VOCABULARY))] if name == QA else [decoder_feed(40)]
    exact = outputs(bundle / "model.onnx", feeds)
    scale = max(float(np.abs(value).max()) for value in exact[0].values())
    assert largest_gap(outputs(path, feeds), exact) < 2e-4 * scale
    assert folded["apart"] > 0 and (folded["in norms"] > 0) is (name != QA)


def decoder_feed(tokens: int) -> dict[str, Any]:
    ids = random_ids(6, 1, tokens, 6144)
    past = {f"past_key_values.{i}.{k}": np.zeros((1, 2, 0, 32), np.float32) for i in range(4) for k in ("key", "value")}
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(tokens)[None], **past}


def test_an_embedding_in_eight_bits(decoder_of: MakeBundle, tmp_path: Path) -> None:
    bundle = decoder_of("apertus-ort-all")
    feeds = [decoder_feed(30)]
    exact = outputs(bundle / "model.onnx", feeds)[0]["logits"]
    path, model = rewritten(bundle, tmp_path, KEEP, "rows8")
    assert all(name != "embed_tokens.weight" for name in model.graph.initializers)
    got = outputs(path, feeds)[0]["logits"]
    assert 0 < np.linalg.norm(got - exact) / np.linalg.norm(exact) < 0.05


def test_blocks_give_what_their_rounding_gives(decoder_of: MakeBundle, tmp_path: Path) -> None:
    """Eight bits in small blocks lose little; four lose more; compensation loses less than rounding to nearest."""
    bundle = decoder_of("apertus-ort-all")
    feeds = [decoder_feed(400)]
    seen = observed(bundle, feeds, tmp_path, hessians=True)
    exact = outputs(bundle / "model.onnx", feeds)[0]["logits"]
    errors = {}
    for way, rounding in (("blocks8", "nearest"), ("blocks4", "nearest"), ("blocks4", "compensated")):
        path, _ = rewritten(bundle, tmp_path / f"{way}{rounding}", way, KEEP, seen, rounding=rounding, smoothing=False)
        got = outputs(path, feeds)[0]["logits"]
        errors[way, rounding] = float(np.linalg.norm(got - exact) / np.linalg.norm(exact))
    assert errors["blocks8", "nearest"] < 0.3 * errors["blocks4", "nearest"]
    assert errors["blocks4", "compensated"] < 0.85 * errors["blocks4", "nearest"]


def test_weights_that_are_shared_by_two_groups_are_smoothed_apart(qa: Path, tmp_path: Path) -> None:
    """Two layers with one weight read different activations: what suits one must not be stored for both."""
    model = load_graph(qa / "model.onnx")
    names = [f"bert.encoder.layer.{i}.output.dense.weight" for i in (0, 1)]
    first, second = (next(p for p in find_projections(model.graph) if p.name == name) for name in names)
    reader = second.weight.consumers()[0]
    reader.replace_input_with(list(reader.inputs).index(second.weight), first.weight)
    folder = tmp_path / "tied"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes((qa / "model.safetensors").read_bytes())
    ir.save(model, folder / "model.onnx")
    assert names[1] not in named(load_graph(folder / "model.onnx").graph)[0]
    feeds = [encoder_feed(random_ids(1, 2, 200, VOCABULARY))]
    seen = observed(folder, feeds, tmp_path)
    path, _ = rewritten(folder, tmp_path / "q", "token", KEEP, seen)
    exact, got = outputs(folder / "model.onnx", feeds)[0], outputs(path, feeds)[0]
    for name, value in exact.items():
        assert np.linalg.norm(got[name] - value) < 0.1 * np.linalg.norm(value)


def test_equal_norms_are_smoothed_apart(bundle_of: BundleOf, tmp_path: Path) -> None:
    """Norms whose weights are all ones, as random checkpoints have them, keep a divided copy each."""
    checkpoint = tmp_path / "ones"
    checkpoint.mkdir()
    for path in (DATA / "apertus-glossary").iterdir():
        if path.suffix == ".safetensors":
            tensors = load_file(path)
            save_file(
                {n: np.ones_like(a) if "layernorm" in n else a for n, a in tensors.items()}, checkpoint / path.name
            )
        else:
            (checkpoint / path.name).write_bytes(path.read_bytes())
    bundle = tmp_path / "b"
    pinnace.export.export(str(checkpoint), task="generate", output=bundle, validate=False, all_logits=True)
    feeds = [decoder_feed(300)]
    path, _ = rewritten(bundle, tmp_path / "q", "token", KEEP, observed(bundle, feeds, tmp_path))
    exact, got = outputs(bundle / "model.onnx", feeds)[0]["logits"], outputs(path, feeds)[0]["logits"]
    assert np.linalg.norm(got - exact) < 0.1 * np.linalg.norm(exact)
