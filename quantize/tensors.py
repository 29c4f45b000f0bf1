"""Weights of a bundle, read one at a time, and quantized tensors, made one at a time while their file is written."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, cast

import numpy as np
import onnx_ir as ir

from pinnace.arrays import Array
from pinnace.errors import BundleError
from pinnace.quantize.fp16 import halved
from pinnace.safetensors_header import read_header
from pinnace.safetensors_writer import write_safetensors

CHUNK: Final = 1 << 24  # elements read at a time
LARGE_BYTES: Final = 512 << 20  # a weight of more bytes, such as a large table, is read in parts
# Type in the graph -> type in the file's words, and in numpy's.
_STORED: Final[Mapping[ir.DataType, tuple[str, str]]] = types.MappingProxyType(
    {
        ir.DataType.FLOAT: ("F32", "<f4"),
        ir.DataType.FLOAT16: ("F16", "<f2"),
        ir.DataType.INT8: ("I8", "i1"),
        ir.DataType.UINT8: ("U8", "u1"),
        ir.DataType.INT32: ("I32", "<i4"),
        ir.DataType.INT64: ("I64", "<i8"),
    }
)


def read_weight(value: ir.Value) -> Array:
    """Read an initializer's numbers.

    Raises:
        BundleError: the file ends too early.
    """
    tensor = value.const_value
    assert tensor is not None  # a bundle's graph is bound
    if not isinstance(tensor, ir.ExternalTensor):
        return tensor.numpy()
    array: Array = np.empty(math.prod(_shape(value)), _STORED[tensor.dtype][1])
    place = 0
    for part in _parts(tensor):
        array[place : place + part.size] = part
        place += part.size
    return array.reshape(_shape(value))


class FileRows:
    """A weight ``(N, K)`` of a file whose rows are read when a slice asks for them, as rounding does, part by part."""

    ndim: Final = 2

    def __init__(self, tensor: ir.ExternalTensor) -> None:
        self.shape = tuple(int(size) for size in tensor.shape if isinstance(size, int))
        self._tensor = tensor

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> Array:
        first, last, _ = rows.indices(self.shape[0])
        width = self.shape[1]
        return _numbers(self._tensor, first * width, (last - first) * width).reshape(-1, width)


def rows_of(value: ir.Value) -> Array:
    """A weight to round: read as a whole where that takes little memory, else in parts.

    Rounding looks at its shape and at slices of rows, which is all that the second form has of an array.
    """
    tensor = value.const_value
    if isinstance(tensor, ir.ExternalTensor) and tensor.nbytes > LARGE_BYTES:
        return cast(Array, FileRows(tensor))
    return read_weight(value)


@dataclasses.dataclass(frozen=True)
class Planned:
    """Tensors that are made together: name -> (type, shape), and the function that makes them when their turn comes."""

    entries: Mapping[str, tuple[ir.DataType, tuple[int, ...]]]
    make: Callable[[], Mapping[str, Array]]


class TensorPlan:
    """The tensors of a quantized graph before any of them exists.

    `add` gives the graph its initializers at once; `write` makes and writes their content afterwards, in the order in
    which they were planned, so that memory holds what one `Planned` makes and no more.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._planned: dict[str, Planned] = {}  # by the name of its first tensor

    def add(
        self, entries: Mapping[str, tuple[ir.DataType, Sequence[int]]], make: Callable[[], Mapping[str, Array]]
    ) -> list[ir.Value]:
        """Plan tensors and return their initializers; tensors of a name that is planned already are shared."""
        first = next(iter(entries))
        if first not in self._planned:
            fixed = {name: (dtype, tuple(shape)) for name, (dtype, shape) in entries.items()}
            self._planned[first] = Planned(fixed, make)
            for name, (dtype, shape) in fixed.items():
                value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
                self._graph.initializers[name] = value
        return [self._graph.initializers[name] for name in entries]

    def constant(self, name: str, content: Array | np.generic) -> ir.Value:
        """A small tensor that is known already; the same name gives the same value."""
        if name not in self._graph.initializers:
            tensor = ir.tensor(np.asarray(content), name=name)
            kind, shape = ir.TensorType(tensor.dtype), ir.Shape(content.shape)
            self._graph.register_initializer(ir.Value(name=name, type=kind, shape=shape, const_value=tensor))
        return self._graph.initializers[name]

    def write(self, path: Path) -> None:
        """Make every tensor, write the safetensors file ``path``, and bind the graph to it.

        Initializers that are stored in other files and still read are copied, so that the file is all a variant needs;
        those whose type has become fp16 are rounded on the way.

        Raises:
            CheckFailed: a weight that is to be fp16 has a number beyond its range.
        """
        kept = {
            str(name): value for name, value in self._graph.initializers.items()
            if isinstance(value.const_value, ir.ExternalTensor) and value.uses()
        }  # fmt: skip
        plans = list(self._planned.values())
        planned = {name: entry for plan in plans for name, entry in plan.entries.items()}
        copied = {name: (_type(value), _shape(value)) for name, value in kept.items()}
        entries = {name: (_STORED[dtype][0], shape) for name, (dtype, shape) in (copied | planned).items()}
        maker = {next(iter(plan.entries)): plan for plan in plans}
        made: dict[str, Array] = {}

        def content(name: str) -> Iterator[bytes]:
            if name in kept:
                yield from _copied(kept[name])
                return
            if name in maker:
                made.clear()
                made.update(maker[name].make())
            array = made.pop(name)
            dtype, shape = planned[name]
            assert tuple(array.shape) == shape, f"{name} is {array.shape}, planned {shape}"
            yield np.ascontiguousarray(array, _STORED[dtype][1]).tobytes()

        with path.open("wb") as file:
            write_safetensors(file, entries, content)
        for name, entry in read_header(path).items():
            value = self._graph.initializers[name]
            value.const_value = ir.ExternalTensor(
                path.name, entry.start, entry.end - entry.start, _type(value),
                shape=ir.Shape(entry.shape), name=name, base_dir=path.parent,
            )  # fmt: skip


def _copied(value: ir.Value) -> Iterator[bytes]:
    """A stored tensor's bytes in the type that the graph wants, a part at a time."""
    tensor, wanted = value.const_value, _type(value)
    assert isinstance(tensor, ir.ExternalTensor)
    for part in _parts(tensor):
        half = wanted == ir.DataType.FLOAT16 and tensor.dtype != wanted
        yield (halved(str(value.name), part) if half else part).tobytes()


def _parts(tensor: ir.ExternalTensor) -> Iterator[Array]:
    """Read a stored tensor's numbers, `CHUNK` at a time."""
    count = math.prod(tensor.shape.numpy())
    for first in range(0, count, CHUNK):
        yield _numbers(tensor, first, min(CHUNK, count - first))


def _numbers(tensor: ir.ExternalTensor, first: int, count: int) -> Array:
    """Read some of a stored tensor's numbers, counted from ``first``.

    Read rather than mapped: the pages of a mapped file would count as this process's memory until its end.

    Raises:
        BundleError: the file ends too early.
    """
    dtype = np.dtype(_STORED[tensor.dtype][1])
    with Path(tensor.path).open("rb") as file:
        file.seek((tensor.offset or 0) + first * dtype.itemsize)
        found = np.fromfile(file, dtype, count)
    if found.size != count:
        raise BundleError(
            f"{Path(tensor.path).name} ends within tensor {tensor.name!r}; copy or export the bundle again"
        )
    return found


def _type(value: ir.Value) -> ir.DataType:
    assert value.dtype is not None
    return value.dtype


def _shape(value: ir.Value) -> tuple[int, ...]:
    assert value.shape is not None
    return tuple(int(size) for size in value.shape if isinstance(size, int))
