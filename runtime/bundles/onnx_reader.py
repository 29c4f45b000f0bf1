"""Look into an ONNX file without the onnx package: its inputs, outputs, nodes, weights and where they lie.

No weight is read. Field numbers are those of the ONNX specification (onnx.proto, IR version 13).
"""

from __future__ import annotations

import mmap
import os
import stat
from pathlib import Path
from typing import Final

from pinnace.errors import BundleError
from pinnace.runtime.bundles.onnx_graph import (
    DTYPES,
    Attribute,
    Graph,
    GraphFunction,
    GraphModel,
    GraphNode,
    GraphTensor,
    GraphValue,
)
from pinnace.runtime.bundles.wire import Value, Wire

MAX_FILE_BYTES: Final = 2 << 30
MAX_DEPTH: Final = 32


def read_graph(path: str | Path) -> GraphModel:
    """Read an ONNX file.

    Raises:
        BundleError: no such file, larger than 2 GiB, or not an ONNX graph; the text has the file's name.
    """
    path = Path(path)
    wire = Wire(path.name)
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}") from None
    try:
        facts = os.fstat(handle)
        if not stat.S_ISREG(facts.st_mode):
            raise BundleError(f"{path} is not a regular file")
        if not 0 < facts.st_size <= MAX_FILE_BYTES:
            raise wire.damaged(f"it is {facts.st_size:,} bytes long, expected 1 to {MAX_FILE_BYTES:,}")
        # Mapped, because inline weights may be large and are skipped over.
        content = mmap.mmap(handle, facts.st_size, access=mmap.ACCESS_READ)
    finally:
        os.close(handle)
    return _Reader(wire).model(memoryview(content))


class _Reader:
    """Turns messages into the records above, and gathers free texts on the way."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._notes: list[str] = []

    def model(self, message: memoryview) -> GraphModel:
        wire = self._wire
        ir_version, graph, functions = 0, None, []
        opsets: dict[str, int] = {}
        metadata: dict[str, str] = {}
        for number, value in wire.fields(message):
            if number == 1:
                ir_version = wire.integer(value)
            elif number in (2, 3, 6):
                self._notes.append(wire.text(value))
            elif number == 7:
                if graph is not None:  # protobuf would merge the two, so neither is what is run
                    raise wire.damaged("it holds two graphs")
                graph = self._graph(value, 0)
            elif number == 8:
                opsets.update([self._opset(value)])
            elif number == 14:
                metadata.update([self._note_pair(value)])
            elif number == 25:
                functions.append(self._function(value))
        if graph is None:
            raise wire.damaged("it holds no graph")
        return GraphModel(ir_version, opsets, graph, tuple(functions), metadata, tuple(self._notes))

    def _opset(self, value: Value) -> tuple[str, int]:
        domain, version = "", 0
        for number, part in self._wire.fields(self._wire.message(value)):
            if number == 1:
                domain = self._wire.text(part)
            elif number == 2:
                version = self._wire.integer(part)
        return domain, version

    def _pair(self, value: Value) -> tuple[str, str]:
        texts = {1: "", 2: ""}
        for number, part in self._wire.fields(self._wire.message(value)):
            if number in texts:
                texts[number] = self._wire.text(part)
        return texts[1], texts[2]

    def _note_pair(self, value: Value) -> tuple[str, str]:
        pair = self._pair(value)
        self._notes.append(pair[1])
        return pair

    def _graph(self, value: Value, depth: int) -> Graph:
        if depth > MAX_DEPTH:
            raise self._wire.damaged(f"graphs are nested more than {MAX_DEPTH} deep")
        inputs: list[GraphValue] = []
        outputs: list[GraphValue] = []
        nodes, tensors = [], []
        for number, part in self._wire.fields(self._wire.message(value)):
            if number == 1:
                nodes.append(self._node(part, depth))
            elif number == 5:
                tensors.append(self._tensor(part))
            elif number == 10:
                self._notes.append(self._wire.text(part))
            elif number in (11, 12):
                (inputs if number == 11 else outputs).append(self._value(part))
            elif number == 13:
                self._value(part)
            elif number == 15:
                tensors += self._sparse(part)
            elif number == 16:
                self._note_pair(part)
        return Graph(tuple(inputs), tuple(outputs), tuple(nodes), tuple(tensors))

    def _function(self, value: Value) -> GraphFunction:
        name = domain = ""
        nodes = []
        defaults: dict[str, Attribute] = {}
        tensors: list[GraphTensor] = []
        graphs: list[Graph] = []
        for number, part in self._wire.fields(self._wire.message(value)):
            if number == 1:
                name = self._wire.text(part)
            elif number == 7:
                nodes.append(self._node(part, 0))
            elif number == 8:
                self._notes.append(self._wire.text(part))
            elif number == 10:
                domain = self._wire.text(part)
            elif number == 11:
                self._attribute(part, 0, defaults, tensors, graphs)
            elif number == 14:
                self._note_pair(part)
        return GraphFunction(domain, name, tuple(nodes), tuple(tensors), tuple(graphs))

    def _node(self, value: Value, depth: int) -> GraphNode:
        texts = {3: "", 4: "", 7: ""}
        inputs: list[str] = []
        outputs: list[str] = []
        attributes: dict[str, Attribute] = {}
        tensors: list[GraphTensor] = []
        graphs: list[Graph] = []
        for number, part in self._wire.fields(self._wire.message(value)):
            if number in (1, 2):
                (inputs if number == 1 else outputs).append(self._wire.text(part))
            elif number in texts:
                texts[number] = self._wire.text(part)
            elif number == 5:
                self._attribute(part, depth, attributes, tensors, graphs)
            elif number == 6:
                self._notes.append(self._wire.text(part))
            elif number == 9:
                self._note_pair(part)
        return GraphNode(
            texts[4], texts[7], texts[3], tuple(inputs), tuple(outputs), attributes, tuple(tensors), tuple(graphs)
        )

    def _attribute(
        self,
        value: Value,
        depth: int,
        attributes: dict[str, Attribute],
        tensors: list[GraphTensor],
        graphs: list[Graph],
    ) -> None:
        wire = self._wire
        name = ""
        content: Attribute | None = None
        integers: list[int] = []
        for number, part in wire.fields(wire.message(value)):
            if number == 1:
                name = wire.text(part)
            elif number == 2:
                content = wire.real(part)
            elif number == 3:
                content = wire.integer(part)
            elif number == 4 and len(wire.message(part)) <= 4096:
                content = wire.text(part)
            elif number in (5, 10):
                tensors.append(self._tensor(part))
            elif number in (6, 11):
                graphs.append(self._graph(part, depth + 1))
            elif number == 8:
                integers += wire.integers(part)
            elif number in (22, 23):
                tensors += self._sparse(part)
        if integers:
            content = tuple(integers)
        if content is not None:
            attributes[name] = content

    def _value(self, value: Value) -> GraphValue:
        name, dtype, shape = "", "", None
        for number, part in self._wire.fields(self._wire.message(value)):
            if number == 1:
                name = self._wire.text(part)
            elif number == 2:
                for kind, tensor in self._wire.fields(self._wire.message(part)):
                    if kind == 1:
                        dtype, shape = self._tensor_type(tensor)
            elif number == 3:
                self._notes.append(self._wire.text(part))
            elif number == 4:
                self._note_pair(part)
        return GraphValue(name, dtype, shape)

    def _tensor_type(self, value: Value) -> tuple[str, tuple[int | str, ...] | None]:
        dtype = ""
        shape: tuple[int | str, ...] | None = None
        for number, part in self._wire.fields(self._wire.message(value)):
            if number == 1:
                dtype = DTYPES.get(self._wire.integer(part), ("unknown", 0))[0]
            elif number == 2:
                dims = self._wire.fields(self._wire.message(part))
                shape = tuple(self._dim(dim) for kind, dim in dims if kind == 1)
        return dtype, shape

    def _dim(self, value: Value) -> int | str:
        for number, part in self._wire.fields(self._wire.message(value)):
            if number == 1:
                return self._wire.integer(part)
            if number == 2:
                return self._wire.text(part)
        return ""

    def _tensor(self, value: Value) -> GraphTensor:
        wire = self._wire
        name, dtype, inline, raw, is_external = "", 0, 0, False, False
        dims: list[int] = []
        external: list[tuple[str, str]] = []
        for number, part in wire.fields(wire.message(value)):
            if number == 1:
                dims += wire.integers(part)
            elif number == 2:
                dtype = wire.integer(part)
            elif number in (4, 5, 6, 7, 10, 11):
                inline += 1 if isinstance(part, int) else len(part) + (number == 6)
            elif number == 8:
                name = wire.text(part)
            elif number == 9:
                inline, raw = len(wire.message(part)), True
            elif number == 12:
                self._notes.append(wire.text(part))
            elif number == 13:
                external.append(self._pair(part))
            elif number == 14:
                is_external = wire.integer(part) == 1
            elif number == 16:
                self._note_pair(part)
        # Pairs without the flag are suspicious too: some readers look at one, some at the other.
        pairs = tuple(external) if is_external or external else None
        return GraphTensor(name, dtype, tuple(dims), pairs, inline, raw)

    def _sparse(self, value: Value) -> list[GraphTensor]:
        parts = self._wire.fields(self._wire.message(value))
        return [self._tensor(part) for number, part in parts if number in (1, 2)]
