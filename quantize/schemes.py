"""SCHEMES: the ways to quantize a model. A new scheme is a new row, and a file where it rewrites graphs anew."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Collection, Mapping, Sequence
from typing import Final

import onnx_ir as ir

from pinnace.errors import UsageError
from pinnace.quantize.projections import MIN_WIDTH, find_groups, find_projections, find_tables
from pinnace.quantize.recipe import BITS, HALF, KEEP, QDQ, TIED, Recipe, selected
from pinnace.quantize.rounding.packing import shares_bytes
from pinnace.quantize.thresholds import MIN_MAX

NAMED: Final = 4  # groups that a refusal names


@dataclasses.dataclass(frozen=True)
class Scheme:
    """One way to quantize.

    Attributes:
        name: what the user calls it.
        precision: the slot that its variants take.
        about: what it does and what it is good for, in a line.
        way: what becomes of every projection at first, a key of `recipe.WAYS`.
        table: what becomes of every embedding table, a key of `recipe.TABLE_WAYS`.
        relief: ways, each nearer to fp32, that the projections which lose most go where the gate is missed; tables that
            lose most stay as they are.
        rounding: of weights in blocks.
        smoothing: whether activations are smoothed.
        block: inputs that share a scale, where weights are in blocks.
    """

    name: str
    precision: str
    about: str
    way: str
    table: str
    relief: tuple[str, ...] = (KEEP,)
    rounding: str = "nearest"
    smoothing: bool = True
    block: int = 32

    def recipe(
        self,
        graph: ir.Graph,
        *,
        reduced: bool,
        block: int | None = None,
        keep: Collection[str] = (),
        only: Collection[str] = (),
        calibration: str | None = None,
    ) -> Recipe:
        """The recipe that this scheme begins with.

        Args:
            graph: of the bundle's fp32 variant.
            reduced: whether integer products must be right on processors that add pairs in sixteen bits.
            block: inputs that share a scale, in place of the scheme's own.
            keep: shell patterns of weights that stay as they are.
            only: shell patterns of the weights that alone may change.
            calibration: key of `thresholds.METHODS`, for a scheme of static ranges; None takes min-max.

        Raises:
            UsageError: a pattern that fits nothing, patterns that leave nothing to quantize, or a model without
                anything to quantize.
        """
        block = self.block if block is None else block
        groups = {group.name: [member.name for member in group.members] for group in find_groups(graph)}
        tables = dict.fromkeys(table.name for table in find_tables(graph))
        if not groups and not tables and self.way != HALF:
            raise UsageError(
                f"no weight of the model has {MIN_WIDTH} rows and columns or more, so {self.name} has nothing to "
                "quantize; keep to fp32"
            )
        chosen = selected({*tables, *(name for names in groups.values() for name in names)}, keep, only)
        if (keep or only) and not any(map(chosen.issuperset, [*groups.values(), *([table] for table in tables)])):
            raise UsageError(_nothing_left(groups, keep, only))
        tied = self._tied(graph, tables, block) & chosen
        return Recipe(
            groups={g: self.way if chosen.issuperset(names) else KEEP for g, names in groups.items()},
            tables={t: TIED if t in tied else self.table if t in chosen else KEEP for t in tables},
            reduced=reduced,
            block=block,
            rounding=self.rounding,
            smoothing=self.smoothing,
            calibration=calibration or MIN_MAX,
            half=self.way == HALF,
        )

    def _tied(self, graph: ir.Graph, tables: Collection[str], block: int) -> frozenset[str]:
        """Tables whose rows can be gathered from what is stored of the projection that has the same weight."""
        if self.way in (HALF, *QDQ):
            return frozenset()
        found = (p for p in find_projections(graph) if p.name in tables and p.transposed)
        return frozenset(p.name for p in found if not self.blocks or shares_bytes(p.inputs, block))

    @property
    def blocks(self) -> bool:
        """Whether weights are in blocks."""
        return self.way in BITS

    @property
    def integers(self) -> bool:
        """Whether products are of integers, so that the range of weights matters."""
        return self.way in ("fixed", "token", *QDQ)

    @property
    def static(self) -> bool:
        """Whether activations have the ranges that a method of calibration finds."""
        return self.way in QDQ

    @property
    def calibrates(self) -> bool:
        """Whether it needs calibration data."""
        return self.smoothing or self.way in ("fixed", HALF, *QDQ) or self.rounding == "compensated"


def _nothing_left(groups: Mapping[str, Sequence[str]], keep: Collection[str], only: Collection[str]) -> str:
    """Say that no whole group is left to quantize, and which groups of several weights there are."""
    given = " ".join((*(f"--only {pattern!r}" for pattern in only), *(f"--keep {pattern!r}" for pattern in keep)))
    joined = [" + ".join(names) for names in groups.values() if len(names) > 1]
    text = f"{given} leaves nothing to quantize"
    if joined:
        more = f", and {len(joined) - NAMED} more" if len(joined) > NAMED else ""
        text += f". Weights that read the same input change together or not at all: {'; '.join(joined[:NAMED])}{more}"
    return f"{text}. Let the patterns leave a whole group"


_LESS_INT4: Final = ("blocks8", KEEP)
_ROWS: Final = (
    Scheme(
        "int8", "int8", "integer products; activations smoothed, fixed scales, one a token where that is too little",
        "fixed", "rows8", ("token", KEEP),
    ),
    Scheme(
        "int8-token", "int8", "integer products; activations smoothed, one scale for each token, errors compensated",
        "token", "rows8", rounding="compensated",
    ),
    Scheme(
        "int8-uncalibrated", "int8", "integer products; one activation scale for each token, needs no data",
        "token", "rows8", smoothing=False,
    ),
    Scheme(
        "int8-qdq", "int8", "QuantizeLinear and DequantizeLinear around products, unsigned activations: QNN, OpenVINO",
        "qdq", "rows8", smoothing=False,
    ),
    Scheme(
        "int8-qdq-signed", "int8", "the same with symmetric signed activations, the only ones that TensorRT takes",
        "qdq-signed", "rows8", smoothing=False,
    ),
    Scheme(
        "int8-weights", "int8", "8-bit weights in blocks; nearest to fp32, slow for prompts and encoders",
        "blocks8", "rows8", smoothing=False, block=128,
    ),
    Scheme(
        "int4", "int4", "4-bit weights in blocks, errors compensated on data; smallest, fastest for single tokens",
        "blocks4", "rows8", _LESS_INT4, "compensated", smoothing=False,
    ),
    Scheme(
        "int4-uncalibrated", "int4", "4-bit weights in blocks, half-quadratic rounding; needs no data",
        "blocks4", "rows8", _LESS_INT4, "half-quadratic", smoothing=False,
    ),
    Scheme(
        "int4-nearest", "int4", "4-bit weights in blocks, rounded to nearest; the usual way, to compare with",
        "blocks4", "rows8", _LESS_INT4, smoothing=False,
    ),
    Scheme("fp16", "fp16", "half precision, fp32 where numbers grow too large; for GPUs", HALF, HALF, smoothing=False),
)  # fmt: skip
SCHEMES: Final[Mapping[str, Scheme]] = types.MappingProxyType({row.name: row for row in _ROWS})
