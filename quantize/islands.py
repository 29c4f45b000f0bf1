"""Islands of an fp16 graph: the steps whose numbers come near the end of fp16's range, found by running the graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import numpy as np
import onnx_ir as ir

from pinnace.arrays import Array
from pinnace.quantize.fp16 import float_values
from pinnace.runtime.engine.ort import plain_session

# A third of fp16's largest number, since fused operators add up to three tensors inside. Other inputs may go higher.
FP16_LIMIT: Final = 65504 / 3


def too_large_for_fp16(
    model: ir.Model, written: Path, feeds: Iterable[Mapping[str, Array]], limit: float = FP16_LIMIT
) -> tuple[str, ...]:
    """Name the nodes that make or read a number beyond ``limit`` on some input; they need fp32.

    The peaks are taken inside the graph, so that no layer's numbers have to be kept.

    Args:
        model: an fp32 graph, not yet converted; weights that are unbound are taken from ``written``.
        written: the fp32 graph on disk, which has the weights; a probe is made beside it for a moment.
        feeds: inputs to run.
        limit: largest magnitude that fp16 is trusted with.
    """
    probe, weights = model.clone(), ir.load(written).graph.initializers
    for name, value in probe.graph.initializers.items():
        if value.const_value is None:
            value.const_value = weights[name].const_value
    floats, nodes = float_values(probe.graph), list(probe.graph)
    biases = [
        v for v in probe.graph.initializers.values() if id(v) in floats and v.shape is not None and len(v.shape) == 1
    ]
    made = [v for node in nodes for v in node.outputs if id(v) in floats and (v.uses() or v.is_graph_output())]
    watched = [*biases, *made]
    del probe.graph.outputs[:]
    for index, value in enumerate(watched):
        size = ir.node("Abs", [value])
        peak = ir.node("ReduceMax", size.outputs, attributes={"keepdims": 0})
        peak.outputs[0].name, peak.outputs[0].type = f"peak.{index}", ir.TensorType(ir.DataType.FLOAT)
        probe.graph.extend([size, peak])
        probe.graph.outputs.append(peak.outputs[0])
    path = written.with_name("ranges.onnx")
    try:
        ir.save(probe, path)
        session = plain_session(path)
    finally:
        path.unlink(missing_ok=True)
    peaks = np.zeros(len(watched))
    for feed in feeds:
        peaks = np.maximum(peaks, np.array(session.run(None, dict(feed)), np.float64))  # NaN stays
    hot = {id(value) for value, peak in zip(watched, peaks, strict=True) if not peak <= limit}
    return tuple(str(node.name) for node in nodes if any(id(v) in hot for v in (*node.inputs, *node.outputs)))
