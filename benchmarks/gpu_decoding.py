"""How fast and how right is a decoder of 166 million weights on a GPU, in fp16 and fp32, beside transformers?

The model is that of `benchmarks.decoding`. How right each is, the trained model in tests/data tells: there a next token
follows from what was learned, and not from the noise of random weights.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from benchmarks.common import ROOT, Figure, Server, affinity, finish, interleave, parser, ratio, run_child, summary
from benchmarks.decoders import ONNX, ORT, TRANSFORMERS
from benchmarks.decoding import CONTEXTS, QUICK_SHAPE, SHAPE, columnar, export, turn
from pinnace.spec import PAST

TRAINED: Final = ROOT / "tests" / "data" / "apertus-glossary"
TEXTS: Final = ROOT / "tests" / "data" / "lm_dev.txt"
TARGETS: Final = {ORT: "ort", ONNX: "onnx"}
# ONNX Runtime has no GroupQueryAttention in fp32 for CUDA, so the target ort is there in fp16 only.
PRECISIONS: Final = {ORT: ("fp16",), ONNX: ("fp16", "fp32"), TRANSFORMERS: ("fp16", "fp32")}
AGREEMENT: Final = 0.99
LINES: Final = 300


def main() -> int:
    made = parser(__doc__, threads=min(4, len(affinity())))
    made.add_argument("--device", default="cuda")
    arguments = made.parse_args()
    with tempfile.TemporaryDirectory(prefix="pinnace-gpu-") as name:
        return measure(arguments, Path(name))


def measure(arguments: argparse.Namespace, folder: Path) -> int:
    """Run every candidate in turn, then ask how right each is, then print."""
    quick, device = arguments.quick, arguments.device
    shape, contexts, steps = (QUICK_SHAPE, (0, 64), 8) if quick else (SHAPE, CONTEXTS, 64)
    for target in TARGETS.values():
        export(shape, target, folder / target, "--precision", "fp16")
    models = {**{name: folder / target for name, target in TARGETS.items()}, TRANSFORMERS: folder / "ort"}
    with contextlib.ExitStack() as stack:
        servers = {
            f"{name}, {precision}": stack.enter_context(server(arguments, name, model, precision))
            for name, model in models.items()
            for precision in PRECISIONS[name]
        }
        turns = {name: turn(each, contexts, steps) for name, each in servers.items()}
        columns = {name: columnar(rows) for name, rows in interleave(turns, arguments.rounds or 5).items()}
        for name, each in servers.items():
            if not name.startswith(TRANSFORMERS):
                print(f"{name}: {json.dumps(each.ask(op='placement'))}", file=sys.stderr)
    measured: dict[str, Any] = {
        name: {quantity: summary(values) for quantity, values in rows.items()} for name, rows in columns.items()
    }
    peer = columns[f"{TRANSFORMERS}, fp16"]
    figures = [
        Figure(f"{name}, fp16: {quantity}, of that of {TRANSFORMERS}, fp16", ratio(values, peer[quantity]))
        for name in TARGETS
        for quantity, values in columns[f"{name}, fp16"].items()
    ]
    numbers: dict[str, bool] = {}
    for name, target in TARGETS.items():
        for precision, share in agreement(folder / f"trained-{target}", target, device, PRECISIONS[name]).items():
            figures.append(Figure(f"{name}, {precision}: next tokens as fp32's on the CPU", share, AGREEMENT, True))
            numbers[f"{name}, {precision}: {share:.2%} of the next tokens"] = share >= AGREEMENT
    return finish(arguments, f"Prompts and tokens of a decoder on {gpu_name(device)}", measured, figures, numbers)


def gpu_name(device: str) -> str:
    """What the driver calls the device; the device's word where there is no driver."""
    if (program := shutil.which("nvidia-smi")) is None:
        return device
    number = device.partition(":")[2] or "0"
    return run_child([program, "--query-gpu=name", "--format=csv,noheader", "--id", number]).output.strip()


def server(arguments: argparse.Namespace, name: str, model: Path, precision: str) -> Server:
    """Start a candidate on the device."""
    words: list[str | Path] = [sys.executable, "-m", "benchmarks.decoders", name, "--model", model]
    words += ["--threads", str(arguments.threads), "--precision", precision, "--device", arguments.device]
    return Server(words, threads=arguments.threads)


def agreement(bundle: Path, target: str, device: str, precisions: Sequence[str]) -> dict[str, float]:
    """Give, for each precision, how often the device's likeliest next token is that of fp32 on the CPU.

    Every position of 300 unseen entries counts, its real beginning given; like beginnings count once.
    """
    import pinnace
    from pinnace.runtime.tokenization.tokenizer import load_tokenizer

    words: list[str | Path] = ["pinnace", "export", TRAINED, "--task", "generate", "-q", "--all-logits"]
    words += ["--target", target, "--precision", "fp16", "-o", bundle]
    run_child([sys.executable, "-m", *words], threads=len(affinity()))
    tokenizer = load_tokenizer(bundle)
    lines = TEXTS.read_text("utf-8").splitlines()[:LINES]
    rows = [np.array(tokenizer.encode(line)) for line in lines]
    best = {
        f"{one} on {device}": likeliest(pinnace.load(bundle, precision=one, device=device), rows) for one in precisions
    }
    expected = likeliest(pinnace.load(bundle, precision="fp32"), rows)
    beginnings = {tuple(row[: end + 1]): (place, end) for place, row in enumerate(rows) for end in range(len(row))}
    return {
        name: float(np.mean([found[place][end] == expected[place][end] for place, end in beginnings.values()]))
        for name, found in best.items()
    }


def likeliest(session: Any, rows: list[npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
    """Give the likeliest next token behind every token of every row, 16 rows a run."""
    found = []
    for first in range(0, len(rows), 16):
        batch = rows[first : first + 16]
        width = max(map(len, batch))
        feeds: dict[str, Any] = {
            "input_ids": np.stack([np.pad(row, (0, width - len(row))) for row in batch]),
            "attention_mask": np.stack([np.pad(np.ones_like(row), (0, width - len(row))) for row in batch]),
            "position_ids": np.tile(np.arange(width), (len(batch), 1)),
        }
        feeds |= empty_cache(session, len(batch))
        logits = session.run(feeds, outputs=["logits"])["logits"]
        found += [logits[place, : len(row)].argmax(-1) for place, row in enumerate(batch)]
    return found


def empty_cache(session: Any, rows: int) -> Mapping[str, Any]:
    """Keys and values of nothing."""
    cache = [spec for spec in session.inputs if spec.name.startswith(PAST)]
    return {spec.name: np.zeros((rows, spec.shape[1], 0, spec.shape[3]), spec.dtype) for spec in cache}


if __name__ == "__main__":
    sys.exit(main())
