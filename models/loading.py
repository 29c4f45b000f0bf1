"""Build a model from a checkpoint: weights are read one at a time into a model that had none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pinnace.errors import ConfigError, UsageError, unknown_word
from pinnace.models.checkpoints.checkpoint import Checkpoint
from pinnace.models.checkpoints.hub import HubOptions, locate_checkpoint
from pinnace.models.checkpoints.resolution import Resolution
from pinnace.models.checkpoints.tensor_files import TORCH_TYPES, read_tensor
from pinnace.models.modeling import PreTrainedModel

M = TypeVar("M", bound=PreTrainedModel)


@dataclass(frozen=True)
class LoadReport:
    """What happened at loading.

    Attributes:
        folder: the checkpoint.
        revision: the Hub's commit, empty for a plain folder.
        missing: weights that the checkpoint lacks and that were made afresh.
        unexpected: stored names that the model does not use, in today's spelling.
        untied: weights that the configuration ties, but that are stored with other numbers; they stay apart.
    """

    folder: Path
    revision: str = ""
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    untied: tuple[str, ...] = ()


def load_model(
    model_class: type[M],
    name: str | Path,
    *,
    config: Any = None,
    dtype: str | torch.dtype | None = None,
    init_missing: bool = False,
    allow_pickle: bool = False,
    hub: HubOptions | None = None,
    subfolder: str = "",
    model_options: Mapping[str, Any] | None = None,
    config_changes: Mapping[str, Any] | None = None,
) -> M:
    """As `PreTrainedModel.from_pretrained`."""
    located = locate_checkpoint(name, hub, subfolder=subfolder, allow_pickle=allow_pickle)
    if config is None:
        config = model_class.config_class.from_pretrained(located.path, **(config_changes or {}))
    elif config_changes:
        raise UsageError(f"give either config or its fields, got both: {', '.join(sorted(config_changes))}")
    checkpoint = Checkpoint.open(located.path, allow_pickle=allow_pickle)
    with torch.device("meta"):
        model = model_class(config, **(model_options or {}))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = checkpoint.resolve(shapes, model_class.name_rules, tied=config.tie_word_embeddings)
    found.require(name, model_class.__name__, init_missing=init_missing)
    fill(model, found, _wanted_type(dtype, config))
    model.load_report = LoadReport(located.path, located.revision, found.missing, found.unexpected, found.untied)
    return model.eval()


def _wanted_type(dtype: str | torch.dtype | None, config: Any) -> torch.dtype | None:
    """The type to convert to; None keeps what is stored."""
    known = {str(each).removeprefix("torch."): each for each in TORCH_TYPES.values() if each.is_floating_point}
    if dtype == "auto":
        if config.dtype is not None and config.dtype not in known:
            words = ", ".join(known)
            raise ConfigError(f"dtype of the configuration is {config.dtype!r}, expected one of {words}; give dtype")
        return known[config.dtype] if config.dtype else None
    name = "float32" if dtype is None else str(dtype).removeprefix("torch.")
    if name not in known:
        raise unknown_word("dtype", name, [*known, "auto"])
    return known[name]


def fill(model: PreTrainedModel, found: Resolution, dtype: torch.dtype | None) -> None:
    """Give every weight of a model without memory its numbers."""
    fresh = set(found.missing)
    with torch.no_grad():
        for prefix, module in model.named_modules():
            weights = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
            own = {f"{prefix}.{key}".lstrip(".") for key, _ in weights}
            if fresh & own:
                _make_afresh(model, module, dtype)
    tensors: dict[str, Tensor] = {}
    already: dict[tuple[Path, int], Tensor] = {}
    for name, place in found.bound.items():
        key = (place.file, place.start)
        if key not in already:
            already[key] = read_tensor(place, dtype)
        tensors[name] = already[key]
    model.load_state_dict(tensors, strict=False, assign=True)
    if found.untied:
        # What is stored counts; the configuration says so from here on, and so does the next save.
        model.config.tie_word_embeddings = False
    model.tie_weights()


def _make_afresh(model: PreTrainedModel, module: nn.Module, dtype: torch.dtype | None) -> None:
    module.to_empty(device="cpu", recurse=False)
    module.to(dtype or torch.float32)
    for weight in module.parameters(recurse=False):
        weight.zero_()
    model.init_weights(module)
