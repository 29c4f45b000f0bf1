"""How long should a thread wait busily for the next operator before it sleeps, alone and beside other work?

all-MiniLM-L6-v2, fp32, one row at a time on two threads. *Alone*: one process has the cores. *Beside*: two processes
of the same setting share them, and their rows a second count together. Processor time is that of a whole process.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from benchmarks.common import Figure, Server, export_minilm, finish, interleave, minilm_folder, parser, ratio, summary
from pinnace.runtime.engine import native

LENGTHS: Final = (16, 128)
PLACES: Final = {"alone": 1, "beside": 2}  # processes at once
AT_ONCE, BUSY = "sleeps at once", "onnxruntime's own wait"
OURS: Final = f"waits {native.WAIT_US} us"
WAITS: Final[dict[str, int | None]] = {
    AT_ONCE: 0, OURS: native.WAIT_US, "waits 100 us": 100, BUSY: None,
}  # fmt: skip
TOLERANCE: Final = 1e-5


def main() -> int:
    made = parser(__doc__, threads=2)
    made.add_argument("--minilm", type=Path, help="folder of all-MiniLM-L6-v2 (default: the installed package's)")
    made.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    made.add_argument("--wait", choices=WAITS, help=argparse.SUPPRESS)
    arguments = made.parse_args()
    if arguments.serve:
        serve(arguments.serve, WAITS[arguments.wait], arguments.threads)
        return 0
    with tempfile.TemporaryDirectory(prefix="pinnace-waiting-") as name:
        bundle = export_minilm(arguments.minilm or minilm_folder(), Path(name, "bundle"))
        return measure(arguments, bundle)


def measure(arguments: argparse.Namespace, bundle: Path) -> int:
    """Ask one process of each setting, then two, for each length in turn."""
    seconds, rounds = (0.2, 1) if arguments.quick else (2.0, arguments.rounds or 7)
    words = [sys.executable, "-m", "benchmarks.waiting", "--threads", str(arguments.threads), "--serve", str(bundle)]
    with contextlib.ExitStack() as stack:
        pairs = {
            name: [stack.enter_context(Server([*words, "--wait", name], threads=arguments.threads)) for _ in range(2)]
            for name in WAITS
        }
        turns = {
            f"{name}, {place}, {length} tokens": turn(pairs[name][:count], length, seconds)
            for place, count in PLACES.items()
            for length in LENGTHS
            for name in WAITS
        }
        found = interleave(turns, rounds)
    measured: dict[str, dict[str, Any]] = {name: {} for name in WAITS}
    figures, numbers = [], {}
    for what in [f"{place}, {length} tokens" for place in PLACES for length in LENGTHS]:
        speeds = {name: [row["speed"] for row in found[f"{name}, {what}"]] for name in WAITS}
        for name in WAITS:
            measured[name][f"{what}: rows/s"] = summary(speeds[name])
            measured[name][f"{what}: CPU ms a row"] = summary([row["processor"] for row in found[f"{name}, {what}"]])
            if name != AT_ONCE:
                gain = ratio(speeds[name], speeds[AT_ONCE])
                figures.append(Figure(f"{name}, {what}: rows/s, of those of one that {AT_ONCE}", gain))
        sizes = [row["size"] for name in WAITS for row in found[f"{name}, {what}"]]
        off = max(sizes) - min(sizes)
        numbers[f"{what}: mean size of the numbers {off:.1e} apart, at most {TOLERANCE:g}"] = off <= TOLERANCE
    return finish(arguments, "Waiting for the next operator", measured, figures, numbers)


def turn(servers: Sequence[Server], length: int, seconds: float) -> Callable[[], dict[str, float]]:
    """Let all these processes run at once."""

    def run() -> dict[str, float]:
        with ThreadPoolExecutor(len(servers)) as pool:
            rows = list(pool.map(lambda server: server.ask(length=length, seconds=seconds), servers))
        speed = sum(row["rows"] / row["seconds"] for row in rows)
        processor = 1000 * sum(row["processor"] for row in rows) / sum(row["rows"] for row in rows)
        return {"speed": speed, "processor": processor, "size": rows[0]["size"]}

    return run


def serve(bundle: Path, wait: int | None, threads: int) -> None:
    """Answer requests: run one row again and again for so many seconds."""
    import numpy as np

    from pinnace.runtime.engine.session import load

    if wait is not None:
        native.WAIT_US = wait
    session = load(bundle, threads=threads, spin=wait is None)
    generator = np.random.default_rng(0)
    ids = generator.integers(1000, 20_000, (1, max(LENGTHS)))
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        row = ids[:, : request["length"]]
        feeds = {"input_ids": row, "attention_mask": np.ones_like(row), "token_type_ids": np.zeros_like(row)}
        count, start, processor = 0, time.perf_counter(), time.process_time()
        while count == 0 or time.perf_counter() - start < request["seconds"]:
            vectors = session.run(feeds)
            count += 1
        taken = {"seconds": time.perf_counter() - start, "processor": time.process_time() - processor}
        total = float(abs(next(iter(vectors.values()))).mean())
        print(json.dumps({"rows": count, "size": total, **taken}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
