"""Graphs rewritten by a recipe and run in plain ONNX Runtime: what the tests of quantization begin with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from pinnace.quantize.calibration import observe
from pinnace.quantize.observed import Observed
from pinnace.quantize.projections import find_groups, find_tables
from pinnace.quantize.recipe import KEEP, Recipe, apply, load_graph
from pinnace.runtime.engine.ort import plain_session

Feeds = list[dict[str, Any]]


def recipe(graph: ir.Graph, way: str, table: str = KEEP, **options: Any) -> Recipe:
    """One way for every projection and one for every table."""
    groups = {group.name: way for group in find_groups(graph)}
    return Recipe(groups, {found.name: table for found in find_tables(graph)}, **options)


def observed(bundle: Path, feeds: Feeds, folder: Path, *, hessians: bool = False) -> Observed:
    """What all groups of a bundle's graph read on some inputs."""
    model = load_graph(bundle / "model.onnx")
    values = {group.name: group.everywhere for group in find_groups(model.graph)}
    return Observed(observe(model, bundle, values, feeds, hessians=hessians))


def rewritten(
    bundle: Path, folder: Path, way: str, table: str = KEEP, seen: Observed | None = None, **options: Any
) -> tuple[Path, ir.Model]:
    """Write a bundle's graph with every projection and table gone one way; its path, and the model."""
    model = load_graph(bundle / "model.onnx")
    applied = apply(model, recipe(model.graph, way, table, **options), seen or Observed({}))
    folder.mkdir(parents=True, exist_ok=True)
    applied.plan.write(folder / "model.onnx_data")
    ir.save(applied.model, folder / "model.onnx")
    return folder / "model.onnx", applied.model


def outputs(path: Path, feeds: Feeds) -> list[dict[str, Any]]:
    """All outputs of a graph for each of some inputs."""
    session = plain_session(path)
    names = [output.name for output in session.get_outputs()]
    return [dict(zip(names, session.run(names, dict(feed)), strict=True)) for feed in feeds]


def encoder_feed(ids: Any, mask: Any = None) -> dict[str, Any]:
    """Inputs of a BERT for token numbers ``[B, T]``."""
    ids = np.atleast_2d(np.asarray(ids, np.int64))
    mask = np.ones_like(ids) if mask is None else np.atleast_2d(np.asarray(mask, np.int64))
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def random_ids(seed: int, rows: int, tokens: int, vocabulary: int) -> Any:
    """Token numbers ``[rows, tokens]``."""
    return np.random.default_rng(seed).integers(5, vocabulary, (rows, tokens))


def largest_gap(got: list[dict[str, Any]], want: list[Mapping[str, Any]] | list[dict[str, Any]]) -> float:
    """Largest difference of any output of any run."""
    return max(float(np.abs(a[name] - b[name]).max()) for a, b in zip(got, want, strict=True) for name in b)
