"""Tensors from and to safetensors files, one at a time. Source: https://github.com/huggingface/safetensors#format."""

from __future__ import annotations

import json
import os
import tempfile
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

import torch
from torch import Tensor

from pinnace.errors import CheckpointError, MachineError
from pinnace.models.checkpoints.checkpoint import TensorLocation

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
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    # Wide types first, so that every tensor starts at a multiple of its own size.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    for name in order:
        tensor = tensors[name]
        if tensor.dtype not in _NAMES:
            raise CheckpointError(f"{name!r} has type {tensor.dtype}, which a checkpoint here cannot hold")
        end = position + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            flat = tensors[name].detach().cpu().contiguous().reshape(-1)
            file.write(_bytes(flat))


def _bytes(flat: Tensor) -> memoryview:
    array: Any = flat.view(torch.uint8).numpy()
    return memoryview(array)


def write_json(path: Path, content: object) -> None:
    """Write a JSON file, whole or not at all."""
    with replacing(path) as file:
        file.write((json.dumps(content, indent=2, sort_keys=True) + "\n").encode())


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Write beside ``path`` and put the result in its place only when it is complete and on the disk."""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    except OSError as error:
        raise MachineError(f"cannot write in {path.parent}: {error.strerror}") from None
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise MachineError(f"cannot write {path}: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
