"""What does exporting an Apertus of eight billion weights cost in time and memory, to fp32 and to fp16?

A sharded checkpoint of random numbers in the shape of the 8B model is written to disk and exported in a process of its
own: stored as fp32, whose files are taken as they are, and stored as bf16, which is converted. A slice of two layers
is then exported and run beside PyTorch.
"""

from __future__ import annotations

import argparse
import contextlib
import filecmp
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from benchmarks.common import Figure, affinity, environment, finish, parser, run_child

SHAPE: Final = {
    "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 21504,
    "vocab_size": 131072, "max_position_embeddings": 65536,
}  # fmt: skip
QUICK_SHAPE: Final = {
    "hidden_size": 512, "num_attention_heads": 8, "num_key_value_heads": 2, "intermediate_size": 2048,
    "vocab_size": 8192, "max_position_embeddings": 1024,
}  # fmt: skip
SLICE: Final = 2  # layers that are run beside PyTorch
SHARDS: Final = 4
STORED: Final = {"F32": ("float32", "<u4", 4), "BF16": ("bfloat16", "<u2", 2)}
MB, GB = 1e6, 1e9
TOLERANCE: Final = 1e-4
PERIOD: Final = 0.02  # seconds between looks at the child's memory


def main() -> int:
    made = parser(__doc__, threads=len(affinity()))
    made.add_argument("--layers", type=int, help="layers of both checkpoints (default: 32)")
    made.add_argument("--only", choices=("fp32", "fp16"), help="one of the two exports")
    made.add_argument("--folder", type=Path, help="where to build (default: a temporary folder); 66 GB at 32 layers")
    made.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    arguments = made.parse_args()
    if arguments.child:
        make_checkpoint(*arguments.child)
        return 0
    with tempfile.TemporaryDirectory(prefix="pinnace-8b-", dir=arguments.folder) as name:
        return measure(arguments, Path(name))


def measure(arguments: argparse.Namespace, folder: Path) -> int:
    """Make a checkpoint, export it, remove both; then the same for the other type, and the slice."""
    layers = arguments.layers or (2 if arguments.quick else 32)
    shape = {**(QUICK_SHAPE if arguments.quick else SHAPE), "num_hidden_layers": layers}
    measured: dict[str, Any] = {}
    figures: list[Figure] = []
    numbers: dict[str, bool] = {}
    for precision, stored in (("fp32", "F32"), ("fp16", "BF16")):
        if arguments.only not in (None, precision):
            continue
        source, output = folder / stored, folder / f"out-{precision}"
        run_child(
            [sys.executable, "-m", "benchmarks.apertus_export", "--child", source, stored, json.dumps(shape)],
            threads=arguments.threads,
        )
        name = f"{stored.lower()} to {precision}, {layers} layers"
        measured[name] = export(arguments, source, output, "--precision", precision, "--no-validate")
        measured[name]["checkpoint, GB"] = size(source) / GB
        measured[name]["bundle, GB"] = size(output) / GB
        figures.append(Figure(f"{name}: peak memory", measured[name]["peak memory, MB"], 1500, unit="MB"))
        if precision == "fp32":
            same = all(filecmp.cmp(output / path.name, path, shallow=False) for path in source.glob("*.safetensors"))
            numbers[f"{name}: the files of weights are the checkpoint's own"] = same
        shutil.rmtree(output)
        if precision == "fp16":
            name = f"{stored.lower()} to fp32, a slice of {SLICE} layers, run beside PyTorch"
            config = f"num_hidden_layers={SLICE},max_position_embeddings=256"
            measured[name] = export(arguments, source, output, "--config", config)
            checked = json.loads((output / "certificate.json").read_text("utf-8"))
            numbers.update(slice_numbers(checked))
            shutil.rmtree(output)
        shutil.rmtree(source)
    return finish(arguments, "Export of Apertus in the shape of 8B", measured, figures, numbers)


def export(arguments: argparse.Namespace, source: Path, output: Path, *flags: str) -> dict[str, float]:
    """Export in a process of its own; look at its memory while it runs, and take the kernel's peak at its end."""
    words = ["pinnace", "export", str(source), "--task", "generate", "-o", str(output), "-q", *flags]
    start, own = time.perf_counter(), 0
    child = subprocess.Popen([sys.executable, "-m", *words], env=environment(arguments.threads), stdout=sys.stderr)
    done = threading.Event()
    peak = 0

    def watch() -> None:
        nonlocal own
        while not done.wait(PERIOD):
            with contextlib.suppress(OSError):
                text = Path(f"/proc/{child.pid}/status").read_text("utf-8")
                found = re.search(r"^RssAnon:\s*(\d+) kB", text, re.MULTILINE)
                own = max(own, 1024 * int(found[1]) if found else 0)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        peak = usage.ru_maxrss * 1024
    finally:
        done.set()
        watcher.join()
    if child.returncode:
        raise SystemExit(f"{' '.join(words)}\nended with {child.returncode}")
    wall = time.perf_counter() - start
    return {"wall, s": wall, "peak memory, MB": peak / MB, "of it no file's pages, MB": own / MB}


def size(folder: Path) -> int:
    """Bytes of a folder's files."""
    return sum(path.stat().st_size for path in folder.iterdir())


def slice_numbers(certificate: dict[str, Any]) -> dict[str, bool]:
    """Read how far the slice's outputs are from PyTorch's."""
    outputs = certificate["variants"]["fp32"]["outputs"]
    off = max(output["max_abs"] for output in outputs.values())
    return {f"slice of {SLICE} layers: {off:.1e} from PyTorch, at most {TOLERANCE:g}": off <= TOLERANCE}


def make_checkpoint(folder: str, stored: str, changes: str) -> None:
    """Write a sharded checkpoint: random bits for signs, two bits of exponents and mantissas, norms as they start."""
    import numpy as np
    import torch

    from pinnace.export.weights import CHUNK
    from pinnace.models.apertus import ApertusForCausalLM
    from pinnace.models.checkpoints.names import APERTUS_NAMES
    from pinnace.models.configs.apertus import ApertusConfig
    from pinnace.safetensors_writer import write_safetensors

    target = Path(folder)
    target.mkdir(parents=True)
    config = ApertusConfig(**json.loads(changes))
    config.save_pretrained(target)
    word, bits, width = STORED[stored]
    facts = json.loads((target / "config.json").read_text("utf-8"))
    facts |= {"architectures": ["ApertusForCausalLM"], "dtype": word}
    (target / "config.json").write_text(json.dumps(facts, indent=2), "utf-8")
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in ApertusForCausalLM(config).state_dict().items()}
    generator = np.random.Generator(np.random.SFC64(0))
    mantissa = 7 if width == 2 else 23
    keep = (1 << (8 * width - 1)) | ((1 << mantissa) - 1)

    def content(name: str) -> Iterator[bytes]:
        left = math.prod(shapes[name])
        fixed = next((value for ending, value in APERTUS_NAMES.start.items() if name.endswith(ending)), None)
        while left > 0:
            count = min(left, CHUNK)
            left -= count
            if fixed is not None or len(shapes[name]) < 2:
                number = np.full(count, 1.0 if fixed is None else fixed, "<f4").view("<u4")
                yield (number >> (32 - 8 * width)).astype(bits).tobytes()
                continue
            drawn = np.frombuffer(generator.bytes(count * width), bits).copy()
            exponent = ((drawn >> mantissa) & 3) + 118  # 2**-9 to 2**-6, so that the layers' numbers stay ordinary
            drawn &= keep
            drawn |= (exponent << mantissa).astype(bits)
            yield drawn.tobytes()

    names = sorted(shapes)
    places: dict[str, str] = {}
    for shard in range(SHARDS):
        file = f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors"
        own = names[shard::SHARDS]
        with (target / file).open("wb") as opened:
            write_safetensors(opened, {name: (stored, shapes[name]) for name in own}, content)
        places |= dict.fromkeys(own, file)
    (target / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}), "utf-8")


if __name__ == "__main__":
    sys.exit(main())
