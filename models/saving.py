"""Write a model as a Hugging Face checkpoint: safetensors, in shards where asked, and config.json."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from torch import Tensor

from pinnace.errors import MachineError, UsageError
from pinnace.models.checkpoints.checkpoint import INDEX_NAME, SINGLE_NAME
from pinnace.models.checkpoints.tensor_files import write_json, write_tensors
from pinnace.models.modeling import PreTrainedModel

_UNITS: Final[Mapping[str, int]] = {
    "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
}  # fmt: skip
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]I?B|B)", re.IGNORECASE)
_SHARD: Final = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")


def size_in_bytes(size: int | str) -> int:
    """Read a size such as ``"5GB"``, ``"200MiB"`` or a number of bytes.

    Raises:
        UsageError: not a size, or not positive.
    """
    match = _SIZE.fullmatch(size.strip()) if isinstance(size, str) else None
    number = int(float(match[1]) * _UNITS[match[2].upper()]) if match else size
    if not isinstance(number, int) or isinstance(number, bool) or number <= 0:
        raise UsageError(f"max_shard_size is {size!r}, expected bytes as a number, or a text such as '5GB' or '200MiB'")
    return number


def save_model(model: PreTrainedModel, folder: str | Path, max_shard_size: int | str = "5GB") -> None:
    """As `PreTrainedModel.save_pretrained`."""
    limit = size_in_bytes(max_shard_size)
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MachineError(f"cannot make the folder {folder}: {error.strerror}") from None
    tensors = _once(model)
    shards = _shards(tensors, limit)
    # Weights first, then what points to them, then what has become wrong: at every moment the folder can be read.
    if len(shards) == 1:
        kept = {SINGLE_NAME}
        write_tensors(folder / SINGLE_NAME, tensors)
    else:
        names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
        kept = {INDEX_NAME, *names}
        for name, shard in zip(names, shards, strict=True):
            write_tensors(folder / name, {key: tensors[key] for key in shard})
        total = sum(_size(tensor) for tensor in tensors.values())
        weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        write_json(folder / INDEX_NAME, {"metadata": {"total_size": total}, "weight_map": weight_map})
    _write_config(model, folder)
    for path in folder.iterdir():
        stale = path.name in (SINGLE_NAME, INDEX_NAME) or _SHARD.fullmatch(path.name)
        if stale and path.name not in kept:
            path.unlink()


def _once(model: PreTrainedModel) -> dict[str, Tensor]:
    """The weights by name, each tied one under its source's name only."""
    state = model.state_dict()
    tied = model.tied_weights if model.config.tie_word_embeddings else {}
    return {name: tensor for name, tensor in state.items() if name not in tied}


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _shards(tensors: Mapping[str, Tensor], limit: int) -> list[list[str]]:
    """Names in their order, cut before the limit is passed; a tensor larger than the limit is alone."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, tensor in tensors.items():
        if shards[-1] and filled + _size(tensor) > limit:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += _size(tensor)
    return shards


def _write_config(model: PreTrainedModel, folder: Path) -> None:
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.dtype = str(model.dtype).removeprefix("torch.")
    config.save_pretrained(folder)
