"""The model of an export without its weights, and where each weight lies: in the checkpoint, or made at random."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pinnace.errors import CheckpointError, ConfigError
from pinnace.export.source import Origin
from pinnace.export.weights import random_weights
from pinnace.models.checkpoints.checkpoint import Checkpoint
from pinnace.models.checkpoints.resolution import Resolution
from pinnace.models.registry import head_class


@dataclasses.dataclass(frozen=True)
class ModelWeights:
    """A model to build, and its weights by name.

    Attributes:
        build: makes the reference model, on the device of the moment.
        found: where each weight lies.
        fresh: names of weights that the checkpoint lacks and that were made at random; constants are not among them.
        has_pooler: whether the model gives a pooled output.
    """

    build: Callable[[], Any]
    found: Resolution
    fresh: tuple[str, ...]
    has_pooler: bool
    # A converted pickle lives as long as the checkpoint that read it.
    _keep: Checkpoint | None = dataclasses.field(default=None, repr=False)


def make_weights(origin: Origin, file: Path) -> ModelWeights:
    """Write random weights for a model into ``file``; tied ones once."""
    build, shapes = _builder(origin)
    tied = origin.config.tie_word_embeddings
    shared = origin.arch.names.tied if tied else {}
    own = {name: shape for name, shape in shapes.items() if name not in shared}
    random_weights(file, own, origin.config.initializer_range, origin.arch.names.start)
    found = Checkpoint.of_files(file.parent, (file,)).resolve(shapes, origin.arch.names, tied=tied)
    return ModelWeights(build, found, (), _has_pooler(shapes))


def find_weights(
    origin: Origin, folder: Path, init_file: Path, *, init_missing: bool, allow_pickle: bool
) -> ModelWeights:
    """Find a model's weights in a checkpoint.

    Args:
        origin: which model; its configuration is told where weights that should be tied are stored apart.
        folder: the checkpoint.
        init_file: file for weights that the checkpoint lacks.
        init_missing: make those at random instead of failing.
        allow_pickle: accept a pickle where there are no safetensors.

    Raises:
        CheckpointError: no weights, unsafe or damaged files, or weights that are missing or of another shape.
    """
    build, shapes = _builder(origin)
    checkpoint = Checkpoint.open(folder, allow_pickle=allow_pickle)
    names, tied = origin.arch.names, origin.config.tie_word_embeddings
    found = checkpoint.resolve(shapes, names, tied=tied)
    # Vectors need no pooler: a checkpoint without one gives a graph without one.
    pooled = origin.task.name == "feature-extraction" and _has_pooler(shapes)
    if pooled and found.missing and all("pooler." in name for name in found.missing):
        build, shapes = _builder(origin, add_pooling_layer=False)
        found = checkpoint.resolve(shapes, names, tied=tied)
    try:
        found.require(origin.source.name, origin.head, init_missing=init_missing)
    except CheckpointError as error:
        raise CheckpointError(f"{error}{origin.other_head}") from None
    if found.untied:
        origin.config.update({"tie_word_embeddings": False})
    fresh = found.missing
    if fresh:
        # Of a tied pair that is missing whole, one tensor is made.
        shared = {name: source for name, source in names.tied.items() if tied and {name, source} <= set(fresh)}
        own = {name: shapes[name] for name in fresh if name not in shared}
        random_weights(init_file, own, origin.config.initializer_range, names.start)
        made = Checkpoint.of_files(init_file.parent, (init_file,)).tensors
        bound = {**found.bound, **made, **{name: made[source] for name, source in shared.items()}}
        found = dataclasses.replace(found, bound=bound, missing=())
    untrained = tuple(name for name in fresh if not name.endswith(names.constants))
    return ModelWeights(build, found, untrained, _has_pooler(shapes), checkpoint)


def _builder(origin: Origin, **options: Any) -> tuple[Callable[[], Any], dict[str, tuple[int, ...]]]:
    head = head_class(origin.arch, origin.head)

    def build() -> Any:
        return head(origin.config, **options)

    try:
        with torch.device("meta"):
            state = build().state_dict()
    except ConfigError as error:
        raise ConfigError(f"{error}{origin.other_head}") from None
    return build, {name: tuple(tensor.shape) for name, tensor in state.items()}


def _has_pooler(shapes: dict[str, tuple[int, ...]]) -> bool:
    return any("pooler." in name for name in shapes)
