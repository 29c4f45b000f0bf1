"""Write one quantized variant of a bundle: its graph and one file of weights, everything that the variant needs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import onnx_ir as ir

from pinnace.quantize.observed import Observed
from pinnace.quantize.recipe import QDQ, Recipe, apply, load_graph
from pinnace.runtime.bundles.bundle import Bundle
from pinnace.runtime.machine.cpu import Cpu
from pinnace.spec import EXACT_INT8_DOT, GRAPH_NAMES, REFERENCE, Variant


@dataclasses.dataclass(frozen=True)
class Written:
    """A variant on disk: what the manifest will say, its files, their bytes, and what was decided by group."""

    variant: Variant
    bytes: int
    decisions: dict[str, dict[str, Any]]


def graph_name(bundle: Bundle, precision: str) -> str:
    """File of a precision's graph, named as the bundle's layout names it; any other word makes a file of its own."""
    reference = bundle.variant(REFERENCE).graph
    folder, _, _ = reference.rpartition("/")
    name = GRAPH_NAMES["hub" if folder else "flat"].get(precision, f"{precision}.onnx")
    return f"{folder}/{name}" if folder else name


def write_variant(
    bundle: Bundle,
    folder: Path,
    precision: str,
    scheme: str,
    recipe: Recipe,
    observed: Observed,
    cpu: Cpu,
) -> Written:
    """Quantize the bundle's fp32 graph by a recipe.

    Args:
        bundle: has an fp32 variant.
        folder: where to write; the names inside are those of the bundle's layout.
        precision: slot of the variant.
        scheme: name of the scheme, for the manifest.
        recipe: what becomes of each weight.
        observed: calibrated activations.
        cpu: the processor that this runs on, for the manifest.
    """
    reference = bundle.variant(REFERENCE)
    applied = apply(load_graph(bundle.path / reference.graph), recipe, observed)
    name = graph_name(bundle, precision)
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = path.with_name(f"{path.name}_data")
    applied.plan.write(weights)
    ir.save(applied.model, path)
    whole = any(way in ("fixed", "token", *QDQ) for way in recipe.groups.values()) and not recipe.reduced
    variant = Variant(
        reference.target,
        reference.opset,
        name,
        (f"{name}_data",),
        islands=applied.islands,
        scheme=scheme,
        needs=(EXACT_INT8_DOT,) if whole else (),
        made_on=f"{cpu.machine} {' '.join(cpu.features)}".strip(),
    )
    return Written(variant, path.stat().st_size + weights.stat().st_size, applied.decisions)
