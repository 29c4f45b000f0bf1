"""A made-up benchmark result with everything in it: three variants, a peer, one that is missing, a sweep, a server."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from pinnace.bench.plots.data import LeftOut, Plot
from pinnace.bench.report import bench as report
from pinnace.bench.results import (
    Accuracy,
    Candidate,
    Limit,
    Machine,
    Measure,
    Point,
    QueryWork,
    RatePoint,
    Result,
    Samples,
    Settings,
)

# Name, program, precision, how fast it is beside fp32, and its mean cosine to it.
CANDIDATES = (
    ("fp32", "pinnace", "fp32", 1.0, 1.0),
    ("int8", "pinnace", "int8", 0.55, 0.9971),
    ("fp16", "pinnace", "fp16", 1.12, 0.99999),
    ("transformers fp32", "transformers", "fp32", 1.31, 0.9999998),
)
MISSING = "sentence-transformers"
GEMM, MEMORY = 82e9, 14e9
FLOPS_OF_A_TOKEN, WEIGHTS = 1.7e8, 340e6


HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src="http://evil.test/x" onerror="alert(1)">',
    "]]></svg></style><style>*{display:none}",
    "url(http://evil.test)",
    "null \x00 bell \x07 escape \x1b[31m surrogate \ud800 right-to-left \u202e",
    "$\\frac{1}{0}$ & very " + "long " * 30,
    "日本語の名前",
)


def measured(value: float, spread: float = 0.02) -> Measure:
    """A measure with an interval and three rounds."""
    blocks = tuple(value * (1 + spread * step) for step in (-0.5, 0.1, 0.6))
    return Measure(value, value * (1 - spread), value * (1 + spread), blocks)


def samples(median: float, count: int, random: np.random.Generator) -> Samples:
    """Times with a long tail."""
    times = median * np.exp(np.abs(random.normal(0, 0.06, count))) * (1 + 0.5 * (random.random(count) > 0.985))
    return Samples(count, tuple(float(time) for time in np.sort(times)))


def encoder_result(
    batches: Sequence[int] = (1, 8), lengths: Sequence[int] = (32, 128, 512), *, server: bool = True, seed: int = 0
) -> Result:
    """A result of an encoder; everything is drawn from the seed."""
    random = np.random.default_rng(seed)
    points = []
    for name, _, precision, factor, _ in CANDIDATES:
        for batch in batches:
            for length in lengths:
                read = WEIGHTS * (0.25 if precision == "int8" else 1)
                work = QueryWork(FLOPS_OF_A_TOKEN * batch * length, read, length)
                time = 0.003 + factor * work.flops / GEMM * (1 + length / 4000)
                p99 = measured(time * 1.4) if length < 512 else Measure(None, absent="300 queries; p99 needs 1,000")
                point_measures = {
                    "latency_mean_s": measured(time * 1.05), "latency_p50_s": measured(time),
                    "latency_p90_s": measured(time * 1.1), "latency_p95_s": measured(time * 1.15),
                    "latency_p99_s": p99, "texts_per_s": measured(batch / time),
                    "tokens_per_s": measured(batch * length / time), "cpu_s": measured(time * 0.99),
                    "energy_j": Measure(None, absent="this machine does not tell its energy"),
                    "gemm_fraction": measured(work.flops / time / GEMM),
                    "memory_fraction": measured(work.bytes / time / MEMORY),
                }  # fmt: skip
                count = 1200 if length < 512 else 300
                points.append(
                    Point(name, "single-stream", batch, length, None, None, 1, point_measures,
                          {"latency": samples(time, count, random)}, work)
                )  # fmt: skip
        if server:
            most = 1 / (0.003 + factor * 0.27)
            curve = tuple(
                RatePoint(most * load, most * min(load, 0.97), 0.3 * factor / max(0.02, 1 - load), 400, load < 0.8)
                for load in (0.2, 0.4, 0.6, 0.8, 0.9)
            )
            points.append(
                Point(name, "server", 1, 128, None, None, 1, {"highest_rate": measured(most * 0.6)}, {}, None, curve)
            )
    candidates = [
        Candidate(
            name, program, "bert-qa", precision, "cpu", 1, {program: "1.0"}, "",
            {
                "install_bytes": measured(2.1e8 * (5 if program != "pinnace" else 1)),
                "bundle_bytes": measured(4.4e8 * (0.25 if precision == "int8" else 1)),
                "import_s": measured(0.2 * factor), "cold_start_s": measured(0.8 * factor, 0.08),
                "load_s": measured(0.4), "first_inference_s": measured(0.05),
                "settled_bytes": measured(4.9e8 * factor), "peak_bytes": measured(6.1e8 * factor),
                "idle_cpu": measured(0.001),
            },
            Accuracy("fp32", 64, cosine, cosine - 1e-4, min(1.0, cosine + 0.002), 0.02),
        )
        for name, program, precision, factor, cosine in CANDIDATES
    ]  # fmt: skip
    gone = Candidate(MISSING, MISSING, "bert-qa", "fp32", "cpu", 1, {}, "not installed in this environment")
    return Result(
        1, "f00dfeed", "2026-01-02T03:04:05Z", 312.5, machine(), {"python": "3.12.1", "onnxruntime": "1.32.0"},
        Settings("question-answering", ("single-stream", "server"), "random ids", 7, 3, 3, 2.0, 0.7, 0.99, True),
        (Limit(1, GEMM, MEMORY, (GEMM, GEMM), (MEMORY, MEMORY)),), (*candidates, gone), tuple(points),
        {"int8 against fp32: within the gate": True},
    )  # fmt: skip


def decoder_result(prompts: Sequence[int] = (32, 128, 512)) -> Result:
    """A result of a generator: first token, further tokens, prompt and decode rates."""
    random = np.random.default_rng(3)
    points = []
    for name, factor in (("fp32", 1.0), ("int4", 0.4)):
        for prompt in prompts:
            first, step = 0.002 * prompt * factor + 0.01, 0.03 * factor
            work = QueryWork(prompt * 3.3e8, 6.6e8 * factor, prompt)
            found = {
                "first_token_s": measured(first), "inter_token_s": measured(step),
                "prompt_tokens_per_s": measured(prompt / first), "decode_tokens_per_s": measured(1 / step),
                "latency_p50_s": measured(first + 31 * step), "tokens_per_s": measured(prompt / first),
                "gemm_fraction": measured(work.flops / first / GEMM),
                "memory_fraction": measured(work.bytes / step / MEMORY),
            }  # fmt: skip
            drawn = {
                "latency": samples(first + 31 * step, 40, random), "first_token": samples(first, 40, random),
                "inter_token": samples(step, 1240, random),
            }  # fmt: skip
            points.append(Point(name, "single-stream", 1, None, prompt, 32, 1, found, drawn, work))
    candidates = tuple(
        Candidate(
            name, "pinnace", "apertus", name, "cpu", 1, {"pinnace": "1.0"}, "",
            {"settled_bytes": measured(size), "cold_start_s": measured(0.9)},
            Accuracy("fp32", 128, None, None, 1.0 if name == "fp32" else 0.94, None),
        )
        for name, size in (("fp32", 8e8), ("int4", 3e8))
    )  # fmt: skip
    made = encoder_result(server=False)
    return Result(
        1, "beef", made.started, 100.0, made.machine, made.versions,
        Settings("text-generation", ("single-stream",), "random ids", 7, 3, 3, 2.0, None, 0.99, True),
        made.limits, candidates, tuple(points), {},
    )  # fmt: skip


def machine() -> Machine:
    return Machine("A processor of 2 cores", ("avx2",), "Linux x86_64", 2, 2.0, 8 << 30, 1 << 20, 0.1, False)


def renamed(result: Result, old: str, new: str) -> Result:
    return dataclasses.replace(
        result,
        candidates=tuple(
            dataclasses.replace(one, name=new, model=new, missing=one.missing and new) if one.name == old else one
            for one in result.candidates
        ),
        points=tuple(dataclasses.replace(one, candidate=new) if one.candidate == old else one for one in result.points),
    )


def drawn(result: Result) -> dict[str, Plot]:
    return {plot.key: plot for plot in report.plots_of(result) if not isinstance(plot, LeftOut)}


def pixels(png: bytes) -> np.ndarray[Any, Any]:
    """A picture's colours, every tenth pixel, [.., .., 3] from 0 to 1."""
    import io

    from matplotlib.image import imread

    return np.asarray(imread(io.BytesIO(png), format="png"))[::10, ::10, :3]
