"""Read the header of a safetensors file: where each tensor lies, without reading any tensor.

The file may come from a stranger, so every size is bounded before the JSON is parsed and every range is checked after.
Both halves use this file: exporting binds graph weights to these byte ranges, serving checks them.
"""

from __future__ import annotations

import json
import math
import os
import stat
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from pinnace.errors import CheckpointError

MAX_HEADER_BYTES: Final = 16 * 1024 * 1024
MAX_TENSORS: Final = 100_000
MAX_RANK: Final = 8

# Size in bytes of one element of each type that the format names and a model may hold.
DTYPE_BYTES: Final[Mapping[str, int]] = types.MappingProxyType(
    {
        "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
        "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
        "I32": 4, "U32": 4, "F32": 4,
        "I64": 8, "U64": 8, "F64": 8, "C64": 8,
    }
)  # fmt: skip


class TensorEntry(NamedTuple):
    """One tensor of the file: its type in the format's words, its shape, and its absolute byte range."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(path: str | Path) -> dict[str, TensorEntry]:
    """Return every tensor of a safetensors file, in the header's order.

    Args:
        path: a ``.safetensors`` file.

    Returns:
        Name to entry; ``start`` and ``end`` are bytes from the beginning of the file.

    Raises:
        CheckpointError: no such file, not a safetensors file, too large a header, or a tensor whose type, shape or
            range is impossible; the text has the file's name.

    Source:
        The format's description at https://github.com/huggingface/safetensors#format.
    """
    return _read(Path(path))[0]


def read_metadata(path: str | Path) -> dict[str, str]:
    """Return the free text pairs of the header (``__metadata__``), empty if there are none.

    Raises:
        CheckpointError: as `read_header`.
    """
    return _read(Path(path))[1]


def _read(path: Path) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    text, data_start, file_bytes = _header_text(path)
    # A bloated header is cheap to write and slow to parse, so separators are counted first.
    if text.count(b"{") > MAX_TENSORS + 2 or text.count(b",") > MAX_TENSORS * (MAX_RANK + 4):
        raise CheckpointError(f"{path.name} names more than {MAX_TENSORS:,} tensors; refused")
    try:
        header = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
        raise CheckpointError(f"{path.name}: the safetensors header is not valid JSON: {reason}") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path.name}: the safetensors header must be an object, got {type(header).__name__}")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{path.name}: __metadata__ must map texts to texts")
    entries = {name: _entry(path.name, name, fact, data_start) for name, fact in header.items()}
    _check_ranges(path.name, entries, data_start, file_bytes)
    return entries, metadata


def _header_text(path: Path) -> tuple[bytes, int, int]:
    """Return the header's bytes, the offset where tensors begin, and the file's size."""
    try:
        # A pipe or device would block an ordinary open for ever.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from None
    facts = os.fstat(handle)
    if not stat.S_ISREG(facts.st_mode):
        os.close(handle)
        raise CheckpointError(f"{path} is not a regular file; expected a safetensors file")
    with os.fdopen(handle, "rb") as file:
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8:
            raise CheckpointError(f"{path.name} is {facts.st_size} bytes long, too short for a safetensors file")
        if length > MAX_HEADER_BYTES:
            raise CheckpointError(
                f"{path.name} says its header is {length:,} bytes long; at most {MAX_HEADER_BYTES:,} are read. "
                "It is not a safetensors file, or it is damaged"
            )
        text = file.read(length)
    if len(text) < length:
        raise CheckpointError(f"{path.name} is cut off: the header should be {length:,} bytes, {len(text):,} are there")
    return text, 8 + length, facts.st_size


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object, refusing a name that stands twice: readers would differ on which one counts."""
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return result


def _entry(file: str, name: str, fact: Any, data_start: int) -> TensorEntry:
    if not isinstance(fact, dict) or set(fact) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{file}: tensor {name!r} must have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = fact["dtype"], fact["shape"], fact["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise CheckpointError(f"{file}: tensor {name!r} has the unknown type {dtype!r}")
    if not _sizes(shape) or len(shape) > MAX_RANK:
        raise CheckpointError(f"{file}: tensor {name!r} has the impossible shape {str(shape)[:100]}")
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(f"{file}: tensor {name!r} has the impossible byte range {str(offsets)[:100]}")
    expected = math.prod(shape) * DTYPE_BYTES[dtype]
    if offsets[1] - offsets[0] != expected:
        raise CheckpointError(
            f"{file}: tensor {name!r} of type {dtype} and shape {shape} needs {expected:,} bytes, "
            f"its range has {offsets[1] - offsets[0]:,}"
        )
    return TensorEntry(dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 63 for item in value)


def _check_ranges(file: str, entries: Mapping[str, TensorEntry], data_start: int, file_bytes: int) -> None:
    """Check that the tensors cover the rest of the file exactly once, as the format demands."""
    position, before = data_start, "the header"
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.end > file_bytes:
            raise CheckpointError(
                f"{file} is cut off: tensor {name!r} ends at byte {entry.end:,}, the file has {file_bytes:,}"
            )
        if entry.start != position:
            what = "overlaps" if entry.start < position else "leaves a gap after"
            raise CheckpointError(f"{file}: tensor {name!r} {what} {before}")
        position, before = entry.end, repr(name)
    if position != file_bytes:
        raise CheckpointError(f"{file} has {file_bytes - position:,} bytes that belong to no tensor")
