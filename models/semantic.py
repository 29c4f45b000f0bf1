"""How a semantic operator enters a trace: it becomes one node that only knows the shape of its results.

The operators themselves, with their meaning in PyTorch, stand in ``ops.py``.
"""

from __future__ import annotations

import contextlib
import contextvars
import json
from collections.abc import Iterator, Sequence
from typing import Any, Final

import torch
from torch import Tensor

DOMAIN: Final = "pinnace"
_tracing: contextvars.ContextVar[bool] = contextvars.ContextVar("pinnace_semantic_tracing", default=False)


@contextlib.contextmanager
def semantic_tracing() -> Iterator[None]:
    """While active, every semantic operator emits one semantic node instead of computing."""
    token = _tracing.set(True)
    try:
        yield
    finally:
        _tracing.reset(token)


def is_tracing() -> bool:
    """Whether operators emit semantic nodes at this moment."""
    return _tracing.get()


# One operator carries them all through the tracer; its only meaning is the shape of its results.
_LIBRARY: Final = torch.library.Library(DOMAIN, "DEF")  # type: ignore[no-untyped-call]  # torch.library has no types
_LIBRARY.define(  # type: ignore[no-untyped-call]
    "semantic(Tensor?[] inputs, str op, str attributes, SymInt[] sizes, int[] ranks, str[] dtypes) -> Tensor[]"
)


@torch.library.register_fake(f"{DOMAIN}::semantic")  # type: ignore[untyped-decorator]
def _semantic_shapes(
    inputs: Sequence[Tensor | None],
    op: str,
    attributes: str,
    sizes: Sequence[int],
    ranks: Sequence[int],
    dtypes: Sequence[str],
) -> list[Tensor]:
    device = next(tensor.device for tensor in inputs if tensor is not None)
    left = iter(sizes)
    shapes = [[next(left) for _ in range(rank)] for rank in ranks]
    return [torch.empty(s, dtype=getattr(torch, d), device=device) for s, d in zip(shapes, dtypes, strict=True)]


def emit(
    op: str, inputs: Sequence[Tensor | None], attributes: dict[str, Any], *outputs: tuple[torch.dtype, Sequence[Any]]
) -> Any:
    """Record one semantic node with the given output types and shapes; one output is returned bare."""
    made = torch.ops.pinnace.semantic(
        list(inputs),
        op,
        json.dumps(attributes),
        [size for _, shape in outputs for size in shape],
        [len(shape) for _, shape in outputs],
        [str(dtype).removeprefix("torch.") for dtype, _ in outputs],
    )
    return made[0] if len(outputs) == 1 else tuple(made)
