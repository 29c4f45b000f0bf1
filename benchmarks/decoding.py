"""How fast does a decoder of 166 million weights read prompts and write tokens on one thread, beside other programs?

Apertus with random weights (hidden 1024, 12 layers, 16 query and 4 key heads, MLP 4096, vocabulary 32,768), fp32. Every
candidate is a process that loads once; then the rounds interleave, and each measures how fast memory is read, too.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.common import Figure, Server, affinity, finish, interleave, parser, ratio, run_child, summary
from benchmarks.decoders import ATTENTION, BATCH, GENAI, MEMORY, ONNX, ORT, TOY, TRANSFORMERS

SHAPE: Final = {
    "hidden_size": 1024, "num_hidden_layers": 12, "num_attention_heads": 16, "num_key_value_heads": 4,
    "intermediate_size": 4096, "vocab_size": 32768, "max_position_embeddings": 4096,
}  # fmt: skip
QUICK_SHAPE: Final = {
    **SHAPE, "hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 512, "vocab_size": 1024,
}  # fmt: skip
TOY_SHAPE: Final = {**QUICK_SHAPE, "hidden_size": 64, "num_hidden_layers": 1, "intermediate_size": 64}
PROMPT: Final = 512
SHORT: Final = 16  # tokens of the prompt whose first answer is timed
CONTEXTS: Final = (0, 512, 2048)
ROWS: Final = {"together": len(BATCH), "one at a time": 1}
TOLERANCE: Final = 1e-4
COMPARED: Final = 32  # tokens that every program must choose alike
MB, GB = 1e6, 1e9


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--genai-python", type=Path, help="a Python with onnxruntime-genai, torch, transformers, onnx-ir")
    arguments = made.parse_args()
    with tempfile.TemporaryDirectory(prefix="pinnace-decoding-") as name:
        return measure(arguments, Path(name))


def measure(arguments: argparse.Namespace, folder: Path) -> int:
    """Run every candidate in turn, then compare their tokens and logits, then print."""
    quick = arguments.quick
    shape, contexts, steps = (QUICK_SHAPE, (0, 64), 8) if quick else (SHAPE, CONTEXTS, 32)
    rounds = arguments.rounds or (1 if quick else 5)
    models = {ORT: folder / "ort", ONNX: folder / "onnx", TRANSFORMERS: folder / "ort"}
    for name, size, target in ((ORT, shape, "ort"), (ONNX, shape, "onnx"), (TOY, TOY_SHAPE, "ort")):
        export(size, target, models.setdefault(name, folder / name))
    toy = models.pop(TOY)
    if arguments.genai_python:
        models[GENAI] = folder / "genai"
        words = [arguments.genai_python, "-m", "benchmarks.decoders", GENAI, "--model", models[GENAI]]
        run_child([*words, "--shape", json.dumps(shape)], threads=len(affinity()))
    with contextlib.ExitStack() as stack:
        servers = {name: stack.enter_context(server(arguments, name, models[name])) for name in models}
        memory = stack.enter_context(server(arguments, MEMORY, folder))
        tracer = stack.enter_context(server(arguments, ORT, models[ORT]))  # whose memory is not measured
        turns: dict[str, Callable[[], Any]] = {name: turn(servers[name], contexts, steps) for name in servers}
        turns[ATTENTION] = lambda: [tracer.ask(op="attention", prompt=max(c, 1), steps=steps) for c in contexts]
        turns[MEMORY] = lambda: memory.ask(op="speed", size=1 << (24 if quick else 30))["speed"]
        found = interleave(turns, rounds)
        speeds, traced = found.pop(MEMORY), found.pop(ATTENTION)
        peaks = {name: servers[name].ask(op="peak")["bytes"] / MB for name in servers}
        together = interleave({name: batch(servers[ORT], rows, 2 * steps) for name, rows in ROWS.items()}, rounds)
        numbers = compare({name: answer(servers[name]) for name in (ORT, ONNX, TRANSFORMERS)})
    with server(arguments, TOY, toy) as looping:
        loops = [looping.ask(op="overhead", steps=600) for _ in range(rounds + 1)][1:]
    limits = {decode(context): [s / step_bytes(shape, context + steps // 2) for s in speeds] for context in contexts}
    columns = {name: columnar(rows) for name, rows in found.items()}
    measured: dict[str, Any] = {
        name: {**{quantity: summary(values) for quantity, values in rows.items()}, "peak memory, MB": peaks[name]}
        for name, rows in columns.items()
    }
    measured["limit of the memory"] = {name: summary(values) for name, values in limits.items()}
    measured["memory"] = {"read, GB/s": summary([speed / GB for speed in speeds])}
    for place, context in enumerate(contexts):
        for part in ("step", "attention"):
            values = [1000 * row[place][part] for row in traced]
            measured[f"{ORT}, timed by node: {part} at {context}"] = {"ms a token": summary(values)}
    for name, values in together.items():
        measured[f"{ORT}: {len(BATCH)} prompts {name}"] = {"new tokens/s": summary(values)}
    for part in ("loop", "native"):
        measured[f"one-layer toy, {part}"] = {"ms a token": summary([1000 * loop[part] for loop in loops])}
    figures = [
        Figure(f"{name}: {quantity}, of the memory's limit", ratio(columns[name][quantity], limit), 0.85, True)
        for name in (ORT, ONNX)
        for quantity, limit in limits.items()
    ]
    beside = [[row["step"] - row["attention"] for row in rows] for rows in traced]
    longer = statistics.median(rows[-1] / rows[0] for rows in beside)
    title = f"{ORT}, timed by node: time beside attention at {contexts[-1]}, of that at {contexts[0]}"
    figures.append(Figure(title, longer, 1.05))
    figures += [
        Figure(f"{ORT}: {quantity}, of that of {peer}", ratio(columns[ORT][quantity], values))
        for peer in columns
        if peer != ORT
        for quantity, values in columns[peer].items()
    ]
    figures.append(Figure(f"{len(BATCH)} prompts together, of one at a time", ratio(*together.values()), 3, True))
    over = statistics.median(1000 * (loop["loop"] - loop["native"]) for loop in loops)
    figures.append(Figure("Python's part of a token", over, 0.3, unit="ms"))
    return finish(arguments, "Prompts and tokens of a decoder", measured, figures, numbers)


def server(arguments: argparse.Namespace, name: str, model: Path) -> Server:
    """Start a candidate."""
    python = arguments.genai_python if name == GENAI else sys.executable
    words: list[str | Path] = ["benchmarks.decoders", name, "--model", model, "--threads", str(arguments.threads)]
    return Server([python, "-m", *words], threads=arguments.threads)


def turn(candidate: Server, contexts: Sequence[int], steps: int) -> Callable[[], dict[str, float]]:
    """Measure one candidate once: first tokens, and decoding behind each context."""

    def run() -> dict[str, float]:
        long, short = (candidate.ask(op="run", prompt=size, steps=0)["first"] for size in (PROMPT, SHORT))
        found = {f"prompt of {PROMPT}, tokens/s": PROMPT / long, f"first token after {SHORT}, ms": 1000 * short}
        for context in contexts:
            # Behind no context there is still the first token, which somebody has to give.
            told = candidate.ask(op="run", prompt=max(context, 1), steps=steps)
            found[decode(context)] = steps / told["rest"]
            if context > PROMPT:
                found[f"prompt of {context}, tokens/s"] = context / told["first"]
        return found

    return run


def batch(candidate: Server, rows: int, steps: int) -> Callable[[], float]:
    """Measure new tokens per second over all prompts, so many rows at once; the time of the prompts counts."""
    return lambda: len(BATCH) * steps / float(candidate.ask(op="batch", rows=rows, steps=steps)["seconds"])


def decode(context: int) -> str:
    """Name the quantity."""
    return f"decoding at {context}, tokens/s"


def columnar(rows: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """Turn rounds of quantities into quantities of rounds."""
    return {name: [row[name] for row in rows] for name in rows[0]}


def step_bytes(shape: Mapping[str, int], context: int) -> int:
    """Count what a step must read in fp32: every weight but the table of embeddings, and the keys and values."""
    hidden, layers = shape["hidden_size"], shape["num_hidden_layers"]
    head = hidden // shape["num_attention_heads"]
    keys = shape["num_key_value_heads"] * head
    attention = 2 * hidden * hidden + 2 * hidden * keys + 2 * head + 2 * keys * context
    layer = attention + 2 * hidden * shape["intermediate_size"] + 2 * hidden
    return 4 * (layers * layer + hidden + shape["vocab_size"] * hidden)


def export(shape: Mapping[str, int], target: str, output: Path, *more: str) -> None:
    """Export Apertus with random weights, the same for every target; ``more`` are further flags."""
    config = ",".join(f"{name}={value}" for name, value in shape.items())
    words: list[str | Path] = ["pinnace", "export", "apertus", "--task", "generate", "--random-weights", "-q"]
    words += ["--config", config, "--target", target, "-o", output, "--no-validate", *more]
    run_child([sys.executable, "-m", *words], threads=len(affinity()))


def answer(candidate: Server) -> dict[str, Any]:
    """Ask for the logits behind a prompt, and for the tokens that follow it."""
    tokens = candidate.ask(op="run", prompt=64, steps=COMPARED - 1)["tokens"]
    return {"tokens": tokens, **candidate.ask(op="logits", prompt=64)}


def compare(answers: Mapping[str, Mapping[str, Any]]) -> dict[str, bool]:
    """Compare logits and tokens with those of transformers."""
    expected = answers[TRANSFORMERS]
    found = {}
    for name in (ORT, ONNX):
        own = answers[name]
        off = max(abs(one - other) for one, other in zip(own["logits"], expected["logits"], strict=True))
        found[f"{name}: logits {off:.1e} from transformers, at most {TOLERANCE:g}"] = off <= TOLERANCE
        same = own["tokens"] == expected["tokens"]
        found[f"{name}: the {COMPARED} greedy tokens of transformers"] = same
    return found


if __name__ == "__main__":
    sys.exit(main())
