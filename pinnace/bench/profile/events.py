"""ONNX Runtime's own profile as records: which node took how long in which run, and the shapes that it saw."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from pinnace.errors import MachineError

_KERNEL: Final = "_kernel_time"
_RUN: Final = "model_run"
Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class NodeTime:
    """One call of one kernel.

    Attributes:
        name: of the node in the optimised graph.
        op_type: of the kernel.
        seconds: how long the call took; ONNX Runtime counts whole microseconds.
        inputs, outputs: shapes of its tensors; weights that were packed at load do not appear among the inputs.
    """

    name: str
    op_type: str
    seconds: float
    inputs: tuple[Shape, ...]
    outputs: tuple[Shape, ...]


@dataclasses.dataclass(frozen=True)
class RunTime:
    """One run of the graph: how long it took in all, and its nodes in the order in which they ran."""

    seconds: float
    nodes: tuple[NodeTime, ...]


def read_runs(path: str | Path) -> list[RunTime]:
    """Read the JSON file that ``InferenceSession.end_profiling`` names.

    Raises:
        MachineError: there is no such file, or it is cut off: the disk was full, or too many events were recorded.
    """
    try:
        events = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MachineError(
            f"ONNX Runtime's profile cannot be read ({str(error)[:100]}). Profile fewer runs, or free disk space"
        ) from None
    runs, nodes = [], []
    for event in events:
        if event.get("cat") == "Node" and str(event.get("name")).endswith(_KERNEL):
            nodes.append(event)
        elif event.get("cat") == "Session" and event.get("name") == _RUN:
            # A run's own event is written when it ends, behind those of its nodes.
            runs.append(RunTime(event["dur"] / 1e6, tuple(_node(one) for one in _outermost(nodes))))
            nodes = []
    return runs


def _outermost(events: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Leave out the nodes of subgraphs: the time of the node that holds them has theirs in it."""
    end = -1
    for event in sorted(events, key=lambda one: (one["ts"], -one["dur"])):
        if event["ts"] < end and event["ts"] + event["dur"] <= end:
            continue
        end = event["ts"] + event["dur"]
        yield event


def _node(event: Mapping[str, Any]) -> NodeTime:
    facts = event["args"]
    return NodeTime(
        name=event["name"].removesuffix(_KERNEL),
        op_type=str(facts.get("op_name", "")),
        seconds=event["dur"] / 1e6,
        inputs=_shapes(facts.get("input_type_shape", ())),
        outputs=_shapes(facts.get("output_type_shape", ())),
    )


def _shapes(listed: Iterable[Mapping[str, Iterable[int]]]) -> tuple[Shape, ...]:
    return tuple(tuple(shape) for one in listed for shape in one.values())
