"""How far two results may lie apart: the one place for the numbers that make a result acceptable."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from pinnace.arrays import Array
from pinnace.errors import UsageError, unknown_word


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
        # Against the variant's own numbers of another machine: quality is what `TASK_GATES` judges. A last bit more or
        # less may take an activation to the next of 255 steps; sums that saturate are far beyond this.
        **{precision: Gate(max_abs=0.05, min_cosine=0.999, min_top1=0.0) for precision in ("int8", "int4")},
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


def of_real_tokens(array: Array, axes: Sequence[int | str], new: Array, keys: Array) -> Array:
    """Leave out what an output holds for padding: kernels may compute it, or leave there what the memory held.

    Args:
        array: the output, its axes named by ``axes``.
        axes: names or sizes.
        new: bool (rows, T), which new tokens are real.
        keys: bool (rows, S), which keys are.

    Returns:
        The entries of real tokens (entries, ...), or the array where no axis counts tokens.
    """
    first = next((i for i, axis in enumerate(axes) if axis in ("sequence", "total_sequence")), None)
    if first is None:
        return array
    real = keys if axes[first] == "total_sequence" else new
    flat = np.moveaxis(array, first, 1)
    return np.asarray(flat.reshape(real.shape + flat.shape[2:])[real])


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How well a variant does its task on examples.

    Attributes:
        task: the task's full name.
        precision: the variant.
        metric: the main metric, a key of `TASK_GATES`.
        value: the variant's figure; NaN where a run gave NaN or infinity.
        reference: fp32's figure: what it reaches on labels, or what full agreement with itself is.
        examples: how many examples it was measured on.
        labelled: whether against labels; if not, against fp32's own answers.
        details: further figures by name.
        worst: places of the examples that lost most, worst first; none that lost nothing.
    """

    task: str
    precision: str
    metric: str
    value: float
    reference: float
    examples: int
    labelled: bool
    details: Mapping[str, float] = dataclasses.field(default_factory=dict)
    worst: tuple[int, ...] = ()

    def figure(self, name: str) -> float:
        """The main metric or a detail by its name.

        Raises:
            KeyError: it was not measured.
        """
        return self.value if name == self.metric else self.details[name]


@dataclasses.dataclass(frozen=True)
class Bound:
    """What one figure of an evaluation must reach.

    Attributes:
        figure: the main metric or a detail.
        least: smallest value that passes.
        most: largest value that passes.
        relative: ``least`` is a share of fp32's figure; where that is below zero, what is lost is a share of its size.
        drop: this bound is the one that a user's largest drop replaces.
    """

    figure: str
    least: float = -np.inf
    most: float = np.inf
    relative: bool = False
    drop: bool = False


def _share(metric: str, least: float) -> tuple[Bound, ...]:
    return (Bound(metric, least=least, relative=True, drop=True),)


def _numbers(least: float, most: float) -> tuple[Bound, ...]:
    """A correlation is blind to scale and shift, so the numbers themselves have a bound too."""
    return (*_share("correlation", least), Bound("largest_difference", most=most))


def _vectors(overlap: float, cosine: float) -> tuple[Bound, ...]:
    return (Bound("neighbour_overlap", least=overlap, drop=True), Bound("mean_cosine", least=cosine))


def _tokens(divergence: float, top1: float) -> tuple[Bound, ...]:
    return (Bound("kl", most=divergence), Bound("top1", least=top1, drop=True))


_RATES: Final = ("f1", "entity_f1", "accuracy", "label_f1", "reciprocal_rank")
# 0.955 is what users are promised; the rest leaves room for texts that did not judge.
_INT_VECTORS: Final = _vectors(0.965, 0.9975)
# Precision and main metric -> what must hold, all of it. A rate is a share of what fp32 reaches.
TASK_GATES: Final[Mapping[tuple[str, str], tuple[Bound, ...]]] = types.MappingProxyType(
    {
        **{("fp16", rate): _share(rate, 0.995) for rate in _RATES},
        **{(precision, rate): _share(rate, 0.99) for rate in _RATES for precision in ("int8", "int4")},
        ("fp16", "correlation"): _numbers(0.995, 0.05),
        **{(precision, "correlation"): _numbers(0.99, 0.25) for precision in ("int8", "int4")},
        ("fp16", "neighbour_overlap"): _vectors(0.995, 0.999),
        ("int8", "neighbour_overlap"): _INT_VECTORS,
        ("int4", "neighbour_overlap"): _INT_VECTORS,
        ("fp16", "kl"): _tokens(0.01, 0.995),
        ("int8", "kl"): _tokens(0.01, 0.97),
        ("int4", "kl"): _tokens(0.05, 0.92),
    }
)


def task_gate(precision: str, metric: str, max_drop: float | None = None) -> tuple[Bound, ...]:
    """Return what a variant must reach.

    Args:
        precision: ``"fp16"``, ``"int8"`` or ``"int4"``.
        metric: the main metric of the task.
        max_drop: the user's own largest drop, 0.01 for 1 %, in place of the gate's: of the task's rate as a share of
            fp32's, of the neighbours kept, of the likeliest tokens kept.

    Raises:
        UsageError: a drop outside 0 to 1, or no gate for these words.
    """
    if max_drop is not None and not 0 <= max_drop <= 1:
        raise UsageError(f"the largest drop is {max_drop!r}; expected 0 to 1, 0.01 for one per cent")
    if (precision, metric) not in TASK_GATES:
        raise unknown_word("gate", f"{precision} {metric}", [" ".join(key) for key in TASK_GATES])
    gate = TASK_GATES[precision, metric]
    if max_drop is None:
        return gate
    return tuple(dataclasses.replace(bound, least=1 - max_drop) if bound.drop else bound for bound in gate)


def miss(evaluation: Evaluation, gate: tuple[Bound, ...]) -> str:
    """What a gate holds against an evaluation, in words; empty where it passes."""
    if not np.isfinite(evaluation.value):
        return "NaN or infinity in the result"
    missed = []
    for bound in gate:
        got = evaluation.figure(bound.figure)
        reference = evaluation.reference
        least = reference - (1 - bound.least) * abs(reference) if bound.relative else bound.least
        name = bound.figure.replace("_", " ")
        of = f" ({bound.least:.1%} of fp32's {reference:.4f})" if bound.relative else ""
        # Written so that NaN, which no comparison holds for, is a miss. A sum's last bits are no loss.
        if not got >= least - 1e-12:
            missed.append(f"{name} {got:.4f}, needed at least {least:.4f}{of}")
        if not got <= bound.most:
            missed.append(f"{name} {got:.4f}, allowed at most {bound.most:g}")
    return "; ".join(missed)
