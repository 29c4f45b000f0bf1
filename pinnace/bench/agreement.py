"""Accuracy beside speed: each candidate's outputs against those of the reference, on the same inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from pinnace.bench.results import Accuracy
from pinnace.errors import CheckFailed

_LEAST_COSINE: Final = {"fp32": 0.9999, "fewer bits": 0.9}
# Single numbers have no cosine: their largest difference, as a share of the reference's largest number.
_MOST_APART: Final = {"fp32": 0.01, "fewer bits": 0.5}
# Numbers below this are as good as zero: in fp32 by rounding; in fewer bits because scores differ by as much.
_LEAST_SCALE: Final = {"fp32": 1e-2, "fewer bits": 1.0}


def agreement(reference: str, got: Sequence[Any], want: Sequence[Any]) -> Accuracy:
    """Compare outputs: vectors by cosine and their largest entry, tokens and answers one by one.

    Args:
        reference: whose outputs ``want`` are.
        got: rows of numbers, rows of tokens, or texts.
        want: the same of the reference.

    Raises:
        CheckFailed: they are of unlike number or size, so that the programs did not do the same job, or a number is not
            finite.
    """
    if len(got) != len(want) or not want:
        raise CheckFailed(f"{len(got)} outputs, the reference {reference} gave {len(want)}: not the same job")
    first = want[0]
    if isinstance(first, str):
        same = sum(one == other for one, other in zip(got, want, strict=True))
        return Accuracy(reference, len(want), None, None, same / len(want), None)
    if any(len(one) != len(other) for one, other in zip(got, want, strict=True)):
        raise CheckFailed(f"outputs of {len(got[0])} numbers, the reference {reference} gave {len(first)}")
    if isinstance(first[0], int):
        pairs = [pair for one, other in zip(got, want, strict=True) for pair in zip(one, other, strict=True)]
        return Accuracy(reference, len(pairs), None, None, sum(a == b for a, b in pairs) / len(pairs), None)
    a, b = np.array(got, np.float64), np.array(want, np.float64)
    for rows, whose in ((a, "the outputs"), (b, f"the outputs of the reference {reference}")):
        if not np.isfinite(rows).all():
            place = int(np.flatnonzero(~np.isfinite(rows).all(-1))[0])
            raise CheckFailed(f"{whose} have NaN or infinity in row {place} of {len(rows)}; expected finite numbers")
    if b.shape[-1] == 1:
        return Accuracy(reference, len(b), None, None, None, float(np.abs(a - b).max()))
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    cosines = np.where(norms > 0, (a * b).sum(-1) / np.where(norms > 0, norms, 1), (a == b).all(-1))
    return Accuracy(
        reference, len(b), float(cosines.mean()), float(cosines.min()),
        float((a.argmax(-1) == b.argmax(-1)).mean()), float(np.abs(a - b).max()),
    )  # fmt: skip


def together(parts: Sequence[Accuracy]) -> Accuracy:
    """What several comparisons say as one: means over all rows, the worst cosine and the largest difference."""
    cosines = [(part.cosine_mean, part.rows) for part in parts if part.cosine_mean is not None]
    tops = [(part.top1, part.rows) for part in parts if part.top1 is not None]
    worst = [part.cosine_min for part in parts if part.cosine_min is not None]
    apart = [part.max_abs for part in parts if part.max_abs is not None]
    return Accuracy(
        parts[0].reference, sum(part.rows for part in parts), _mean(cosines), min(worst, default=None), _mean(tops),
        max(apart, default=None),
    )  # fmt: skip


def _mean(weighted: Sequence[tuple[float, int]]) -> float | None:
    return sum(value * rows for value, rows in weighted) / sum(rows for _, rows in weighted) if weighted else None


def agrees(found: Accuracy, precision: str, want: Sequence[Any]) -> bool:
    """Whether a candidate did the reference's job: exact to rounding in fp32, alike in fewer bits.

    Greedy tokens may part where two scores tie, and all that follow differ; so tokens and answers of fp32 need not all
    be the same, but most.

    Args:
        found: the agreement of one output.
        precision: of the candidate.
        want: that output of the reference.
    """
    bits = "fp32" if precision == "fp32" else "fewer bits"
    if found.cosine_min is not None:
        return found.cosine_min >= _LEAST_COSINE[bits]
    if found.max_abs is not None:
        scale = max(_LEAST_SCALE[bits], float(np.abs(np.array(want, np.float64)).max()))
        return found.max_abs <= _MOST_APART[bits] * scale
    return (found.top1 or 0.0) >= (0.9 if precision == "fp32" else 0.5)
