"""What a quantization tried and found: a table for a person, plain data for a program, a record for the certificate."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from pinnace.compare import Bound, Evaluation
from pinnace.quantize.judging.latency import Latency
from pinnace.quantize.recipe import TIED
from pinnace.quantize.workshop import Candidate
from pinnace.runtime.machine.cpu import Cpu
from pinnace.units import in_bytes


@dataclasses.dataclass(frozen=True)
class Entry:
    """One candidate with everything that was measured of it.

    Attributes:
        candidate: the variant and its quality.
        worst: weights that lose most, where they were looked for.
        reference_latency: fp32's, in the same rounds.
        latency: the candidate's.
        reference_bytes: of fp32's graph and weights.
    """

    candidate: Candidate
    worst: tuple[str, ...]
    reference_latency: Latency
    latency: Latency
    reference_bytes: int

    @property
    def scheme(self) -> str:
        """Name of the scheme."""
        return self.candidate.scheme

    @property
    def precision(self) -> str:
        """Slot of the variant."""
        return self.candidate.precision

    @property
    def miss(self) -> str:
        """What the gate holds against it; empty where it passes."""
        return self.candidate.miss

    @property
    def bytes(self) -> int:
        """Bytes of its graph and weights."""
        return self.candidate.written.bytes

    @property
    def speedup(self) -> float:
        """Geometric mean of its speed-ups over fp32."""
        return self.latency.overall

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        evaluation = self.candidate.evaluation
        return {
            "scheme": self.scheme,
            "precision": self.precision,
            "verdict": f"missed: {self.miss}" if self.miss else "passed",
            "bytes": self.bytes,
            "share_of_fp32": round(self.bytes / self.reference_bytes, 4),
            "metric": evaluation.metric,
            "value": _finite(evaluation.value),
            "fp32": _finite(evaluation.reference),
            "labelled": evaluation.labelled,
            "details": {name: _finite(value) for name, value in evaluation.details.items()},
            "milliseconds": dict(self.latency.milliseconds),
            "fp32_milliseconds": dict(self.reference_latency.milliseconds),
            "speedup": dict(self.latency.speedup),
            "relieved": relieved(self.candidate),
            "worst_weights": list(self.worst),
        }


@dataclasses.dataclass(frozen=True)
class Report:
    """Everything that was tried.

    Attributes:
        path: the bundle's folder.
        task: its task.
        data: where the examples came from.
        counts: examples that calibrated, and others that judged.
        reference: fp32's own quality on the latter.
        reference_bytes: of fp32's graph and weights.
        entries: the candidates, in the order in which they were tried.
        chosen: the one that was kept, None where fp32 stays alone.
        why: the reason, in words.
        cpu: the processor on which all this was measured.
    """

    path: str
    task: str
    data: str
    counts: tuple[int, int]
    reference: Evaluation
    reference_bytes: int
    entries: tuple[Entry, ...]
    chosen: Entry | None
    why: str
    cpu: Cpu

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "path": self.path,
            "task": self.task,
            "data": {"source": self.data, "calibrating": self.counts[0], "judging": self.counts[1]},
            "processor": self.cpu.to_dict(),
            "chosen": None if self.chosen is None else self.chosen.scheme,
            "why": self.why,
            "candidates": [entry.to_dict() for entry in self.entries],
        }

    def lines(self) -> list[str]:
        """A table with one row for each candidate, and what was decided."""
        first = self.entries[0]
        kinds = list(first.latency.milliseconds)
        head = ["", "size", "of fp32", self.reference.metric.replace("_", " "), *(f"{kind}, ms" for kind in kinds), ""]
        rows = [head, ["fp32", in_bytes(self.reference_bytes), "1", _number(self.reference.value)]]
        rows[1] += [f"{first.reference_latency.milliseconds[kind]:.3g}" for kind in kinds] + [""]
        for entry in self.entries:
            evaluation, times = entry.candidate.evaluation, entry.latency
            rows.append(
                [entry.scheme, in_bytes(entry.bytes), f"{entry.bytes / self.reference_bytes:.3f}"]
                + [_number(evaluation.value)]
                + [f"{times.milliseconds[kind]:.3g} ({times.speedup[kind]:.2f}x)" for kind in kinds]
                + [f"misses: {entry.miss}" if entry.miss else _passed(entry)]
            )  # fmt: skip
        widths = [max(len(row[i]) for row in rows) for i in range(len(head) - 1)]
        shown = [
            "  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[-1]]).rstrip() for row in rows
        ]
        judged = f"judged on {self.counts[1]} examples of {self.data}, calibrated on {self.counts[0]} others"
        return [*shown, judged, self.why]


def relieved(candidate: Candidate) -> dict[str, str]:
    """Weights that did not go the way that most of their kind go, and the way that each went."""
    found: dict[str, str] = {}
    tables = {name: way for name, way in candidate.recipe.tables.items() if way != TIED}  # told by its projection
    for ways in (candidate.recipe.groups, tables):
        usual = max(ways.values(), key=list(ways.values()).count, default="")
        found |= {name: way for name, way in ways.items() if way != usual}
    return found


def candidate_record(
    entry: Entry, gate: Callable[[str, str], Sequence[Bound]], cpu: Cpu, data: str, counts: tuple[int, int]
) -> dict[str, Any]:
    """What the certificate says of a variant: its gate, its figures, and what became of every weight."""
    evaluation = entry.candidate.evaluation
    bounds = gate(evaluation.precision, evaluation.metric)
    facts = entry.to_dict()
    # Times belong to the machine and the moment; the certificate of equal bytes should be equal.
    for name in ("milliseconds", "fp32_milliseconds", "speedup"):
        facts.pop(name)
    return {
        **facts,
        "examples": {"source": data, "calibrating": counts[0], "judging": counts[1]},
        "gate": [
            {
                key: value
                for key, value in dataclasses.asdict(bound).items()
                if value not in (float("inf"), -float("inf"))
            }
            for bound in bounds
        ],
        "processor": cpu.to_dict(),
        "recipe": entry.candidate.recipe.to_dict(),
        "weights": entry.candidate.written.decisions,
    }


def _passed(entry: Entry) -> str:
    apart = relieved(entry.candidate)
    return "passes" + (f", {len(apart)} weights nearer to fp32" if apart else "")


def _finite(value: float) -> float | None:
    """JSON has no NaN: what was not judged, or is no number, is null."""
    return value if math.isfinite(value) else None


def _number(value: float) -> str:
    return f"{value:.4f}"
