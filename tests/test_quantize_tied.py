"""Tied embeddings: a weight that is table and projection is one tensor in a variant, and right in both places."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from pinnace.quantize.projections import find_groups, find_tables
from pinnace.quantize.ranges import plain_tokens
from pinnace.quantize.recipe import BITS, KEEP, TIED, apply, load_graph
from pinnace.quantize.rounding.nearest import block_codes, channel_codes
from pinnace.quantize.schemes import SCHEMES
from pinnace.quantize.tensors import read_weight
from tests.packed_blocks import dequantize
from tests.quantize_graphs import encoder_feed, observed, outputs, random_ids, recipe, rewritten
from tests.test_quantize_projections import all_sizes, named

__all__ = ["all_sizes"]

BundleOf = Callable[[str], Path]


@pytest.mark.usefixtures("all_sizes")
@pytest.mark.parametrize(
    "ways", [("token", "rows8"), ("blocks8", "rows8"), ("blocks8", TIED), ("blocks8", KEEP), (KEEP, "rows8")]
)
def test_a_weight_that_is_table_and_projection_is_right_in_both(
    bundle_of: BundleOf, tmp_path: Path, ways: tuple[str, str]
) -> None:
    bundle = bundle_of("tiny-mlm")
    model = load_graph(bundle / "model.onnx")
    products, tables = named(model.graph)
    assert products & tables  # the graph holds the tied weight once
    path, _ = rewritten(bundle, tmp_path, *ways, smoothing=False, block=16)
    feeds = [encoder_feed(random_ids(7, 2, 20, 640))]
    got, exact = outputs(path, feeds)[0]["logits"], outputs(bundle / "model.onnx", feeds)[0]["logits"]
    cosine = (got * exact).sum() / np.linalg.norm(got) / np.linalg.norm(exact)
    assert 0.97 < cosine < 1 - 1e-9  # sixteen channels leave rounding little to average over
    header = json.loads(
        (data := (tmp_path / "model.onnx_data").read_bytes())[8 : 8 + int.from_bytes(data[:8], "little")]
    )
    tied = next(iter(products & tables))
    assert (tied in header) is (KEEP in ways)  # fp32 only where something still reads it


@pytest.mark.usefixtures("all_sizes")
@pytest.mark.parametrize("way", ["token", "blocks8", "blocks4"])
def test_tied_codes_are_stored_once_and_give_what_two_copies_give(
    bundle_of: BundleOf, tmp_path: Path, way: str
) -> None:
    bundle = bundle_of("tiny-mlm")
    graph = load_graph(bundle / "model.onnx").graph
    table = next(t for t in find_tables(graph) if t.name in named(graph)[0])
    weight = read_weight(table.weight)
    if way == "token":
        codes, steps = channel_codes(weight, reduced=False)
        stored = codes * steps[:, None]
    else:
        stored = dequantize(block_codes(weight, BITS[way], 16))
    found, sizes = {}, {}
    for kind in (KEEP, TIED):
        path, model = rewritten(bundle, tmp_path / kind, way, kind, smoothing=False, block=16, reduced=False)
        if kind == KEEP:  # the table's own copy, of the numbers that the projection's codes stand for
            model.graph.initializers[table.name].const_value = ir.tensor(stored, name=table.name)
            ir.save(model, path)
        found[kind] = outputs(path, [encoder_feed(random_ids(7, 2, 20, 640))])[0]["logits"]
        sizes[kind] = (path.parent / "model.onnx_data").stat().st_size
    np.testing.assert_allclose(found[TIED], found[KEEP], atol=1e-5)
    assert sizes[KEEP] - sizes[TIED] > 3.9 * weight.size


@pytest.mark.usefixtures("all_sizes")
def test_tied_codes_of_a_smoothed_weight_are_near_it(bundle_of: BundleOf, tmp_path: Path) -> None:
    bundle = bundle_of("tiny-mlm")
    feeds = [encoder_feed(random_ids(seed, 4, 40, 640)) for seed in range(6)]
    model = load_graph(bundle / "model.onnx")
    tables = {table.name for table in find_tables(model.graph)}
    group = next(group for group in find_groups(model.graph) if group.name in tables)
    seen = observed(bundle, feeds, tmp_path)
    # Factors that no search would choose: rows that were not divided by them again would be far off.
    smooth = np.geomspace(0.25, 4, group.inputs).astype(np.float32)
    how = dataclasses.replace(plain_tokens(), smooth=smooth)
    seen.range_of = lambda *_, **__: how  # type: ignore[method-assign]
    applied = apply(model, recipe(model.graph, "token", TIED).alone(group.name), seen)
    applied.plan.write(tmp_path / "model.onnx_data")
    ir.save(applied.model, tmp_path / "model.onnx")
    exact, got = (outputs(path / "model.onnx", feeds)[0]["logits"] for path in (bundle, tmp_path))
    assert np.linalg.norm(got - exact) < 0.15 * np.linalg.norm(exact)


@pytest.mark.usefixtures("all_sizes")
@pytest.mark.parametrize(
    ("scheme", "block", "way"),
    [
        ("int8", None, TIED),
        ("int8-token", None, TIED),
        ("int4", 16, TIED),
        ("int4", 32, "rows8"),
        ("int8-qdq", None, "rows8"),
    ],
)
def test_schemes_tie_what_can_be_read_twice(bundle_of: BundleOf, scheme: str, block: int | None, way: str) -> None:
    """Blocks that are wider than the table have padding, which rows of a table have not."""
    graph = load_graph(bundle_of("tiny-mlm") / "model.onnx").graph
    found = SCHEMES[scheme].recipe(graph, reduced=True, block=block)
    words = next(name for name in found.tables if name in named(graph)[0])
    assert found.tables[words] == way
    assert TIED not in SCHEMES[scheme].recipe(graph, reduced=True, block=block, keep=[words]).tables.values()


def test_a_tied_table_stays_where_its_projection_stays(bundle_of: BundleOf, tmp_path: Path) -> None:
    bundle = bundle_of("tiny-mlm")
    feeds = [encoder_feed(random_ids(7, 2, 20, 640))]
    path, model = rewritten(bundle, tmp_path, KEEP, TIED)
    exact, got = outputs(bundle / "model.onnx", feeds)[0]["logits"], outputs(path, feeds)[0]["logits"]
    np.testing.assert_allclose(got, exact, atol=1e-4)
    assert all(value.dtype != ir.DataType.INT8 for value in model.graph.initializers.values())
