"""Bind a graph's initializers to byte ranges of safetensors files; other types are converted a tensor at a time."""

from __future__ import annotations

import json
import math
import types
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from pinnace.arrays import Array
from pinnace.errors import CheckpointError
from pinnace.models.checkpoints.resolution import TensorLocation
from pinnace.publishing import copy_file
from pinnace.quantize.fp16 import halved
from pinnace.safetensors_header import read_header
from pinnace.safetensors_writer import write_safetensors

CHUNK: Final = 1 << 24  # elements converted at a time
_STORED: Final[Mapping[str, str]] = types.MappingProxyType({"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8"})
_WRITTEN: Final[Mapping[ir.DataType, tuple[str, str]]] = types.MappingProxyType(
    {ir.DataType.FLOAT: ("F32", "<f4"), ir.DataType.FLOAT16: ("F16", "<f2")}
)
CHECKPOINT_NAME: Final = "model.safetensors"
INDEX_NAME: Final = "model.safetensors.index.json"


def unbound(model: ir.Model) -> dict[str, ir.Value]:
    """Initializers that still lack data, by name: the model's weights."""
    return {str(name): v for name, v in model.graph.initializers.items() if v.const_value is None}


def bind_weights(
    model: ir.Model,
    located: Mapping[str, TensorLocation],
    folder: Path,
    file_name: str,
    folded: Collection[str] = (),
) -> tuple[str, ...]:
    """Give every weight of the graph its bytes in a file of ``folder``.

    Where the checkpoint stores all weights in the graph's own type, its files are copied as they are (the kernel
    copies; nothing passes through this process). Otherwise one file ``file_name`` is written, a tensor at a time.

    Args:
        model: a lowered graph; its weights have types and shapes and no data.
        located: weight name -> where the checkpoint holds it.
        folder: where the graph's file will lie.
        file_name: name for a converted file, in the safetensors format.
        folded: weights that became constants of the graph; a file that is still a checkpoint has them too.

    Returns:
        names of the files in ``folder`` that the graph reads.
    """
    weights = unbound(model)
    places: Mapping[str, TensorLocation] = {name: located[name] for name in weights}
    same = all(place.dtype == _WRITTEN[_type_of(weights[name])][0] for name, place in places.items())
    outside = sorted({place.file for place in places.values() if place.file.parent != folder})
    if same and (file_name == CHECKPOINT_NAME or not outside):
        for source in outside:
            copy_file(source, folder / source.name)
        if outside and outside[0].name != CHECKPOINT_NAME:
            _copy_index(outside, folder)
    else:
        wanted = {name: _type_of(value) for name, value in weights.items()}
        if file_name == CHECKPOINT_NAME:
            wanted |= dict.fromkeys(folded, ir.DataType.FLOAT)
        stored = {name: (_WRITTEN[kind][0], located[name].shape) for name, kind in sorted(wanted.items())}
        with (folder / file_name).open("wb") as file:
            write_safetensors(file, stored, lambda name: _converted(name, located[name], wanted[name]))
        entries = read_header(folder / file_name)
        places = {n: TensorLocation(folder / file_name, *entries[n]) for n in weights}
    for name, value in weights.items():
        place = places[name]
        value.const_value = ir.ExternalTensor(
            place.file.name, place.start, place.end - place.start, _type_of(value),
            shape=ir.Shape(place.shape), name=name, base_dir=folder,
        )  # fmt: skip
    return tuple(sorted({place.file.name for place in places.values()}))


def _copy_index(shards: Sequence[Path], folder: Path) -> None:
    """Copy the index of shards; it was read and checked when the checkpoint was opened."""
    index = shards[0].parent / INDEX_NAME
    # An index that names files which hold no weight of this graph would not be true here.
    if index.is_file() and set(json.loads(index.read_bytes())["weight_map"].values()) <= {s.name for s in shards}:
        copy_file(index, folder / INDEX_NAME)


def _type_of(value: ir.Value) -> ir.DataType:
    assert value.dtype is not None  # the tracer types every weight
    return value.dtype


def _converted(name: str, place: TensorLocation, wanted: ir.DataType) -> Iterator[bytes]:
    """Yield a stored tensor's bytes in the wanted type, a chunk at a time."""
    stored = _STORED.get(place.dtype)
    if stored is None:
        raise CheckpointError(
            f"tensor {name!r} in {place.file.name} is stored as {place.dtype}; "
            f"weights must be one of {', '.join(_STORED)}"
        )
    target = _WRITTEN[wanted][1]
    left = math.prod(place.shape)
    # Read rather than mapped: the pages of a mapped tensor would count as this process's memory until its end.
    with place.file.open("rb") as file:
        file.seek(place.start)
        while left > 0:
            part: Array = np.fromfile(file, stored, min(left, CHUNK))
            if not part.size:
                raise CheckpointError(f"{place.file.name} ends within tensor {name!r}; fetch the file again")
            left -= part.size
            if place.dtype == "BF16":
                part = (part.astype(np.uint32) << 16).view("<f4")
            if wanted == ir.DataType.FLOAT16:
                yield halved(name, part).tobytes()
                continue
            with np.errstate(over="ignore"):
                out = part.astype(target)
            yield out.tobytes()


def read_number(name: str, place: TensorLocation) -> npt.NDArray[np.float64]:
    """Read a small weight into memory."""
    stored = b"".join(_converted(name, place, ir.DataType.FLOAT))
    return np.frombuffer(stored, "<f4").astype(np.float64).reshape(place.shape)


def random_weights(
    path: Path, shapes: Mapping[str, Sequence[int]], spread: float, start: Mapping[str, float], seed: int = 0
) -> None:
    """Write random weights as training would begin with them: norms one and zero, biases zero, the rest normal.

    Args:
        path: safetensors file to write, fp32.
        shapes: weight name -> shape.
        spread: standard deviation of the normal weights.
        start: last part of a name, from any point on -> the number that such weights start at.
        seed: the same seed gives the same bytes.
    """
    generator = np.random.Generator(np.random.Philox(seed))

    def content(name: str) -> Iterator[bytes]:
        left = math.prod(shapes[name])
        while left > 0:
            count = min(left, CHUNK)
            left -= count
            fixed = next((value for ending, value in start.items() if name.endswith(ending)), None)
            if fixed is not None:
                part: Array = np.full(count, fixed, "<f4")
            else:
                part = generator.standard_normal(count, np.float32) * np.float32(spread)
            yield part.astype("<f4").tobytes()

    with path.open("wb") as file:
        write_safetensors(file, {name: ("F32", shape) for name, shape in sorted(shapes.items())}, content)
