"""Write a safetensors file by streaming: one tensor, or a part of one, is in memory at a time."""

from __future__ import annotations

import json
import math
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any, Final

from pinnace.safetensors_header import DTYPE_BYTES

PYTORCH: Final = types.MappingProxyType({"format": "pt"})  # what PyTorch programs expect to find in the header


def write_safetensors(
    file: IO[bytes],
    entries: Mapping[str, tuple[str, Sequence[int]]],
    content: Callable[[str], Iterator[bytes | memoryview]],
    metadata: Mapping[str, str] = PYTORCH,
) -> None:
    """Write a safetensors file by streaming. Source: https://github.com/huggingface/safetensors#format.

    Args:
        file: opened for writing.
        entries: tensor name -> (type in the format's words, shape); written in this order, which should go from wide
            types to narrow ones, so that every tensor starts at a multiple of its type's size.
        content: gives a tensor's bytes in pieces.
        metadata: what else the header tells.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    position = 0
    for name, (dtype, shape) in entries.items():
        size = math.prod(shape) * DTYPE_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight
    file.write(len(text).to_bytes(8, "little") + text)
    for name in entries:
        for piece in content(name):
            file.write(piece)
