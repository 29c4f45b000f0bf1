"""Find the steps of a graph whose numbers come near the end of fp16's range, by running it on the grid."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import onnx_ir as ir
import onnxruntime

from pinnace.export.cases import Case
from pinnace.quantize.fp16 import float_values

FP16_LIMIT: Final = 32768.0  # half of fp16's largest number, 65504: other inputs may go higher


def too_large_for_fp16(graph: Path, cases: Sequence[Case], limit: float = FP16_LIMIT) -> tuple[str, ...]:
    """Name the nodes that make or read a number beyond ``limit`` on some case; they need fp32.

    The peaks are taken inside the graph, so that no layer's numbers have to be kept.

    Args:
        graph: the written fp32 graph; a copy with more outputs is made beside it for a moment.
        cases: inputs to run.
        limit: largest magnitude that fp16 is trusted with.
    """
    probe = ir.load(graph)
    floats = float_values(probe.graph)
    watched = [v for node in probe.graph for v in node.outputs if id(v) in floats and (v.uses() or v.is_graph_output())]
    del probe.graph.outputs[:]
    for index, value in enumerate(watched):
        size = ir.node("Abs", [value])
        peak = ir.node("ReduceMax", size.outputs, attributes={"keepdims": 0})
        peak.outputs[0].name, peak.outputs[0].type = f"peak.{index}", ir.TensorType(ir.DataType.FLOAT)
        probe.graph.extend([size, peak])
        probe.graph.outputs.append(peak.outputs[0])
    path = graph.with_name("ranges.onnx")
    try:
        ir.save(probe, path)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        runs = [np.array(session.run(None, dict(case.inputs)), np.float64) for case in cases]
    finally:
        path.unlink(missing_ok=True)
    peaks = np.max(runs, axis=0)
    hot = {id(value) for value, peak in zip(watched, peaks, strict=True) if not peak <= limit}
    return tuple(str(n.name) for n in probe.graph if n.name and any(id(v) in hot for v in (*n.inputs, *n.outputs)))
