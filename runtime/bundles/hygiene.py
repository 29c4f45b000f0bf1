"""Is a graph safe and tidy? Known operators, weights inside the bundle, no traces of the building machine."""

from __future__ import annotations

import dataclasses
import math
import re
import types
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

from pinnace.errors import BundleError, CheckpointError
from pinnace.runtime.bundles import integrity
from pinnace.runtime.bundles.onnx_graph import DTYPES, GraphModel, GraphNode, GraphTensor
from pinnace.runtime.bundles.onnx_reader import read_graph
from pinnace.safetensors_header import read_header
from pinnace.spec import is_plain_name

DOMAINS: Final = frozenset({"", "ai.onnx", "com.microsoft"})
# Operators of allowed domains that open files or run code of their own.
REFUSED_OPS: Final[Mapping[str, str]] = types.MappingProxyType(
    {"EPContext": "it loads a provider's compiled file", "Snpe": "it runs a compiled blob", "PyOp": "it runs Python"}
)
MAX_ELEMENTS: Final = 1 << 40
# Nodes of a graph with all its functions unfolded, and calls in one another.
MAX_NODES: Final = 1_000_000
MAX_CALLS: Final = 64
_EXTERNAL_KEYS: Final = frozenset({"location", "offset", "length", "checksum"})
# Where the building machine shows: a stack trace, a source file, a user's or system's folder.
_TRACES: Final = re.compile(
    r"""(?:^|[\s"'=:(])(?:/(?:home|root|usr|opt|tmp|var|mnt|srv|etc|Users|private)/|[A-Za-z]:\\|file://|~/)|\.py\b"""
)


def check_graph(folder: Path, graph: str, known: Container[str] | None = None) -> GraphModel:
    """Check one ONNX file of a bundle without loading it into a runtime.

    Args:
        folder: the bundle.
        graph: the file's name in it.
        known: names that the manifest lists; external weights must be among them. None: any file of the folder.

    Returns:
        What the file holds.

    Raises:
        BundleError: an operator of an unknown domain, a function that calls itself, takes a graph or becomes too many
            nodes, weights outside the folder, outside their file or of the wrong length, an impossible shape, or a path
            of the building machine in a text. The text names the operator or tensor.
    """
    integrity.identify(folder, graph)
    model = read_graph(folder / graph)
    _check_operators(graph, model)
    _Functions(graph, model).check(model.graph.walk())
    _check_shapes(graph, model)
    place = _Place(folder, graph, known, {})
    for tensor in model.tensors():
        _check_tensor(place, tensor)
    for note in model.notes:
        if found := _TRACES.search(note):
            excerpt = note[max(0, found.start() - 20) : found.end() + 40].strip()
            raise BundleError(f"{graph} carries a text of the building machine: {excerpt!r}. Export it again")
    return model


def check_weights(path: Path) -> int:
    """Check that a safetensors file is well formed and return how many tensors it holds.

    Raises:
        BundleError: it is not; the text names the file and tensor.
    """
    try:
        return len(read_header(path))
    except CheckpointError as error:
        raise BundleError(str(error)) from None


_Name: TypeAlias = tuple[str, str]


class _Size(NamedTuple):
    """What becomes of nodes once all functions are unfolded: how many, and how deeply their calls are nested."""

    nodes: int
    depth: int


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where external weights may lie; ``sizes`` keeps what was learned of each file."""

    folder: Path
    graph: str
    known: Container[str] | None
    sizes: dict[str, int]

    def size_of(self, where: str, location: str) -> int:
        if not is_plain_name(location) or "/" in location:
            raise BundleError(f"{where} lies in {location!r}, which is not a plain file name beside the graph; refused")
        if location not in self.sizes:
            name = (Path(self.graph).parent / location).as_posix()
            if self.known is not None and name not in self.known:
                raise BundleError(f"{where} lies in {location!r}, which the manifest does not list; refused")
            self.sizes[location] = integrity.identify(self.folder, name).size
        return self.sizes[location]


def elements(tensor: GraphTensor) -> int:
    """Return how many numbers a constant holds."""
    return math.prod(tensor.dims)


def _check_operators(graph: str, model: GraphModel) -> None:
    defined = {(function.domain, function.name) for function in model.functions}
    for node in model.nodes():
        if node.domain not in DOMAINS and (node.domain, node.op_type) not in defined:
            raise BundleError(
                f"{graph}: node {node.name!r} needs the operator {node.domain}::{node.op_type}. Only operators of ONNX "
                "and of ONNX Runtime itself are run, and functions that the file defines; no library is ever loaded"
            )
        if node.op_type in REFUSED_OPS and node.domain == "com.microsoft":
            raise BundleError(
                f"{graph}: node {node.name!r} is {node.op_type}; refused, for {REFUSED_OPS[node.op_type]}"
            )


class _Functions:
    """The functions that a file defines, and how large a runtime makes them."""

    def __init__(self, graph: str, model: GraphModel) -> None:
        self._graph = graph
        self._bodies: dict[_Name, list[GraphNode]] = {}
        self._sizes: dict[_Name, _Size] = {}
        for function in model.functions:
            name = _name(function.domain, function.name)
            if function.graphs:
                raise self._graph_as_argument(name)
            # Functions of one name, told apart by an overload, count as one that does what all of them do.
            self._bodies.setdefault(name, []).extend(function.walk())

    def check(self, nodes: Iterable[GraphNode]) -> None:
        """Refuse functions that call themselves or grow beyond reason, on their own or in a graph of these nodes."""
        for name in self._bodies:
            self._size(name, frozenset())
        self._total(nodes, "the graph", frozenset())

    def _size(self, name: _Name, above: frozenset[_Name]) -> _Size:
        """The size of a function, which those ``above`` call."""
        what = f"the function {name[0]}::{name[1]}"
        if name in above or len(above) > MAX_CALLS:
            raise BundleError(f"{self._graph}: {what} calls itself or is nested too deeply; refused")
        if name not in self._sizes:
            self._sizes[name] = self._total(self._bodies[name], what, above | {name})
        return self._sizes[name]

    def _total(self, nodes: Iterable[GraphNode], what: str, above: frozenset[_Name]) -> _Size:
        count = depth = 0
        for node in nodes:
            count += 1
            if (name := _name(node.domain, node.op_type)) in self._bodies:
                if node.graphs:
                    raise self._graph_as_argument(name)
                inside = self._size(name, above)
                count, depth = count + inside.nodes, max(depth, inside.depth + 1)
            if count > MAX_NODES or depth > MAX_CALLS:
                raise BundleError(
                    f"{self._graph}: {what} becomes more than {MAX_NODES:,} nodes, or {MAX_CALLS} calls in one "
                    "another, once its functions are unfolded; refused"
                )
        return _Size(count, depth)

    def _graph_as_argument(self, name: _Name) -> BundleError:
        # Each use of the attribute unfolds the graph anew, so that a few of them in one another never end.
        return BundleError(f"{self._graph}: the function {name[0]}::{name[1]} takes a graph as an attribute; refused")


def _name(domain: str, name: str) -> _Name:
    return "" if domain == "ai.onnx" else domain, name


def _check_shapes(graph: str, model: GraphModel) -> None:
    for value in (*model.graph.inputs, *model.graph.outputs):
        sizes = [size for size in value.shape or () if isinstance(size, int)]
        if any(size < 0 for size in sizes) or math.prod(sizes) > MAX_ELEMENTS:
            raise BundleError(f"{graph}: {value.name!r} has the impossible shape {list(value.shape or ())}")


def _check_tensor(place: _Place, tensor: GraphTensor) -> None:
    where = f"{place.graph}: tensor {tensor.name!r}"
    dtype, bits = DTYPES.get(tensor.dtype, ("", 0))
    if not bits:
        raise BundleError(f"{where} has the unknown type {tensor.dtype}")
    if len(tensor.dims) > 16 or any(size < 0 for size in tensor.dims) or elements(tensor) > MAX_ELEMENTS:
        raise BundleError(f"{where} has the impossible shape {list(tensor.dims)[:16]}")
    count = elements(tensor)
    expected = (count * bits + 7) // 8
    if tensor.external is not None:
        _check_external(place, where, tensor.external, expected)
    elif tensor.raw and dtype != "string" and tensor.inline_bytes != expected:
        raise BundleError(
            f"{where} of type {dtype} and shape {list(tensor.dims)} needs {expected:,} bytes, "
            f"it has {tensor.inline_bytes:,}"
        )
    # In the listed forms a number takes one byte at least, and two packed 4-bit numbers share one.
    elif not tensor.raw and tensor.inline_bytes < count * min(bits, 8) // 8:
        raise BundleError(f"{where} of shape {list(tensor.dims)} has only {tensor.inline_bytes:,} bytes of data")


def _check_external(place: _Place, where: str, pairs: tuple[tuple[str, str], ...], expected: int) -> None:
    facts = dict(pairs)
    if len(facts) != len(pairs) or not set(facts) <= _EXTERNAL_KEYS:
        raise BundleError(f"{where} describes its place in a form that readers disagree on: {sorted(facts)[:8]}")
    location = facts.get("location", "")
    size = place.size_of(where, location)
    offset, length = (_whole(where, key, facts.get(key, default)) for key, default in (("offset", "0"), ("length", "")))
    if length != expected:
        raise BundleError(f"{where} has {length:,} bytes in {location}, its type and shape need {expected:,}")
    if offset + length > size:
        raise BundleError(f"{where} ends at byte {offset + length:,} of {location}, the file has {size:,}; cut off?")


def _whole(where: str, key: str, word: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", word):
        raise BundleError(f"{where} has the {key} {word[:40]!r} in its external data; expected a whole number of bytes")
    return int(word)
