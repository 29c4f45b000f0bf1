"""A recipe: what becomes of every projection and table of a graph. It is data: the certificate records it."""

from __future__ import annotations

import dataclasses
import fnmatch
import types
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

import onnx_ir as ir

from pinnace.errors import UsageError
from pinnace.quantize.emit import Emitter, sweep
from pinnace.quantize.fp16 import to_fp16
from pinnace.quantize.int8 import quantize_group
from pinnace.quantize.observed import Observed
from pinnace.quantize.projections import Group, Table, find_groups, find_tables
from pinnace.quantize.qdq import quantize_pairs
from pinnace.quantize.rounding.rounders import rounding_for
from pinnace.quantize.tables import StoredCodes, gather_tied, quantize_rows, split_embedding
from pinnace.quantize.tensors import TensorPlan
from pinnace.quantize.thresholds import METHODS, MIN_MAX, NEED_HISTOGRAMS
from pinnace.quantize.weight_only import quantize_projection

KEEP: Final = "keep"
HALF: Final = "half"
TIED: Final = "tied"
QDQ: Final = ("qdq", "qdq-signed")
# Way of a projection -> what it means, as reports say it.
WAYS: Final[Mapping[str, str]] = types.MappingProxyType(
    {
        "fixed": "int8 products, fixed activation scale",
        "token": "int8 products, one activation scale a token",
        "qdq": "int8 between QuantizeLinear and DequantizeLinear, unsigned activations",
        "qdq-signed": "int8 between QuantizeLinear and DequantizeLinear, symmetric activations",
        "blocks8": "8-bit weights in blocks",
        "blocks4": "4-bit weights in blocks",
        HALF: "half precision",
        KEEP: "as it is",
    }
)
# Way of an embedding table -> what it means.
TABLE_WAYS: Final[Mapping[str, str]] = types.MappingProxyType(
    {
        "rows8": "8 bits, one scale a row",
        TIED: "the codes of the projection that has the same weight",
        HALF: "half precision",
        KEEP: "as it is",
    }
)
ROUNDINGS: Final = ("nearest", "half-quadratic", "compensated")
BITS: Final[Mapping[str, int]] = types.MappingProxyType({"blocks8": 8, "blocks4": 4})


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What becomes of every group of projections and of every table.

    Attributes:
        groups: group -> key of `WAYS`.
        tables: table -> key of `TABLE_WAYS`.
        reduced: integer products use weights whose sums are right on every processor.
        block: inputs that share a scale, where weights are in blocks.
        rounding: one of `ROUNDINGS`, for weights in blocks.
        smoothing: whether activations of integer products may be smoothed.
        calibration: key of `thresholds.METHODS`, for activations between QuantizeLinear and DequantizeLinear.
        half: the graph computes in fp16, all but what is kept.
    """

    groups: Mapping[str, str]
    tables: Mapping[str, str]
    reduced: bool = True
    block: int = 32
    rounding: str = "nearest"
    smoothing: bool = True
    calibration: str = MIN_MAX
    half: bool = False

    def __post_init__(self) -> None:
        assert set(self.groups.values()) <= WAYS.keys()
        assert set(self.tables.values()) <= TABLE_WAYS.keys()
        assert self.rounding in ROUNDINGS
        assert self.calibration in METHODS

    def alone(self, name: str) -> Recipe:
        """The recipe for one group or table, or for both where they have one weight; all others stay as they are."""
        groups = {n: way if n == name else KEEP for n, way in self.groups.items()}
        tables = {n: way if n == name else KEEP for n, way in self.tables.items()}
        return dataclasses.replace(self, groups=groups, tables=tables)

    def changed(self, names: Collection[str], way: str) -> Recipe:
        """The recipe with another way for some groups."""
        return dataclasses.replace(self, groups={n: way if n in names else old for n, old in self.groups.items()})

    @property
    def calibrated(self) -> frozenset[str]:
        """Groups whose activations must have been observed."""
        ways = {*QDQ, "fixed", "token"} if self.smoothing else {*QDQ, "fixed"}
        if self.rounding == "compensated":
            ways |= {*BITS, "fixed", "token"}
        return frozenset(name for name, way in self.groups.items() if way in ways)

    @property
    def histograms(self) -> bool:
        """Whether calibration must gather histograms."""
        return self.calibration in NEED_HISTOGRAMS and any(way in QDQ for way in self.groups.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for the certificate."""
        return {**dataclasses.asdict(self), "groups": dict(self.groups), "tables": dict(self.tables)}


def selected(names: Collection[str], keep: Collection[str], only: Collection[str]) -> frozenset[str]:
    """Names that the user's patterns leave to be quantized.

    Args:
        names: of groups or tables.
        keep: shell patterns of what stays as it is.
        only: shell patterns of what alone may change; empty for all.

    Raises:
        UsageError: a pattern that fits nothing.
    """
    for pattern in (*keep, *only):
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            shown = ", ".join(sorted(names)[:6])
            raise UsageError(f"the pattern {pattern!r} matches no weight; there are {len(names)}, such as {shown}")
    return frozenset(
        name for name in names
        if (not only or any(fnmatch.fnmatchcase(name, p) for p in only))
        and not any(fnmatch.fnmatchcase(name, p) for p in keep)
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Applied:
    """A quantized graph with its tensors planned, and what was decided on the way, group by group."""

    model: ir.Model
    plan: TensorPlan
    decisions: dict[str, dict[str, Any]]
    islands: tuple[str, ...] = ()


def load_graph(path: Path) -> ir.Model:
    """Open a bundle's fp32 graph in the form that recipes are applied to."""
    model = ir.load(path)
    split_embedding(model)
    sweep(model)
    return model


def apply(model: ir.Model, recipe: Recipe, observed: Observed) -> Applied:
    """Rewrite a graph by a recipe, in place.

    Args:
        model: from `load_graph`.
        recipe: its names are those of the graph's groups and tables.
        observed: activations of the groups in ``recipe.calibrated``.
    """
    plan = TensorPlan(model.graph)
    if recipe.half:
        return _halved(model, plan, recipe, observed)
    decisions: dict[str, dict[str, Any]] = {}
    codes: dict[str, StoredCodes] = {}
    for group in find_groups(model.graph):
        decisions[group.name] = _apply_group(model.graph, plan, group, recipe, observed, codes)
    for table in find_tables(model.graph):
        _apply_table(Emitter(model.graph, table.node), plan, table, recipe, codes)
    sweep(model)
    return Applied(model, plan, decisions)


def _apply_table(
    emit: Emitter, plan: TensorPlan, table: Table, recipe: Recipe, codes: Mapping[str, StoredCodes]
) -> None:
    way = recipe.tables.get(table.name, KEEP)
    if way == "rows8":
        quantize_rows(emit, plan, table)
    elif way == TIED and table.name in codes:  # else the projection stays as it is, and with it their weight
        gather_tied(emit, plan, table, codes[table.name])


def _halved(model: ir.Model, plan: TensorPlan, recipe: Recipe, observed: Observed) -> Applied:
    """The graph in fp16: what was found too large and what is kept are islands of fp32."""
    groups, tables = find_groups(model.graph), find_tables(model.graph)
    kept = {str(m.node.name) for g in groups if recipe.groups.get(g.name, KEEP) == KEEP for m in g.members}
    kept |= {str(t.node.name) for t in tables if recipe.tables.get(t.name, KEEP) == KEEP}
    names = {*(observed.islands or ()), *kept}
    islands = tuple(str(node.name) for node in model.graph if node.name in names)
    to_fp16(model, islands)
    decisions = {
        group.name: {"way": recipe.groups.get(group.name, KEEP), "weights": [member.name for member in group.members]}
        for group in groups
    }
    return Applied(model, plan, decisions, islands)


def _apply_group(
    graph: ir.Graph, plan: TensorPlan, group: Group, recipe: Recipe, observed: Observed, codes: dict[str, StoredCodes]
) -> dict[str, Any]:
    """Rewrite a group, add to ``codes`` what it planned for each weight, and return what was decided."""
    way = recipe.groups.get(group.name, KEEP)
    facts: dict[str, Any] = {"way": way, "weights": [member.name for member in group.members]}
    emit = Emitter(graph, group.members[0].node)
    if way in ("fixed", "token"):
        how = observed.range_of(group, per_token=way == "token", reduced=recipe.reduced, smoothing=recipe.smoothing)
        corrections = observed.corrections(group, how, reduced=recipe.reduced)
        hessian = observed.hessian_of(group) if recipe.rounding == "compensated" else None
        tied = [name for name, table_way in recipe.tables.items() if table_way == TIED]
        planned = quantize_group(
            emit, plan, group, how, reduced=recipe.reduced, corrections=corrections, hessian=hessian, tied=tied
        )
        codes |= {name: StoredCodes(values, 8, factors=how.smooth) for name, values in planned.items()}
        facts["smoothing"] = how.strength
        if group.name in observed.activations:  # without data no error is known, and JSON has no NaN
            facts["error"] = float(f"{how.error:.3g}")
    elif way in QDQ:
        how = observed.tensor_range(group, recipe.calibration, signed=way == "qdq-signed")
        corrections = observed.corrections(group, how, reduced=recipe.reduced)
        quantize_pairs(
            emit, plan, group, how, reduced=recipe.reduced, signed=way == "qdq-signed", corrections=corrections
        )
        facts |= {"calibration": recipe.calibration, "scale": float(f"{how.scale:.6g}"), "zero": how.zero}
    elif way != KEEP:
        bits, block = BITS[way], recipe.block
        hessian = observed.hessian_of(group) if recipe.rounding == "compensated" else None
        for member in group.members:
            rounding = rounding_for(recipe, bits, hessian)
            values = quantize_projection(emit, plan, member, bits=bits, block=block, rounding=rounding)
            codes[member.name] = StoredCodes(values, bits, block)
    return facts
