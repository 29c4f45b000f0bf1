"""Headers of safetensors files: the good ones are read like the library reads them, the bad ones refused at once."""

from __future__ import annotations

import json
import os
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from safetensors.numpy import save_file

from pinnace.errors import CheckpointError
from pinnace.safetensors_header import MAX_TENSORS, read_header, read_metadata


def write(path: Path, header: Any, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def fact(start: int, end: int, shape: list[int] | None = None, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(end - start) // 4] if shape is None else shape, "data_offsets": [start, end]}


def test_reads_what_the_library_wrote(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    arrays: dict[str, np.ndarray[Any, Any]] = {
        "b": np.arange(6, dtype=np.float32).reshape(2, 3),
        "a": np.ones((4,), np.float16),
        "empty": np.ones((0, 3)),
    }
    save_file(arrays, path, metadata={"format": "pt"})
    entries = read_header(path)
    raw = path.read_bytes()
    with safetensors.safe_open(path, framework="numpy") as file:
        assert set(entries) == set(file.keys())
        for name, entry in entries.items():
            want = file.get_tensor(name)
            assert entry.shape == want.shape
            assert raw[entry.start : entry.end] == want.tobytes()
    assert entries["b"].dtype == "F32"
    assert read_metadata(path) == {"format": "pt"}


@pytest.mark.parametrize(
    ("header", "data", "word"),
    [
        (b"[1]", b"", "must be an object"),
        (b"{", b"", "not valid JSON"),
        (b"[" * 200_000, b"", "nested"),
        (b'{"a": 1, "a": 2}', b"", "stands twice"),
        ({"a": 3}, b"", "exactly dtype"),
        ({"a": fact(0, 4, dtype="F31")}, bytes(4), "unknown type"),
        ({"a": fact(0, 4, [-1])}, bytes(4), "impossible shape"),
        ({"a": fact(0, 4, [1] * 9)}, bytes(4), "impossible shape"),
        ({"a": fact(0, 4, [True])}, bytes(4), "impossible shape"),
        ({"a": fact(0, 4, [1 << 62, 1 << 62])}, bytes(4), "needs"),
        ({"a": fact(4, 0, [1])}, bytes(4), "impossible byte range"),
        ({"a": fact(0, 8)}, bytes(4), "'a' ends at byte"),
        ({"a": fact(0, 4), "b": fact(0, 4)}, bytes(4), "'b' overlaps 'a'"),
        ({"a": fact(0, 4), "b": fact(8, 12)}, bytes(12), "'b' leaves a gap after 'a'"),
        ({"a": fact(0, 4)}, bytes(9), "belong to no tensor"),
        ({"__metadata__": {"format": 3}}, b"", "__metadata__"),
    ],
)
def test_damaged_header_is_refused(tmp_path: Path, header: Any, data: bytes, word: str) -> None:
    with pytest.raises(CheckpointError, match=word):
        read_header(write(tmp_path / "model.safetensors", header, data))


@pytest.mark.parametrize("content", [b"", b"\x01", struct.pack("<Q", 1 << 63), struct.pack("<Q", 50) + b"{}"])
def test_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"weights\.safetensors"):
        read_header(path)


def test_bloated_header_is_refused_quickly(tmp_path: Path) -> None:
    empty = b'{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    header = b"{" + b",".join(b'"%d":%s' % (i, empty) for i in range(240_000)) + b"}"
    path = write(tmp_path / "model.safetensors", header)
    start = time.thread_time()
    with pytest.raises(CheckpointError, match=f"{MAX_TENSORS:,} tensors"):
        read_header(path)
    assert time.thread_time() - start < 1


def test_not_a_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    for path in (tmp_path / "pipe.safetensors", tmp_path, tmp_path / "absent.safetensors"):
        with pytest.raises(CheckpointError, match=path.name):
            read_header(path)
