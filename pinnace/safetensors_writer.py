"""Write a safetensors file by streaming: one tensor, or a part of one, is in memory at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pinnace.safetensors_header import DTYPE_BYTES


def write_safetensors(
    path: Path, entries: Mapping[str, tuple[str, Sequence[int]]], content: Callable[[str], Iterator[bytes]]
) -> None:
    """Write a safetensors file by streaming.

    Args:
        path: file to write.
        entries: tensor name -> (type in the format's words, shape); written in this order.
        content: gives a tensor's bytes in pieces.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, (dtype, shape) in entries.items():
        size = math.prod(shape) * DTYPE_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in entries:
            for piece in content(name):
                file.write(piece)
