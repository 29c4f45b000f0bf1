"""How far two results may lie apart: the one place for the numbers that make a result acceptable."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class Gate:
    """What one precision must reach.

    Attributes:
        max_abs: largest difference, relative to the reference's largest magnitude where that is above one; None: any.
        min_cosine: smallest cosine between any two rows of the last axis.
        min_top1: smallest share of rows whose largest entry stays in place.
        tie: how close to the largest entry another one is its equal, relative to it where it is above one.
    """

    max_abs: float | None
    min_cosine: float
    min_top1: float
    tie: float = 1e-6


GATES: Final[Mapping[str, Gate]] = types.MappingProxyType(
    {
        "fp32": Gate(max_abs=1e-4, min_cosine=0.9999, min_top1=0.0),
        # The cosine does not see a wrong scale; the largest difference does. A number has eleven bits: 5e-4 of it.
        "fp16": Gate(max_abs=0.05, min_cosine=0.999, min_top1=0.995, tie=2e-3),
    }
)


@dataclasses.dataclass(frozen=True)
class Difference:
    """How one output differs from its reference.

    ``rows`` is the number of vectors along the last axis; ``top1_kept`` counts those whose largest entry keeps its
    place, with ties and rows of one entry.
    """

    max_abs: float
    scale: float
    cosine: float
    rows: int
    top1_kept: int

    def merge(self, other: Difference) -> Difference:
        """The worse of both, with the counts added up."""
        return Difference(
            max(self.max_abs, other.max_abs),
            max(self.scale, other.scale),
            min(self.cosine, other.cosine),
            self.rows + other.rows,
            self.top1_kept + other.top1_kept,
        )

    def miss(self, gate: Gate) -> str:
        """What the gate holds against this difference, in words; empty where it passes."""
        if not np.isfinite(self.max_abs):
            return "NaN or infinity in the result"
        if gate.max_abs is not None and self.max_abs > gate.max_abs * max(1.0, self.scale):
            return f"largest difference {self.max_abs:.3g}, allowed {gate.max_abs * max(1.0, self.scale):.3g}"
        if self.cosine < gate.min_cosine:
            return f"cosine {self.cosine:.6f}, needed {gate.min_cosine}"
        if self.top1_kept < gate.min_top1 * self.rows:
            return f"top-1 kept in {self.top1_kept} of {self.rows} rows, needed {gate.min_top1:.1%}"
        return ""


def difference(got: Array, want: Array, tie: float = 1e-6) -> Difference:
    """Measure ``got`` against ``want``, two arrays of one shape (..., entries); ``tie`` as in `Gate`."""
    if got.shape != want.shape:
        return Difference(np.inf, 0.0, 0.0, 1, 0)
    a, b = np.atleast_1d(got).astype(np.float64), np.atleast_1d(want).astype(np.float64)
    if a.size == 0:
        return Difference(0.0, 0.0, 1.0, 0, 0)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return Difference(np.inf, 0.0, 0.0, 1, 0)
    gap = np.abs(a - b)
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    # One entry has no direction and is judged by its difference alone; rows of zeros agree where they are equal.
    equal = np.logical_or(gap.max(-1) <= 1e-6, a.shape[-1] == 1)
    cosine = np.where(equal, 1.0, np.where(norms > 0, (a * b).sum(-1) / np.where(norms > 0, norms, 1), 0.0))
    best = b.max(-1)
    kept = np.take_along_axis(b, a.argmax(-1)[..., None], -1)[..., 0] >= best - tie * np.maximum(1, np.abs(best))
    return Difference(float(gap.max()), float(np.abs(b).max()), float(cosine.min()), int(kept.size), int(kept.sum()))
