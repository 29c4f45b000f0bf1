"""What a profile found, as frozen records: costs by layer, part and operator, which add up to a run."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from pinnace.bench.profile.nodes import OTHER, OUTSIDE

BETWEEN_NODES: Final = "between nodes"
AROUND: Final = "around the graph"
# Rows that are no layer of the model, and what they are.
NOT_LAYERS: Final[Mapping[str, str]] = {
    OUTSIDE: "nodes that ONNX Runtime added and that lead to no node of the bundle's graph",
    BETWEEN_NODES: "ONNX Runtime's own work: choosing the next node, allocating, and writing the profile",
    AROUND: "checks of inputs and outputs, binding and Python",
}


@dataclasses.dataclass(frozen=True)
class Cost:
    """What the nodes of one operator in one part of one layer cost in a run.

    Attributes:
        layer: of the semantic model, or one of `NOT_LAYERS`.
        part: of the layer: attention, MLP, norms and residuals, other.
        operator: the kernel, or the function of the model that it is the inside of.
        calls: kernels called.
        seconds: time in them.
        flops: of matrix multiplications and attention, two for each multiplied and added number.
        weight_bytes: of the matrices multiplied with, each read once.
    """

    layer: str
    part: str
    operator: str
    calls: float
    seconds: float
    flops: float = 0.0
    weight_bytes: float = 0.0

    @property
    def place(self) -> str:
        """The part of the model: ``attention`` of whichever layer, or the layer where it has no such parts."""
        if self.part != OTHER:
            return self.part
        return "other in layers" if self.layer.startswith("layer ") else self.layer


@dataclasses.dataclass(frozen=True)
class Phase:
    """One kind of run: the ``run`` of an encoder, the ``prompt`` or the ``step`` of a decoder.

    Every time is the mean of the middle half of the runs (those between the quartiles): as steady as a median, and
    the parts add up to the whole.

    Attributes:
        runs: that were measured with the profiler.
        seconds: of a run with the profiler, the sum of the costs.
        plain_seconds: of a run without it.
        costs: in the order in which the layers run.
        outside: kernels of `OUTSIDE` and how many there are.
    """

    name: str
    runs: int
    seconds: float
    plain_seconds: float
    costs: tuple[Cost, ...]
    outside: dict[str, int]

    @property
    def overhead(self) -> float:
        """What the profiler adds, as a share of the time without it."""
        return self.seconds / self.plain_seconds - 1


@dataclasses.dataclass(frozen=True)
class Profile:
    """Where the time of one variant goes.

    Attributes:
        sizes: batch and length, or batch, prompt and decode_steps.
        gemm_flops: FLOP/s that one large fp32 multiplication reaches here with as many threads; None if not measured.
        memory_bytes_s: bytes/s read from memory with as many threads; None if not measured.
        fused: whether the graph that ONNX Runtime runs could be read; without it, what has new names is `OUTSIDE`.
    """

    bundle: str
    task: str
    head: str
    precision: str
    threads: int
    sizes: dict[str, int]
    versions: dict[str, str]
    gemm_flops: float | None
    memory_bytes_s: float | None
    fused: bool
    phases: tuple[Phase, ...]

    def to_dict(self) -> dict[str, Any]:
        """Give plain data, fit for JSON; times in seconds, rates in FLOP/s and bytes/s."""
        data = dataclasses.asdict(self)
        for phase, made in zip(self.phases, data["phases"], strict=True):
            made["profiler_overhead"] = phase.overhead
        return data


def group(costs: Sequence[Cost], key: Callable[[Cost], str]) -> dict[str, Cost]:
    """Add up costs of which ``key`` says the same, in order of first appearance."""
    groups: dict[str, list[Cost]] = defaultdict(list)
    for cost in costs:
        groups[key(cost)].append(cost)
    return {name: _total(members) for name, members in groups.items()}


def _total(costs: Sequence[Cost]) -> Cost:
    def total(field: str) -> float:
        return math.fsum(getattr(cost, field) for cost in costs)

    return dataclasses.replace(
        costs[0],
        calls=total("calls"),
        seconds=total("seconds"),
        flops=total("flops"),
        weight_bytes=total("weight_bytes"),
    )
