"""What a quantization tried and found: a table for a person, plain data for a program, a record for the certificate."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Final

from pinnace.compare import Bound, Evaluation
from pinnace.quantize.judging.latency import Latency
from pinnace.quantize.recipe import TIED
from pinnace.quantize.schemes import SCHEMES, Scheme
from pinnace.quantize.search import Attempt
from pinnace.quantize.workshop import Candidate
from pinnace.runtime.machine.cpu import Cpu
from pinnace.units import in_bytes

ENOUGH: Final = 50  # examples; of fewer, one more or less decides a gate of 99 %


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
    def calibrated(self) -> bool:
        """Whether calibration had a part in it."""
        recipe = self.candidate.recipe
        return bool(recipe.calibrated) or recipe.half

    @property
    def bytes(self) -> int:
        """Bytes of its graph and weights."""
        return self.candidate.written.bytes

    @property
    def speedup(self) -> float:
        """How many times as fast as fp32, in one number; see `Latency.overall`."""
        return self.latency.overall

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        evaluation = self.candidate.evaluation
        return {
            "scheme": self.scheme,
            "precision": self.precision,
            "verdict": f"missed: {self.miss}" if self.miss else "passed",
            "bytes": self.bytes,
            "share_of_fp32": self.bytes / self.reference_bytes,
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
        return [*shown, _uses(self.data, *self.counts), self.why]


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
    few = few_judged(evaluation)
    # Times belong to the machine and the moment; the certificate of equal bytes should be equal.
    for name in ("milliseconds", "fp32_milliseconds", "speedup"):
        facts.pop(name)
    return {
        **facts,
        "examples": {"source": data, "calibrating": counts[0], "judging": counts[1], **({"note": few} if few else {})},
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


def few_judged(evaluation: Evaluation) -> str:
    """Say that a gate means little where little was judged; empty where there was enough, or nothing was judged."""
    kind = "positions" if "positions" in evaluation.details else "examples"  # of the tokens of texts, for decoders
    count = int(evaluation.details.get("positions", evaluation.examples))
    if not 0 < count < ENOUGH:
        return ""
    return f"judged on {_some(count, kind)}, of which a gate says little; give data for at least {ENOUGH}"


def refusal(scheme: Scheme, attempt: Attempt) -> str:
    """Why nothing was written, which weights lose most, and what to try."""
    lines = [f"{scheme.name} misses its gate, so nothing was written: {attempt.candidate.miss}"]
    if attempt.worst:
        lines.append(f"  These weights lose most: {', '.join(attempt.worst)}")
    others = [s.name for s in SCHEMES.values() if s.precision == scheme.precision and s.name != scheme.name]
    nearer = others if scheme.precision == "int8" else [*others, "int8"]
    lines.append(f"  Try --scheme {' or '.join(nearer)}, --keep with the names above, or --allow-degraded")
    return "\n".join(lines)


def _uses(data: str, calibrating: int, judging: int) -> str:
    """What the examples did."""
    judged = f"judged on {_some(judging, 'examples')} of {data}" if judging else "not judged"
    if not calibrating:
        return f"{judged}, not calibrated"
    what = _some(calibrating, "others") if judging else f"{_some(calibrating, 'examples')} of {data}"
    return f"{judged}, calibrated on {what}"


def _some(count: int, kind: str) -> str:
    return f"{count} {kind.removesuffix('s') if count == 1 else kind}"


def _passed(entry: Entry) -> str:
    apart = relieved(entry.candidate)
    return "passes" + (f", {len(apart)} weights nearer to fp32" if apart else "")


def _finite(value: float) -> float | None:
    """JSON has no NaN: what was not judged, or is no number, is null."""
    return value if math.isfinite(value) else None


def _number(value: float) -> str:
    return f"{value:.4f}"
