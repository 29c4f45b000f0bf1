"""A cache of one fixed capacity: past and present have the same shape, and new keys are written into it.

The reference knows only keys that grow. So a graph of this form is traced as one whose keys grow, lowered by rows of
its own (`lowering_static`), and its inputs are brought into the reference's form when the reference is called.

Shapes: B batch, T new tokens, P past tokens, K key/value heads, D head size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Final

import onnx_ir as ir
import torch
from torch import Tensor

from pinnace.errors import UsageError
from pinnace.export.interface import CAPACITY, Interface, Options, interface
from pinnace.export.tasks import Task
from pinnace.spec import PAST, PRESENT, TensorSpec, is_cached

SCATTER_OPSET: Final = 24  # first version with TensorScatter


@dataclasses.dataclass(frozen=True)
class StaticInterface(Interface):
    """An interface whose cache and mask are ``capacity`` wide; ``growing`` is the reference's own."""

    growing: Interface

    @property
    def traced(self) -> Interface:
        """What is traced: the same, with keys that grow."""
        return self.growing

    def call(self, model: Any, *tensors: Any) -> Sequence[Any]:
        """Call the reference: what it has no slots for is cut off before, and put back after."""
        given = dict(zip((spec.name for spec in self.inputs), tensors, strict=True))
        mask, ids = given["attention_mask"], given["input_ids"]
        new, lengths = ids.shape[1], mask.sum(1)
        start = (lengths - new).clamp(min=0)  # (B,), where each row's first new key goes
        past = int(start.max())
        seen, real = torch.arange(past) < start[:, None], torch.arange(new) < (lengths - start)[:, None]
        given["attention_mask"] = torch.cat([seen, real], 1).to(mask.dtype)
        slots = {name: tensor for name, tensor in given.items() if name.startswith(PAST)}
        given |= {name: tensor[:, :, :past] for name, tensor in slots.items()}
        results = self.growing.call(model, *given.values())
        return [
            _written(slots[spec.name.replace(PRESENT, PAST)], result[:, :, past:], start)
            if spec.name.startswith(PRESENT)
            else result
            for spec, result in zip(self.outputs, results, strict=True)
        ]


def _written(slots: Tensor, new: Tensor, start: Tensor) -> Tensor:
    """Slots (B, K, capacity, D) with the new keys (B, K, T, D) written from each row's ``start`` on."""
    places = (start[:, None] + torch.arange(new.shape[2]))[:, None, :, None].expand(new.shape)
    return slots.scatter(2, places, new)


def graph_interface(
    task: Task, config: Any, options: Options, *, target: str, opset: int, pooler: bool
) -> Interface | StaticInterface:
    """`interface`, with a cache of fixed capacity where the options ask for one.

    Args:
        task: the row of the task table.
        config: the model's configuration.
        options: choices that shape the graph.
        target: the lowering.
        opset: version of the standard operators.
        pooler: see `interface`.

    Raises:
        UsageError: as `interface`; or the target or the opset has no such cache, or other options contradict it.
    """
    others = {axis: size for axis, size in options.static.items() if axis != CAPACITY}
    found = interface(task, config, dataclasses.replace(options, static=others), target=target, pooler=pooler)
    if CAPACITY not in options.static:
        return found
    return _static(found, options.static[CAPACITY], target, opset)


def _static(growing: Interface, capacity: int, target: str, opset: int) -> StaticInterface:
    """Give an interface's cache, and the mask that speaks of it, one fixed capacity."""
    cache, static = growing.cache, growing.options.static
    asked = f"--static {CAPACITY}={capacity}"
    if cache is None:
        raise UsageError(f"{asked}: {growing.task.name} keeps no keys and values; leave it out")
    if target != "onnx" or opset < SCATTER_OPSET:
        raise UsageError(
            f"{asked} needs TensorScatter of opset {SCATTER_OPSET}, got --target {target} --opset {opset}; "
            f"add --target onnx --opset {SCATTER_OPSET}. The target ort needs no fixed capacity to write in place"
        )
    if "past_sequence" in static or growing.options.attentions:
        other = "--attentions" if growing.options.attentions else "--static past_sequence"
        raise UsageError(f"{asked} and {other} contradict each other; leave one out")
    least = static.get("sequence", 1)
    if not least <= capacity <= cache.capacity:
        raise UsageError(f"{asked}: expected {least} to {cache.capacity}, the new tokens' number and the model's limit")

    def fixed(spec: TensorSpec) -> TensorSpec:
        wide = spec.name == "attention_mask" or is_cached(spec.name)
        axes = (capacity if wide and axis in ("past_sequence", "total_sequence") else axis for axis in spec.shape)
        return dataclasses.replace(spec, shape=tuple(axes))

    return StaticInterface(
        task=growing.task,
        inputs=tuple(fixed(spec) for spec in growing.inputs),
        outputs=tuple(fixed(spec) for spec in growing.outputs),
        axes=growing.axes,
        cache=dataclasses.replace(cache, capacity=capacity, in_place=True, fixed=True),
        options=dataclasses.replace(growing.options, static={**static, CAPACITY: capacity}),
        growing=growing,
    )


def fix_shapes(model: ir.Model, interface: Interface) -> None:
    """Write an interface's shapes on a graph's inputs and outputs."""
    values = (*model.graph.inputs, *model.graph.outputs)
    for value, spec in zip(values, (*interface.inputs, *interface.outputs), strict=True):
        value.shape = ir.Shape(spec.shape)
