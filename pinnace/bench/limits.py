"""The machine's own limits: a large fp32 multiplication in ONNX Runtime, and memory read that no cache holds."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from pinnace.bench.loop import Prepared
from pinnace.runtime.engine.native import session_options
from pinnace.runtime.engine.ort import onnxruntime
from pinnace.runtime.machine import threads

GEMM, MEMORY = "gemm", "memory"
# Rows, inner size and columns of the multiplications, the shapes of encoders' layers; the fastest is the limit.
SHAPES: Final = ((128, 768, 3072), (512, 1024, 1024), (1024, 1024, 4096))
_LEAST_BUFFER: Final = 256 << 20
_MOST_BUFFER: Final = 1 << 30


class Limits:
    """A program whose queries are single multiplications, or single passes over a large buffer."""

    distribution = "onnxruntime"

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._threads: int = options["threads"]

    def prepare(self, job: Mapping[str, Any]) -> Prepared:
        """Prepare the multiplication (size: FLOP) or the memory (size: bytes); the size stands where tokens stand."""
        if job["kind"] == GEMM:
            rows, inner, columns = job["shape"]
            multiply = gemm(rows, inner, columns, self._threads)
            return Prepared([(1, 2 * rows * inner * columns)], lambda _index, _seen: multiply(), list)
        buffer = np.ones(buffer_bytes() // 4, np.float32)
        return Prepared([(1, buffer.nbytes)], lambda _index, _seen: read_all(buffer, self._threads), list)


def buffer_bytes() -> int:
    """Size of a buffer far larger than a core's caches, and no more than an eighth of the memory."""
    cache = threads.cache_per_core() or 0
    memory = threads.memory_limit() or 8 * _MOST_BUFFER
    return min(max(4 * cache, _LEAST_BUFFER), _MOST_BUFFER, max(memory // 8, 1 << 20)) // 4096 * 4096


def read_all(buffer: np.ndarray[Any, Any], count: int) -> None:
    """Read a buffer once, in ``count`` threads; numpy frees the interpreter while it sums."""
    parts = np.array_split(buffer, count)
    if count == 1:
        parts[0].sum()
        return
    readers = [threading.Thread(target=part.sum) for part in parts]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()


def gemm(rows: int, inner: int, columns: int, count: int) -> Callable[[], Any]:
    """Open a graph of one MatMul with constant weights, as layers are, and give the call that runs it."""
    generator = np.random.default_rng(0)
    weights = generator.standard_normal((inner, columns), np.float32)
    given = generator.standard_normal((rows, inner), np.float32)
    options = session_options(count)  # those of a bundle, so that the limit is that of the same threads
    session = onnxruntime.InferenceSession(matmul_graph(weights, rows), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"a": given})


def matmul_graph(weights: np.ndarray[Any, np.dtype[np.float32]], rows: int) -> bytes:
    """Write ``y = a @ weights`` as an ONNX file, without the onnx package.

    Field numbers are those of the ONNX specification (onnx.proto).
    """
    inner, columns = weights.shape
    tensor = b"".join(
        [_number(1, inner), _number(1, columns), _number(2, 1), _bytes(8, b"b"), _bytes(9, weights.tobytes())]
    )
    node = b"".join([_bytes(1, b"a"), _bytes(1, b"b"), _bytes(2, b"y"), _bytes(4, b"MatMul")])
    graph = b"".join(
        [
            _bytes(1, node), _bytes(2, b"gemm"), _bytes(5, tensor),
            _bytes(11, _value(b"a", rows, inner)), _bytes(12, _value(b"y", rows, columns)),
        ]
    )  # fmt: skip
    return b"".join([_number(1, 10), _bytes(7, graph), _bytes(8, _number(2, 17))])


def _value(name: bytes, *shape: int) -> bytes:
    dims = b"".join(_bytes(1, _number(1, size)) for size in shape)
    tensor = _number(1, 1) + _bytes(2, dims)
    return _bytes(1, name) + _bytes(2, _bytes(1, tensor))


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)
