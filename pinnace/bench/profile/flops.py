"""What one query of a bundle costs: FLOPs by the shapes that ONNX Runtime saw, and bytes of weights by the graph.

``python -m pinnace.bench.profile.flops`` counts in a process of its own, since it opens the bundle once more.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import numpy as np

from pinnace.bench.profile.events import NodeTime, read_runs
from pinnace.bench.profile.work import DecoderWork, EncoderWork, ProfiledSession
from pinnace.runtime.bundles.bundle import Bundle
from pinnace.runtime.bundles.onnx_graph import DTYPES, GraphModel
from pinnace.runtime.bundles.onnx_reader import read_graph
from pinnace.spec import PAST, CacheSpec

_LENGTHS: Final = (8, 16, 32)
_LOOKUPS: Final = ("Gather", "GatherBlockQuantized", "GatherND", "EmbedLayerNormalization")
_WIDTHS: Final = dict(DTYPES.values())  # name of a type -> bits


@dataclasses.dataclass(frozen=True)
class RowCost:
    """FLOPs of a row as a polynomial of its tokens, and bytes that a run reads.

    Attributes:
        coefficients: of 1, T and T squared: heads of one position, layers of every token, attention of every pair.
        weight_bytes: of all constants but tables of embeddings.
        token_bytes: of keys and values that one cached token adds to each step; 0 without a cache.
    """

    coefficients: tuple[float, float, float]
    weight_bytes: float
    token_bytes: float

    def flops(self, tokens: int) -> float:
        """FLOPs of one row of so many tokens."""
        constant, linear, square = self.coefficients
        return constant + linear * tokens + square * tokens * tokens


def _multiplied(node: NodeTime) -> float:
    """Two for each product: the size of the result times the inner size."""
    if not node.inputs or not node.outputs or len(node.inputs[0]) < 1:
        return 0.0
    return 2.0 * math.prod(node.outputs[0]) * node.inputs[0][-1]


def _attended(node: NodeTime, keys: float | None) -> float:
    """Scores and their weighted sum: every new token (B, T) with the keys that it may see, or else with all (S)."""
    if keys is not None:
        return 4.0 * math.prod(node.outputs[0]) * keys
    if _packed(node):
        return _attended_packed(node)
    query, key = node.inputs[0], node.inputs[min(1, len(node.inputs) - 1)]
    if len(query) == 4:  # [B, H, T, D]
        return 4.0 * math.prod(query) * key[-2]
    return 4.0 * query[0] * query[1] * (key[1] if len(key) >= 3 else query[1]) * math.prod(query[2:])


def _attended_packed(node: NodeTime) -> float:
    """ONNX Runtime's Attention: it multiplies with the weights of queries, keys and values first."""
    B, T, _ = node.inputs[0]
    width = node.outputs[0][-1]
    return 2.0 * B * T * node.inputs[0][-1] * 3 * width + 4.0 * B * T * T * width


_PRODUCTS: Final = frozenset(
    {
        "MatMul", "FusedMatMul", "Gemm", "FusedGemm", "MatMulNBits", "DynamicQuantizeMatMul", "MatMulInteger",
        "MatMulIntegerToFloat", "QLinearMatMul", "QGemm",
    }
)  # fmt: skip
_ATTENTIONS: Final = frozenset({"MultiHeadAttention", "Attention", "GroupQueryAttention"})


def _packed(node: NodeTime) -> bool:
    """Whether this Attention is ONNX Runtime's own, which has one input of tokens; the standard one has three."""
    return len(node.inputs[0]) == 3 and sum(len(shape) in (3, 4) for shape in node.inputs[:3]) == 1


def node_flops(node: NodeTime, keys: float | None = None) -> float:
    """FLOPs of one call of a kernel; 0 for those that multiply no matrices.

    Args:
        node: the call.
        keys: in a decoder, `Call.keys` of its run. Shapes do not tell it: a kernel may be given a whole buffer of keys,
            or the new ones alone, and a mask. None where every token sees all.
    """
    if not node.inputs or not node.inputs[0]:
        return 0.0
    if node.op_type in _ATTENTIONS:
        return _attended(node, keys)
    return _multiplied(node) if node.op_type in _PRODUCTS else 0.0


def count_cost(path: str | Path, precision: str | None) -> RowCost:
    """Count what a row costs; a few short rows are run under ONNX Runtime's profiler.

    Raises:
        PinnaceError: as `Bundle.open` and `Session`.
    """
    bundle = Bundle.open(path)
    with tempfile.TemporaryDirectory(prefix="pinnace-count-") as folder:
        session = ProfiledSession(bundle, precision, None, Path(folder), keep_graph=False)
        cache = bundle.manifest.cache
        lengths = [fixed] if (fixed := _fixed_length(bundle)) else _short_lengths(bundle.manifest.limits.sequence)
        made = [
            EncoderWork(session, None, length) if cache is None else DecoderWork(session, 1, length, 1)
            for length in lengths
        ]
        calls = [work.run()[0] for work in made]  # of a decoder the prompts, without the steps behind them
        runs = read_runs(session.native.end_profiling())
        runs = runs[:: len(runs) // len(made)]
    counts = [
        sum(node_flops(node, call.keys) for node in run.nodes) / work.sizes["batch"]
        for work, call, run in zip(made, calls, runs, strict=True)
    ]
    graph = read_graph(bundle.graph_path(precision))
    return RowCost(_polynomial(lengths, counts), weight_bytes(graph), _cache_bytes(cache, graph))


def _fixed_length(bundle: Bundle) -> int | None:
    length = next(spec.shape[-1] for spec in bundle.manifest.inputs if spec.name == "input_ids")
    return length if isinstance(length, int) else None


def _short_lengths(longest: int) -> list[int]:
    """Three lengths that a short model takes too, with room for a step."""
    return [max(1, min(length, (longest - 1) * length // _LENGTHS[-1])) for length in _LENGTHS]


def _polynomial(lengths: list[int], counts: list[float]) -> tuple[float, float, float]:
    """Solve for the coefficients; one fixed length is taken as proportional."""
    if len(set(lengths)) < 3:
        return 0.0, counts[-1] / lengths[-1], 0.0
    # Shapes are whole numbers, so that three points give the polynomial itself and not a fit.
    square, linear, constant = np.polyfit(lengths, counts, 2)
    return max(0.0, float(constant)), float(linear), max(0.0, float(square))


def weight_bytes(graph: GraphModel) -> float:
    """Bytes of a graph's constants, but for tables of which a run reads a few rows."""
    uses: dict[str, list[str]] = {}
    for node in graph.nodes():
        for name in node.inputs:
            uses.setdefault(name, []).append(node.op_type)
    total = 0.0
    for tensor in graph.tensors():
        if not (consumers := uses.get(tensor.name)) or any(kind not in _LOOKUPS for kind in consumers):
            total += math.prod(tensor.dims) * DTYPES.get(tensor.dtype, ("", 0))[1] / 8
    return total


def _cache_bytes(cache: CacheSpec | None, graph: GraphModel) -> float:
    """Bytes of one token's keys and values, of the type in which the graph takes them."""
    if cache is None:
        return 0.0
    dtype = next(value.dtype for value in graph.graph.inputs if value.name == f"{PAST}.0.key")
    return 2.0 * cache.layers * cache.heads * cache.head_size * _WIDTHS[dtype] / 8


def main(argv: list[str]) -> int:
    """Count for the JSON ``{"model", "precision"}`` and print `RowCost` as JSON."""
    options: dict[str, Any] = json.loads(argv[0])
    print(json.dumps(dataclasses.asdict(count_cost(options["model"], options["precision"]))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
