"""One trace of a reference model on fake tensors: a graph of semantic operators, and not one weight in memory."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import onnx_ir as ir
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from pinnace.export.tasks import DYNAMIC_AXES
from pinnace.export.translate import translate
from pinnace.models.semantic import semantic_tracing
from pinnace.spec import TensorSpec

# Sizes of the example that is traced; odd and different, so that no two axes look equal.
EXAMPLE_SIZES: Final[Mapping[str, int]] = {
    "batch": 3, "choices": 5, "sequence": 7, "past_sequence": 11, "total_sequence": 18,
}  # fmt: skip
TRACE_OPSET: Final = 18  # plain operators are written so that they keep their meaning in every later opset


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
    with warnings.catch_warnings(action="ignore"), FakeTensorMode(), semantic_tracing():
        model = build().eval()
        example = tuple(
            torch.ones(*(EXAMPLE_SIZES[a] if isinstance(a, str) else a for a in s.shape), dtype=getattr(torch, s.dtype))
            for s in inputs
        )
        axes: dict[str, Any] = {name: torch.export.Dim(name) for name in DYNAMIC_AXES if name != "total_sequence"}
        if any("total_sequence" in spec.shape for spec in inputs):
            axes["total_sequence"] = torch.export.Dim.AUTO  # the tracer ties it to past + new by itself
        shapes = tuple({i: axes[a] for i, a in enumerate(s.shape) if isinstance(a, str)} for s in inputs)
        program = torch.export.export(
            _Traced(model, call), example, dynamic_shapes=(shapes,), strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )  # fmt: skip
    return translate(program, inputs, outputs, TRACE_OPSET)
