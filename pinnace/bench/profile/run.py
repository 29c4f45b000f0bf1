"""Where the time of a bundle goes: by layer of the semantic model, by part of a layer, and by operator.

The graph is run under ONNX Runtime's profiler, and beside it without, in turns. The profiler's own cost is told, and
no time is dropped: what lies between the nodes and around the graph has rows of its own.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pinnace.bench.profile.events import NodeTime, RunTime, read_runs
from pinnace.bench.profile.flops import node_flops
from pinnace.bench.profile.nodes import OTHER, OUTSIDE, NodeMap
from pinnace.bench.profile.records import AROUND, BETWEEN_NODES, NOT_LAYERS, Cost, Phase, Profile
from pinnace.bench.profile.work import GRAPH_NAME, Call, DecoderWork, EncoderWork, ProfiledSession, ProfiledWork
from pinnace.errors import BundleError, MachineError, UsageError
from pinnace.runtime.bundles import hygiene
from pinnace.runtime.bundles.bundle import Bundle
from pinnace.runtime.bundles.onnx_graph import DTYPES, GraphModel, GraphTensor
from pinnace.runtime.bundles.onnx_reader import read_graph
from pinnace.runtime.engine.ort import onnxruntime
from pinnace.runtime.engine.session import Session

WARM_UPS: Final = 3
_LEAST_RUNS, _MOST_RUNS = 10, 200
_SECONDS: Final = 4.0
# ONNX Runtime records no more than a million events, and says so only in its log.
_MOST_EVENTS: Final = 500_000


def profile_bundle(
    path: str | Path,
    *,
    precision: str | None = None,
    threads: int | None = None,
    batch: int | None = None,
    length: int | None = None,
    prompt: int | None = None,
    decode_steps: int | None = None,
    runs: int | None = None,
    limits: Callable[[int], tuple[float, float]] | None = None,
    progress: Callable[[str], None] = lambda _text: None,
) -> Profile:
    """Profile one variant of a bundle on the CPU.

    Args:
        path: the bundle's folder.
        precision: which variant; None for fp32 where there is one.
        threads: of one run; None for what this process is granted.
        batch: rows; None for 1.
        length: tokens of a row of an encoder; None for 128.
        prompt: tokens of a decoder's prompt; None for 128.
        decode_steps: tokens after it; None for 32.
        runs: how many to measure; None for as many as four seconds take, but at least ten.
        limits: measures the machine: FLOP/s and bytes/s with so many threads; None leaves the fractions out.
        progress: told what is done now.

    Raises:
        UsageError: ``length`` for a decoder, ``prompt`` or ``decode_steps`` for an encoder, sizes that do not fit.
        PinnaceError: as `Bundle.open`, `Session` and its runs.
    """
    bundle = Bundle.open(path)
    _check_words(bundle, length, prompt, decode_steps)

    def work(session: Session) -> ProfiledWork:
        if bundle.manifest.cache is None:
            return EncoderWork(session, batch, length)
        return DecoderWork(session, batch, prompt, decode_steps)

    progress("opening the bundle")
    with tempfile.TemporaryDirectory(prefix="pinnace-profile-") as name:
        folder = Path(name)
        plain = Session(bundle, precision, threads=threads)
        profiled = _open(bundle, precision, threads, folder)
        sizes = work(plain).sizes
        progress(f"running {', '.join(f'{key} {value}' for key, value in sizes.items())}")
        calls, plain_calls = _measure(work(plain), work(profiled), runs)
        recorded = read_runs(profiled.native.end_profiling())
        graph = folder / GRAPH_NAME
        optimised = read_graph(graph) if graph.is_file() else None
    progress("measuring the machine's limits")
    gemm, memory = limits(plain.threads) if limits else (None, None)
    names = NodeMap(read_graph(bundle.graph_path(plain.precision)), optimised)
    return Profile(
        bundle=bundle.path.name,
        task=bundle.manifest.task,
        head=bundle.manifest.head,
        precision=plain.precision,
        threads=plain.threads,
        sizes=sizes,
        versions={"onnxruntime": onnxruntime.__version__},
        gemm_flops=gemm,
        memory_bytes_s=memory,
        fused=optimised is not None,
        phases=_phases(calls, plain_calls, recorded, names, _weights(optimised)),
    )


def _check_words(bundle: Bundle, length: int | None, prompt: int | None, steps: int | None) -> None:
    decoder = bundle.manifest.cache is not None
    if decoder and length is not None:
        raise UsageError("a decoder is profiled by --prompt and --decode-steps, not by --length")
    if not decoder and (prompt is not None or steps is not None):
        raise UsageError(f"{bundle.manifest.task} has no prompt and no steps; give --length")


def _open(bundle: Bundle, precision: str | None, threads: int | None, folder: Path) -> ProfiledSession:
    try:
        return ProfiledSession(bundle, precision, threads, folder, keep_graph=True)
    except (BundleError, MachineError):
        # The optimised graph may be too large to be written: weights that it converted are in it.
        (folder / GRAPH_NAME).unlink(missing_ok=True)
        return ProfiledSession(bundle, precision, threads, folder, keep_graph=False)


def _measure(plain: ProfiledWork, profiled: ProfiledWork, runs: int | None) -> tuple[list[Call], list[Call]]:
    """Run both in turns; the calls of the profiled one begin with those of the warm-up, as its profile does."""
    calls: list[Call] = []
    plain_calls: list[Call] = []
    for _ in range(WARM_UPS):
        plain.run()
        calls += [call._replace(kind="") for call in profiled.run()]
    each = len(calls) // WARM_UPS
    most = runs or max(2, min(_MOST_RUNS, _MOST_EVENTS // (each * 1000)))
    start, done = time.monotonic(), 0
    while done < most and (runs or done < min(_LEAST_RUNS, most) or time.monotonic() - start < _SECONDS):
        plain_calls += plain.run()
        calls += profiled.run()
        done += 1
    return calls, plain_calls


def _phases(
    calls: Sequence[Call],
    plain: Sequence[Call],
    recorded: Sequence[RunTime],
    names: NodeMap,
    weights: Mapping[str, float],
) -> tuple[Phase, ...]:
    if len(recorded) != len(calls):
        raise MachineError(
            f"ONNX Runtime recorded {len(recorded):,} runs of {len(calls):,}: too many events. Profile fewer runs"
        )
    wanted = dict.fromkeys(call.kind for call in plain)
    return tuple(
        _phase(
            name,
            [(call, run) for call, run in zip(calls, recorded, strict=True) if call.kind == name],
            [call.seconds for call in plain if call.kind == name],
            names,
            weights,
        )
        for name in wanted
    )


def _phase(
    name: str,
    measured: list[tuple[Call, RunTime]],
    plain: list[float],
    names: NodeMap,
    weights: Mapping[str, float],
) -> Phase:
    chosen = _middle(measured, lambda pair: pair[0].seconds)
    cells: dict[tuple[str, str, str], list[float]] = {}
    outside: Counter[str] = Counter()
    nodes = {node.name: _cell(node, names, weights) for _, run in chosen for node in run.nodes}
    inside = 0.0
    for call, run in chosen:
        for node in run.nodes:
            key, read = nodes[node.name]
            sums = cells.setdefault(key, [0.0, 0.0, 0.0, 0.0])
            for place, value in enumerate((1, node.seconds, node_flops(node, call.keys), read)):
                sums[place] += value
            inside += node.seconds
            if key[0] == OUTSIDE:
                outside[node.op_type] += 1
    running = math.fsum(run.seconds for _, run in chosen)
    whole = math.fsum(call.seconds for call, _ in chosen)
    costs = [Cost(*key, *(value / len(chosen) for value in sums)) for key, sums in cells.items()]
    for layer, seconds in ((BETWEEN_NODES, running - inside), (AROUND, whole - running)):
        costs.append(Cost(layer, OTHER, layer, 0, seconds / len(chosen)))
    quiet = _middle(plain, float)
    return Phase(
        name,
        len(measured),
        whole / len(chosen),
        math.fsum(quiet) / len(quiet),
        tuple(sorted(costs, key=lambda cost: _order(cost.layer))),
        {kind: round(count / len(chosen)) for kind, count in outside.most_common()},
    )


def _cell(node: NodeTime, names: NodeMap, weights: Mapping[str, float]) -> tuple[tuple[str, str, str], float]:
    """The layer, part and operator of a node, and the bytes of weights of one call."""
    key = (names.layer(node.name), names.part(node.name, node.inputs), names.operator(node.name, node.op_type))
    made = names.node(node.name)
    read = math.fsum(weights.get(name, 0.0) for name in made.inputs) if made and node_flops(node) else 0.0
    return key, read


def _middle(items: list[Any], key: Callable[[Any], float]) -> list[Any]:
    """The items between the quartiles: at least half of them, at least one."""
    ordered = sorted(items, key=key)
    cut = len(ordered) // 4
    return ordered[cut : len(ordered) - cut]


def _order(layer: str) -> tuple[int, int]:
    """Sort key: embeddings first, then layers by number, what comes after them, and what is no layer."""
    if layer in NOT_LAYERS:
        return 4, list(NOT_LAYERS).index(layer)
    if layer.startswith("layer "):
        return 1, int(layer.split()[1])
    return (0, 0) if "embed" in layer else (2, 0)


def _weights(graph: GraphModel | None) -> dict[str, float]:
    return {tensor.name: _bytes(tensor) for tensor in graph.graph.tensors} if graph else {}


def _bytes(tensor: GraphTensor) -> float:
    return hygiene.elements(tensor) * DTYPES.get(tensor.dtype, ("", 0))[1] / 8
