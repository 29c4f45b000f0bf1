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
from pinnace.quantize.recipe import KEEP, TIED, apply, load_graph
from pinnace.quantize.schemes import SCHEMES
from pinnace.quantize.tensors import read_weight
from tests.quantize_graphs import encoder_feed, observed, outputs, random_ids, recipe, rewritten
from tests.test_quantize_projections import all_sizes, named

__all__ = ["all_sizes"]

BundleOf = Callable[[str], Path]


@pytest.mark.usefixtures("all_sizes")
@pytest.mark.parametrize("ways", [("token", "rows8"), ("blocks8", "blocks8"), ("blocks8", KEEP), (KEEP, "rows8")])
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
@pytest.mark.parametrize(("way", "apart"), [("token", "rows8"), ("blocks8", "blocks8"), ("blocks4", "blocks4")])
def test_tied_codes_are_stored_once_and_give_what_two_copies_give(
    bundle_of: BundleOf, tmp_path: Path, way: str, apart: str
) -> None:
    bundle = bundle_of("tiny-mlm")
    feeds = [encoder_feed(random_ids(7, 2, 20, 640))]
    found, sizes = {}, {}
    for table in (apart, TIED):
        path, _ = rewritten(bundle, tmp_path / table, way, table, smoothing=False, block=16, reduced=False)
        found[table] = outputs(path, feeds)[0]["logits"]
        sizes[table] = (path.parent / "model.onnx_data").stat().st_size
    np.testing.assert_allclose(found[TIED], found[apart], atol=1e-5)
    graph = load_graph(bundle / "model.onnx").graph
    numbers = read_weight(next(t.weight for t in find_tables(graph) if t.name in named(graph)[0])).size
    assert sizes[apart] - sizes[TIED] >= numbers // (2 if way == "blocks4" else 1)


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
