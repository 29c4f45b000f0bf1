"""How much faster does quantization make a decoder of 166 million weights, beside GenAI and llama.cpp?

The shape and the rounds are those of `decoding`. Weights are random, so nothing is said of quality here: that is what
`pinnace quantize` judges on a trained model.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from benchmarks.common import Figure, Server, affinity, finish, interleave, parser, ratio, run_child, summary
from benchmarks.decoders import GENAI, LLAMA, ORT
from benchmarks.decoding import COMPARED, PROMPT, QUICK_SHAPE, SHAPE, columnar, decode, export, turn

BLOCK: Final = 128
# Precision -> the scheme that makes it; random tokens calibrate int8.
SCHEMES: Final = {"int8": "int8", "int4": "int4-nearest"}
CONTEXTS: Final = (0, 512, 2048)
MB: Final = 1e6


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--genai-python", type=Path, help="a Python with onnxruntime-genai, torch, transformers, onnx-ir")
    made.add_argument("--llama-python", type=Path, help="a Python with llama-cpp-python, gguf, safetensors")
    arguments = made.parse_args()
    with tempfile.TemporaryDirectory(prefix="pinnace-quantized-") as name:
        return measure(arguments, Path(name))


def measure(arguments: argparse.Namespace, folder: Path) -> int:
    """Run every candidate in turn, then look at what they wrote."""
    quick = arguments.quick
    shape, contexts, steps = (QUICK_SHAPE, (0, 64), 8) if quick else (SHAPE, CONTEXTS, 32)
    rounds = arguments.rounds or (1 if quick else 5)
    bundle = folder / "bundle"
    export(shape, "ort", bundle)
    for scheme in SCHEMES.values():
        words: list[str | Path] = ["pinnace", "quantize", bundle, "--scheme", scheme, "--allow-degraded", "-q"]
        blocks = ["--block", str(BLOCK)] if scheme.startswith("int4") else []
        run_child([sys.executable, "-m", *words, *blocks], threads=len(affinity()))
    if arguments.genai_python:
        words = [arguments.genai_python, "-m", "benchmarks.decoders", GENAI, "--model", folder / "genai"]
        run_child([*words, "--shape", json.dumps(shape), "--precision", "int4"], threads=len(affinity()))
    with contextlib.ExitStack() as stack:
        servers = {p: stack.enter_context(server(arguments, ORT, bundle, p)) for p in ("fp32", *SCHEMES)}
        if arguments.genai_python:
            servers[GENAI] = stack.enter_context(server(arguments, GENAI, folder / "genai", "int4"))
        if arguments.llama_python:
            for precision in SCHEMES:
                file = gguf(arguments.llama_python, bundle, precision)
                servers[f"{LLAMA}, {precision}"] = stack.enter_context(server(arguments, LLAMA, file, precision))
        turns: dict[str, Callable[[], Any]] = {name: turn(servers[name], contexts, steps) for name in servers}
        columns = {name: columnar(rows) for name, rows in interleave(turns, rounds).items()}
        peaks = {name: servers[name].ask(op="peak")["bytes"] / MB for name in servers}
        written = {p: servers[p].ask(op="run", prompt=64, steps=COMPARED - 1)["tokens"] for p in ("fp32", *SCHEMES)}
        again = {p: servers[p].ask(op="run", prompt=64, steps=COMPARED - 1)["tokens"] for p in written}
    measured = {
        name: {**{quantity: summary(values) for quantity, values in rows.items()}, "peak memory, MB": peaks[name]}
        for name, rows in columns.items()
    }
    fp32, prompt = columns["fp32"], f"prompt of {PROMPT}, tokens/s"
    figures = [
        Figure(f"int8: {prompt}, of fp32's", ratio(columns["int8"][prompt], fp32[prompt]), 1.8, True),
        Figure(f"int4: {prompt}, of fp32's", ratio(columns["int4"][prompt], fp32[prompt])),
    ]
    for name, least in (("int8", None), ("int4", 3.3)):
        figures += [
            Figure(f"{name}: {decode(c)}, of fp32's", ratio(columns[name][decode(c)], fp32[decode(c)]), least, True)
            for c in contexts
        ]
    if GENAI in columns:
        peer = columns[GENAI]
        figures.append(Figure("int8: prompt, of GenAI's int4", ratio(columns["int8"][prompt], peer[prompt]), 1.7, True))
        figures += [
            Figure(f"int4: {decode(c)}, of GenAI's int4", ratio(columns["int4"][decode(c)], peer[decode(c)]), 1, True)
            for c in contexts
        ]
    for precision in SCHEMES if arguments.llama_python else ():
        peer, own = columns[f"{LLAMA}, {precision}"], columns[precision]
        figures += [
            Figure(f"{precision}: {quantity}, of llama.cpp's", ratio(own[quantity], peer[quantity]))
            for quantity in (prompt, *(decode(c) for c in contexts))
        ]
    size = {p: sum(f.stat().st_size for f in bundle.glob(g)) for p, g in (("fp32", "model.*"), ("int8", "model_int8*"),
                                                                          ("int4", "model_q4*"))}  # fmt: skip
    figures += [Figure("int8: bytes, of fp32's", size["int8"] / size["fp32"], 0.28)]
    figures += [Figure("int4: bytes, of fp32's", size["int4"] / size["fp32"], 0.2)]
    numbers = {f"{p}: the same {COMPARED} tokens when asked again": written[p] == again[p] for p in written}
    return finish(arguments, "Quantized prompts and tokens of a decoder", measured, figures, numbers)


def gguf(python: Path, bundle: Path, precision: str) -> Path:
    """Let llama.cpp's own environment write its file of a bundle's weights."""
    file = bundle.parent / f"{precision}.gguf"
    words: list[str | Path] = [python, "-m", "benchmarks.decoders", LLAMA, "--model", file, "--bundle", bundle]
    run_child([*words, "--precision", precision], threads=len(affinity()))
    return file


def server(arguments: argparse.Namespace, name: str, model: Path, precision: str) -> Server:
    """Start a candidate."""
    python = {GENAI: arguments.genai_python, LLAMA: arguments.llama_python}.get(name, sys.executable)
    words: list[str | Path] = ["benchmarks.decoders", name, "--model", model, "--threads", str(arguments.threads)]
    return Server([python, "-m", *words, "--precision", precision], threads=arguments.threads)


if __name__ == "__main__":
    sys.exit(main())
