"""One trace of a reference model on fake tensors: a graph of semantic operators, and not one weight in memory."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import onnx_ir as ir
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from pinnace.export.graph import WRAPPER
from pinnace.export.passes import rename_sizes
from pinnace.export.tasks import DYNAMIC_AXES
from pinnace.models import ops
from pinnace.spec import TensorSpec

# Sizes of the example that is traced; odd and different, so that no two axes look equal.
EXAMPLE_SIZES: Final[Mapping[str, int]] = {
    "batch": 3, "choices": 5, "sequence": 7, "past_sequence": 11, "total_sequence": 18,
}  # fmt: skip
TRACE_OPSET: Final = 18  # what the tracer emits for plain operators keeps its meaning in every later opset


class _Traced(nn.Module):
    """Calls a model with positional tensors and returns the named outputs in order."""

    def __init__(self, model: nn.Module, call: Callable[..., Sequence[torch.Tensor]]) -> None:
        super().__init__()
        self.model = model
        self._call = call

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        results: list[torch.Tensor] = []
        for result in self._call(self.model, *tensors):
            # The last hidden state is also the last of the hidden states; a graph output has only one name.
            results.append(result.clone() if any(result is other for other in results) else result)
        return tuple(results)


def trace(
    build: Callable[[], nn.Module],
    call: Callable[..., Sequence[torch.Tensor]],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
) -> ir.Model:
    """Trace a model into a graph of semantic operators.

    Args:
        build: makes the model; called where tensors are fake, so that no weight is allocated.
        call: ``call(model, *tensors)`` returns the outputs in the order of ``outputs``.
        inputs: names, dtypes and shapes; an axis whose name is in `DYNAMIC_AXES` stays free.
        outputs: names and shapes of the results.

    Returns:
        the model; its initializers are named as the model's ``state_dict`` and hold no data.
    """
    with _quiet(), FakeTensorMode(), ops.semantic_tracing():
        model = build().eval()
        example = tuple(
            torch.ones(*(EXAMPLE_SIZES[a] if isinstance(a, str) else a for a in s.shape), dtype=getattr(torch, s.dtype))
            for s in inputs
        )
        axes: dict[str, Any] = {name: torch.export.Dim(name) for name in DYNAMIC_AXES if name != "total_sequence"}
        if {"past_sequence", "total_sequence"} <= {a for s in inputs for a in s.shape}:
            axes["total_sequence"] = torch.export.Dim.AUTO  # the tracer ties it to past + new by itself
        shapes = tuple({i: axes[a] for i, a in enumerate(s.shape) if isinstance(a, str)} for s in inputs)
        program = torch.export.export(
            _Traced(model, call), example, dynamic_shapes=(shapes,), strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )  # fmt: skip
        traced = torch.onnx.export(
            program, (), dynamo=True, opset_version=TRACE_OPSET, optimize=False, verbose=False,
            input_names=[s.name for s in inputs], output_names=[s.name for s in outputs],
        )  # fmt: skip
    assert traced is not None  # only a call that writes a file itself returns nothing
    graph_model: ir.Model = traced.model
    _name_weights(graph_model)
    rename_sizes(graph_model.graph, _size_names(graph_model.graph.inputs, inputs))
    _set_shapes(graph_model.graph.inputs, inputs)
    _set_shapes(graph_model.graph.outputs, outputs)
    return graph_model


def _name_weights(model: ir.Model) -> None:
    """Strip the wrapper's prefix, so that initializers carry the checkpoint's names."""
    for name in list(model.graph.initializers):
        value = model.graph.initializers.pop(name)
        value.name = name.removeprefix(f"{WRAPPER}.")
        value.const_value = None
        model.graph.initializers[value.name] = value


def _size_names(values: Sequence[ir.Value], specs: Sequence[TensorSpec]) -> dict[str, str]:
    """The tracer's symbol of a size, such as ``s26`` -> the name that the task gives it."""
    return {
        size.value: axis
        for value, spec in zip(values, specs, strict=True)
        for size, axis in zip(value.shape or (), spec.shape, strict=True)
        if isinstance(size, ir.SymbolicDim) and size.value is not None and isinstance(axis, str)
    }


def _set_shapes(values: Sequence[ir.Value], specs: Sequence[TensorSpec]) -> None:
    for value, spec in zip(values, specs, strict=True):
        value.shape = ir.Shape(spec.shape)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the tracer's own remarks about packages that are not there; errors still come as exceptions."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
