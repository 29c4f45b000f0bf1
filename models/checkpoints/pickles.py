"""Turn pickle checkpoints into safetensors, for those who say that they trust the file. Never reached otherwise."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import torch
from torch import Tensor

from pinnace.errors import CheckpointError, MissingExtra
from pinnace.models.checkpoints.hub import check_pointer
from pinnace.models.checkpoints.tensor_files import write_tensors

# Older readers could be made to run code even in the restricted mode (CVE-2025-32434, CVE-2026-24747).
OLDEST_TORCH: Final = (2, 10)
# Training tools wrap the weights in one of these.
_WRAPPERS: Final = ("state_dict", "model_state_dict", "model")
_SHARD: Final = re.compile(r"(pytorch_model-)(\d{5})-of-(\d{5})\.bin")


def converted(files: Sequence[Path], torch_version: str = torch.__version__) -> TemporaryDirectory[str]:
    """Read pickle files with PyTorch's restricted reader and write ``model.safetensors`` into a temporary folder.

    Args:
        files: the pickles of one checkpoint, shards together.
        torch_version: of the reader.

    Returns:
        The folder; it vanishes with this object.

    Raises:
        MissingExtra: PyTorch is too old to be safe.
        CheckpointError: a file holds something else than tensors, or cannot be read.
    """
    found = re.match(r"(\d+)\.(\d+)", torch_version)
    if found is None or (int(found[1]), int(found[2])) < OLDEST_TORCH:
        raise MissingExtra("export", f"reading a pickle safely (torch 2.10 or newer; this is {torch_version})")
    _check_shards(files)
    tensors: dict[str, Tensor] = {}
    for file in files:
        for name, tensor in _read(file).items():
            if name in tensors:
                raise CheckpointError(f"{file.parent}: {name!r} is in two of its pickles; keep one checkpoint there")
            if tensor.layout != torch.strided or tensor.is_meta:
                kind = "without numbers (on the device meta)" if tensor.is_meta else f"as {tensor.layout}"
                raise CheckpointError(f"{file} holds {name!r} {kind}, expected a dense tensor; save it as one")
            # Copies, since a pickle may hold views that share memory or are not contiguous.
            tensors[name] = tensor.detach().clone(memory_format=torch.contiguous_format)
    folder = TemporaryDirectory(prefix="pinnace-converted-")
    write_tensors(Path(folder.name) / "model.safetensors", tensors)
    return folder


def _check_shards(files: Sequence[Path]) -> None:
    """Refuse shards of which one is missing; each says in its name how many there are."""
    names = {file.name for file in files}
    for file in files:
        if (found := _SHARD.fullmatch(file.name)) is None:
            continue
        wanted = (f"{found[1]}{number:05}-of-{found[3]}.bin" for number in range(1, int(found[3]) + 1))
        if missing := next((name for name in wanted if name not in names), None):
            raise CheckpointError(f"{file.parent} has {file.name} and no {missing}; download it again")


def _reason(error: Exception) -> str:
    """The reader's first line; where it advises to read the file without its guard, which runs code, a text of ours."""
    text = str(error)
    if "weights_only" in text or text.startswith("Weights only load failed"):
        return "it holds more than plain tensors, or it is damaged"
    return text.splitlines()[0][:300] if text else type(error).__name__


def _read(file: Path) -> dict[str, Tensor]:
    check_pointer(file)
    try:
        content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # the reader raises many kinds, for damage as for refused code
        raise CheckpointError(f"{file} cannot be read as plain weights: {_reason(error)}") from None
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    good = isinstance(content, dict) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    )
    if not good:
        raise CheckpointError(f"{file} must hold a dictionary of tensors, or one under {', '.join(_WRAPPERS)}")
    return dict(content)
