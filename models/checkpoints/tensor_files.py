"""Tensors from and to safetensors files, one at a time. Source: https://github.com/huggingface/safetensors#format."""

from __future__ import annotations

import json
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from pinnace.errors import CheckpointError
from pinnace.models.checkpoints.resolution import TensorLocation
from pinnace.replacing import replacing
from pinnace.safetensors_writer import write_safetensors

TORCH_TYPES: Final[Mapping[str, torch.dtype]] = types.MappingProxyType(
    {
        "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
        "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
        "BOOL": torch.bool,
    }
)  # fmt: skip
_NAMES: Final = {dtype: name for name, dtype in TORCH_TYPES.items()}


def read_tensor(place: TensorLocation, dtype: torch.dtype | None = None) -> Tensor:
    """Read one tensor into memory of its own.

    Args:
        place: where it lies.
        dtype: convert floating-point numbers to this type; None keeps the stored one.

    Raises:
        CheckpointError: a type that PyTorch weights do not have here, or a file that has become shorter.
    """
    if place.dtype not in TORCH_TYPES:
        raise CheckpointError(f"{place.file} holds a tensor of type {place.dtype}; expected {', '.join(TORCH_TYPES)}")
    raw = torch.empty(place.end - place.start, dtype=torch.uint8)
    with place.file.open("rb", buffering=0) as file:
        file.seek(place.start)
        view, done = _bytes(raw), 0
        while done < len(view):  # one read of a raw file may stop early
            count = file.readinto(view[done:])
            if not count:
                raise CheckpointError(f"{place.file} is cut off: {len(view) - done:,} bytes are missing")
            done += count
    tensor = raw.view(TORCH_TYPES[place.dtype]).reshape(place.shape)
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file, whole or not at all.

    Raises:
        CheckpointError: a tensor's type has no name in the format.
        MachineError: the disk is full or the folder cannot be written.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in _NAMES:
            raise CheckpointError(f"{name!r} has type {tensor.dtype}, which a checkpoint here cannot hold")
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    with replacing(path) as file:
        write_safetensors(
            file,
            {name: (_NAMES[tensors[name].dtype], tensors[name].shape) for name in order},
            lambda name: iter([_bytes(tensors[name].detach().cpu().contiguous().reshape(-1))]),
        )


def _bytes(flat: Tensor) -> memoryview:
    array: Any = flat.view(torch.uint8).numpy()
    return memoryview(array)


def write_json(path: Path, content: object) -> None:
    """Write a JSON file, whole or not at all."""
    with replacing(path) as file:
        file.write((json.dumps(content, indent=2, sort_keys=True) + "\n").encode())
