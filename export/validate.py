"""Run the written file in ONNX Runtime beside the PyTorch reference; every output of every case must agree."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from pinnace.arrays import Array
from pinnace.compare import GATES, Difference, difference
from pinnace.errors import BundleError, CheckFailed, MachineError
from pinnace.export.bisect import first_divergence
from pinnace.export.cases import Case, alone, first_tokens, real_part
from pinnace.export.interface import Interface
from pinnace.runtime.engine.matching import match_values
from pinnace.runtime.engine.ort import plain_session, run_plain
from pinnace.spec import PAST, PRESENT, TensorSpec

Outputs = Mapping[str, Array]
FIRST_STEP: Final = 4  # tokens of the first of two steps


@dataclasses.dataclass(frozen=True)
class Validation:
    """What was compared and how far it lay apart, per output, and for rows alone against rows in a batch.

    ``longest`` is the most tokens, past ones included, of any row.
    """

    cases: tuple[str, ...]
    longest: int
    outputs: dict[str, Difference]
    rows_alone: dict[str, Difference]


def open_graph(path: Path, interface: Interface) -> Callable[[Mapping[str, Array]], Outputs]:
    """Open a written graph on the CPU and return the function that runs it.

    Args:
        path: the written ``model.onnx``.
        interface: what the manifest will state.

    Raises:
        CheckFailed: ONNX Runtime refuses the graph, or the runtime would, as it has other inputs or outputs than the
            manifest states; the function raises it where a run fails.
    """
    with _as_failure(f"ONNX Runtime does not open {path.name}"):
        session = plain_session(path)
    try:
        match_values(path.name, interface.inputs, interface.outputs, session)
    except BundleError as error:
        raise CheckFailed(f"the bundle would not open: {error}") from None
    names = [output.name for output in session.get_outputs()]

    def run(inputs: Mapping[str, Array]) -> Outputs:
        with _as_failure(f"{path.name} does not run on {_shapes(inputs)}"):
            return dict(zip(names, run_plain(session, names, inputs), strict=True))

    return run


@contextlib.contextmanager
def _as_failure(what: str) -> Iterator[None]:
    """ONNX Runtime's errors have no common class; its first line names the node, and so the layer."""
    try:
        yield
    except Exception as error:
        if isinstance(error, MemoryError) or "allocate" in str(error):
            raise MachineError(f"not enough memory to check the export: {str(error)[:300]}") from None
        raise CheckFailed(f"{what}: {str(error).partition(chr(10))[0][:500]}") from None


def _shapes(inputs: Mapping[str, Array]) -> str:
    return ", ".join(f"{name} {list(array.shape)}" for name, array in list(inputs.items())[:3])


def run_reference(model: nn.Module, interface: Interface, inputs: Mapping[str, Array]) -> Outputs:
    """Run the reference model on numpy inputs."""
    with torch.inference_mode():
        tensors = [torch.from_numpy(inputs[spec.name]) for spec in interface.inputs]
        results = interface.call(model, *tensors)
    return {spec.name: result.float().numpy() for spec, result in zip(interface.outputs, results, strict=True)}


def validate(graph: Path, model: nn.Module, interface: Interface, cases: Sequence[Case], precision: str) -> Validation:
    """Compare the graph in a file with the reference on every case.

    Args:
        graph: the written ``model.onnx``.
        model: the reference, in fp32 and evaluation mode.
        interface: names and shapes.
        cases: inputs to compare on.
        precision: whose gate decides.

    Raises:
        CheckFailed: an output misses its gate; the text names the first such output and the first layer that diverges.
    """
    run = open_graph(graph, interface)
    gate = GATES[precision]
    config: Any = model.config
    total: dict[str, Difference] = {}
    rows: dict[str, Difference] = {}
    for case in cases:
        want, got = run_reference(model, interface, case.inputs), run(case.inputs)
        for spec in _comparable(interface, case, config):
            axes = interface.axes[spec.name]
            found = difference(real_part(case, axes, got[spec.name]), real_part(case, axes, want[spec.name]), gate.tie)
            _merge(total, spec.name, found)
            # A share of rows is judged over the whole grid, everything else at once.
            if miss := found.miss(dataclasses.replace(gate, min_top1=0.0)):
                where = first_divergence(graph, model, interface, case, gate)
                raise CheckFailed(f"output {spec.name!r} differs from PyTorch on {case.name}: {miss}.\n  {where}")
        if _splits(case, interface):
            _compare_rows(run, interface, case, got, rows, precision)
        if _steps(case, interface, config):
            _compare_steps(run, case, got, precision)
    for name, found in total.items():
        # The largest entry is an answer where the entries are scores, and chance in a hidden state or a cache.
        if name.endswith("logits") and (miss := found.miss(gate)):
            raise CheckFailed(f"output {name!r} differs from PyTorch over the grid: {miss}")
    longest = max(case.real_keys.shape[1] for case in cases)
    return Validation(tuple(case.name for case in cases), longest, total, rows)


def _comparable(interface: Interface, case: Case, config: Any) -> list[TensorSpec]:
    """Outputs whose layout the target shares with the reference on this case.

    Where rows have histories of different length, a shared buffer keeps each row's keys together and the reference
    appends them after the longest, so only what is computed from them can be compared. For a cache of fixed capacity
    the reference's keys are put in the same places. What a decoder without a cache pools from the first token means
    nothing where that is padding: it sees itself alone.
    """
    cache = interface.cache
    ragged = len(set(case.past)) > 1 and cache is not None and cache.in_place and not cache.fixed
    blind = case.padding == "left" and cache is None and getattr(config, "is_decoder", False)
    return [
        spec
        for spec in interface.outputs
        if not (ragged and spec.name.startswith(PRESENT))
        and not (blind and "sequence" not in interface.axes[spec.name])
    ]


def _merge(into: dict[str, Difference], name: str, found: Difference) -> None:
    into[name] = into[name].merge(found) if name in into else found


def _splits(case: Case, interface: Interface) -> bool:
    """Whether rows of the case can be run alone: several, padded on the right, and no fixed shapes or choices."""
    flat = case.inputs["input_ids"].ndim == 2
    return flat and len(case.real) > 1 and case.padding == "right" and interface.free_tokens


def _steps(case: Case, interface: Interface, config: Any) -> bool:
    """Whether the case can be fed in two steps: one row without padding, longer than the first step, free shapes.

    Nor may dynamic scaling stretch the row: the first step's keys would be those of a shorter one.
    """
    one_row = case.past and len(case.real) == 1 and case.padding == "none"
    if not one_row or case.real.shape[1] <= FIRST_STEP or not interface.free_tokens:
        return False
    longest: int | None = getattr(config, "longest_in_pieces", None)
    return longest is None or int(case.real_keys.sum()) <= longest


def _compare_rows(
    run: Callable[[Mapping[str, Array]], Outputs],
    interface: Interface,
    case: Case,
    batch: Outputs,
    rows: dict[str, Difference],
    precision: str,
) -> None:
    for row in range(len(case.real)):
        single = alone(case, row)
        got = run(single.inputs)
        for spec in interface.outputs:
            if spec.name.startswith("attentions"):
                continue  # its key axis is as long as the batch, so the shapes differ
            in_batch = Case(case.name, {n: a[row : row + 1] for n, a in case.inputs.items()}, case.real[row : row + 1])
            found = difference(
                real_part(single, interface.axes[spec.name], got[spec.name]),
                real_part(in_batch, interface.axes[spec.name], batch[spec.name][row : row + 1]),
            )
            _merge(rows, spec.name, found)
            if miss := found.miss(dataclasses.replace(GATES[precision], min_top1=0.0)):
                where = f"output {spec.name!r}: row {row} of {case.name}"
                raise CheckFailed(f"{where} alone differs from itself in the batch: {miss}")


def _compare_steps(run: Callable[[Mapping[str, Array]], Outputs], case: Case, whole: Outputs, precision: str) -> None:
    """Feed a row in two steps through the cache; the last logits must be those of the row in one step."""
    first = FIRST_STEP
    half = run(first_tokens(case.inputs, first))
    rest = {n: a if n == "attention_mask" else a[:, first:] for n, a in case.inputs.items() if not n.startswith(PAST)}
    rest |= {n.replace(PRESENT, PAST): half[n] for n in half if n.startswith(PRESENT)}
    got = run({name: np.ascontiguousarray(array) for name, array in rest.items()})
    found = difference(got["logits"][:, -1], whole["logits"][:, -1])
    if miss := found.miss(dataclasses.replace(GATES[precision], min_top1=0.0)):
        raise CheckFailed(f"output 'logits': a row fed in two steps differs from the row fed at once: {miss}")
