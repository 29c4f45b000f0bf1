"""What an ONNX file holds, as frozen records: the graph, its nodes, its constants and where their bytes lie."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Iterator, Mapping
from typing import Final

# The specification's number of a type -> (its numpy-like name, bits of one element).
DTYPES: Final[Mapping[int, tuple[str, int]]] = types.MappingProxyType(
    {
        1: ("float32", 32), 2: ("uint8", 8), 3: ("int8", 8), 4: ("uint16", 16), 5: ("int16", 16), 6: ("int32", 32),
        7: ("int64", 64), 8: ("string", 8), 9: ("bool", 8), 10: ("float16", 16), 11: ("float64", 64),
        12: ("uint32", 32), 13: ("uint64", 64), 14: ("complex64", 64), 15: ("complex128", 128), 16: ("bfloat16", 16),
        17: ("float8e4m3fn", 8), 18: ("float8e4m3fnuz", 8), 19: ("float8e5m2", 8), 20: ("float8e5m2fnuz", 8),
        21: ("uint4", 4), 22: ("int4", 4), 23: ("float4e2m1", 4), 24: ("float8e8m0", 8), 25: ("uint2", 2),
        26: ("int2", 2),
    }
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class GraphValue:
    """An input or output of a graph; ``shape`` is None where the file does not say, a dim is "" where unnamed."""

    name: str
    dtype: str
    shape: tuple[int | str, ...] | None


@dataclasses.dataclass(frozen=True)
class GraphTensor:
    """A constant: its declared type and shape, and either its place in another file or its bytes in this one.

    ``external`` holds the pairs as written (location, offset, length), None if the data is inline. ``raw`` tells
    that the inline bytes are the elements themselves, and not a list of numbers.
    """

    name: str
    dtype: int
    dims: tuple[int, ...]
    external: tuple[tuple[str, str], ...] | None
    inline_bytes: int
    raw: bool


Attribute = int | float | str | tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class GraphNode:
    """One operator call. Attributes that are single numbers, short texts or lists of integers are kept."""

    op_type: str
    domain: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Attribute]
    tensors: tuple[GraphTensor, ...]
    graphs: tuple[Graph, ...]


@dataclasses.dataclass(frozen=True)
class Graph:
    """A graph or subgraph."""

    inputs: tuple[GraphValue, ...]
    outputs: tuple[GraphValue, ...]
    nodes: tuple[GraphNode, ...]
    tensors: tuple[GraphTensor, ...]

    def walk(self) -> Iterator[GraphNode]:
        """Yield every node, those of subgraphs included."""
        yield from walk_nodes(self.nodes)


@dataclasses.dataclass(frozen=True)
class GraphFunction:
    """A function that the model itself defines; ``tensors`` and ``graphs`` are its attributes' default values."""

    domain: str
    name: str
    nodes: tuple[GraphNode, ...]
    tensors: tuple[GraphTensor, ...] = ()
    graphs: tuple[Graph, ...] = ()

    def walk(self) -> Iterator[GraphNode]:
        """Yield every node, those of subgraphs and of default values included."""
        yield from walk_nodes(self.nodes)
        for graph in self.graphs:
            yield from graph.walk()


@dataclasses.dataclass(frozen=True)
class GraphModel:
    """A whole ONNX file. ``notes`` are all free texts in it: documentation and metadata, of every part."""

    ir_version: int
    opsets: Mapping[str, int]
    graph: Graph
    functions: tuple[GraphFunction, ...]
    metadata: Mapping[str, str]
    notes: tuple[str, ...]

    def tensors(self) -> Iterator[GraphTensor]:
        """Yield every constant: initializers, attributes and their defaults, in subgraphs and functions too."""
        yield from self.graph.tensors
        for function in self.functions:
            yield from function.tensors
            for graph in function.graphs:
                yield from graph.tensors
        for node in self.nodes():
            yield from node.tensors
            for graph in node.graphs:
                yield from graph.tensors

    def nodes(self) -> Iterator[GraphNode]:
        """Yield every node: of the graph, its subgraphs and the functions."""
        yield from self.graph.walk()
        for function in self.functions:
            yield from function.walk()


def walk_nodes(nodes: tuple[GraphNode, ...]) -> Iterator[GraphNode]:
    """Yield these nodes and those of their subgraphs."""
    for node in nodes:
        yield node
        for graph in node.graphs:
            yield from graph.walk()
