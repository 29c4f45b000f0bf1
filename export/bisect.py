"""Find the first layer of a graph that diverges from the reference, by giving out every module's result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch
from torch import nn

from pinnace.compare import Gate, difference
from pinnace.export.cases import Case
from pinnace.runtime.engine.ort import plain_session, run_plain

if TYPE_CHECKING:
    from pinnace.export.interface import Interface


def first_divergence(graph: Path, model: nn.Module, interface: Interface, case: Case, gate: Gate) -> str:
    """Say which module's result is the first to miss the gate, and by how much.

    Args:
        graph: the written graph; a copy with more outputs is made beside it for a moment.
        model: the reference.
        interface: how to call the reference.
        case: inputs on which the results differ.
        gate: what counts as different.
    """
    probe = ir.load(graph)
    last = _last_values(probe, model)
    given = {str(value.name) for value in probe.graph.outputs}
    extra = {str(value.name): value for value in last.values() if value.name not in given}
    probe.graph.outputs.extend(extra.values())
    path = graph.with_name("bisect.onnx")
    try:
        ir.save(probe, path)
        session = plain_session(path)
        names = sorted({str(value.name) for value in last.values()})
        values = dict(zip(names, run_plain(session, names, case.inputs), strict=True))
        got = {module: values[str(value.name)] for module, value in last.items()}
    finally:
        path.unlink(missing_ok=True)
    want = _module_outputs(model, interface, case)
    for module, array in got.items():
        if module in want and want[module].shape == array.shape:
            found = difference(array, want[module])
            if miss := found.miss(gate):
                return f"first layer that diverges: {module} ({miss})"
    weights = ", ".join(_weights_of_the_head(probe)) or "no weights"
    return (
        f"every layer agrees: the fault lies in the head's last step, which reads {weights}, or in the outputs' order"
    )


def _weights_of_the_head(model: ir.Model) -> list[str]:
    """Weights that steps outside of every layer read: those of the head's own, last step."""
    outside = [node for node in model.graph if (node.name or "").count("/") == 1]
    read = {str(value.name) for node in outside for value in node.inputs if value is not None}
    return sorted(name for name in read & set(model.graph.initializers) if name.endswith((".weight", ".bias")))


def _last_values(model: ir.Model, reference: nn.Module) -> dict[str, ir.Value]:
    """Module path -> the first output of the module's last node, in the graph's order."""
    modules = {name for name, _ in reference.named_modules()}
    last: dict[str, tuple[int, ir.Value]] = {}
    for index, node in enumerate(model.graph):
        parts = (node.name or "").strip("/").split("/")[:-1]
        for depth in range(1, len(parts) + 1):
            path = ".".join(parts[:depth])
            if path in modules:
                last[path] = (index, node.outputs[0])
    return {path: value for path, (_, value) in sorted(last.items(), key=lambda item: (item[1][0], -len(item[0])))}


def _module_outputs(model: nn.Module, interface: Interface, case: Case) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            if isinstance(tensor, torch.Tensor) and name not in found:
                found[name] = tensor.float().numpy()

        return hook

    handles = [m.register_forward_hook(keep(name)) for name, m in model.named_modules() if name]
    try:
        with torch.inference_mode():
            interface.call(model, *(torch.from_numpy(case.inputs[spec.name]) for spec in interface.inputs))
    finally:
        for handle in handles:
            handle.remove()
    return found
