"""Does the runtime behave in a service: threads of a container, idle CPU, memory over 10,000 lengths, many callers?

Every question is a process of its own, on all-MiniLM-L6-v2 with two threads.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from benchmarks.common import Figure, export_minilm, finish, minilm_folder, parser, ratio, run_child, summary
from pinnace.bench.texts import texts

MB: Final = 1e6
CALLERS: Final = 8
TOLERANCE: Final = 1e-5
VISIBLE: Final = 16
# What the kernel shows in a container of two CPUs, for both versions of control groups.
CONTAINERS: Final = {
    "control groups 2": {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"},
    "control groups 1": {
        "proc/self/cgroup": "4:cpu,cpuacct:/docker/x\n",
        "sys/fs/cgroup/cpu,cpuacct/docker/x/cpu.cfs_quota_us": "200000\n",
        "sys/fs/cgroup/cpu,cpuacct/docker/x/cpu.cfs_period_us": "100000\n",
    },
}


def main() -> int:
    made = parser(__doc__, threads=2)
    made.add_argument("--minilm", type=Path, help="folder of all-MiniLM-L6-v2 (default: the installed package's)")
    made.add_argument("--child", choices=sorted(CHILDREN), help=argparse.SUPPRESS)
    made.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    arguments = made.parse_args()
    if arguments.child:
        print(json.dumps(CHILDREN[arguments.child](arguments.model, arguments.quick, arguments.threads)))
        return 0
    with tempfile.TemporaryDirectory(prefix="pinnace-production-") as name:
        return measure(arguments, Path(name))


def measure(arguments: argparse.Namespace, folder: Path) -> int:
    """Ask every question in its own process, and print."""
    bundle = export_minilm(arguments.minilm or minilm_folder(), folder / "bundle")

    def child(name: str) -> dict[str, Any]:
        print(name, file=sys.stderr, flush=True)
        words: list[str | Path] = [sys.executable, "-m", "benchmarks.production", "--child", name, "--model", bundle]
        words += ["--threads", str(arguments.threads), *(["--quick"] if arguments.quick else [])]
        cache = str(folder / "cache")
        # The children choose their threads themselves.
        run = run_child(words, threads=arguments.threads, XDG_CACHE_HOME=cache, PINNACE_THREADS="")
        found: dict[str, Any] = json.loads(run.output)
        return found

    found = {name: child(name) for name in CHILDREN}
    callers, memory, many = found["callers"], found["memory"], found["replicas"]
    measured = {
        "one caller": {"seconds": summary(callers["serial"])},
        f"{CALLERS} callers": {"seconds": summary(callers["together"])},
        f"{CALLERS} callers, replicas": {"seconds": summary(callers["replicas"])},
        "300 texts, one run at a time": {"seconds": summary(many["threads"])},
        "300 texts, replicas": {"seconds": summary(many["replicas"])},
        "one thread": {"most memory, MB": found["one replica"]["peak"] / MB},
        "two replicas of one thread": {"most memory, MB": found["two replicas"]["peak"] / MB},
        "random lengths": {"memory after 1,000, MB": memory["warm"] / MB, "most memory, MB": memory["most"] / MB},
    }
    second = (found["two replicas"]["peak"] - found["one replica"]["peak"]) / MB
    figures = [
        *(
            Figure(f"threads in a quota of 2 of {VISIBLE} CPUs, {name}", count, 2, unit="threads")
            for name, count in found["container"]["threads"].items()
        ),
        Figure("CPU in the seconds after a burst, of one core", 100 * found["idle"]["share"], 1, unit="%"),
        Figure(f"memory over {memory['runs']:,} random lengths, most of warm", memory["most"] / memory["warm"], 1.1),
        Figure(f"requests/s of {CALLERS} callers, of one's", ratio(callers["serial"], callers["together"]), 1, True),
        Figure(
            f"requests/s of {CALLERS} callers with replicas, of one's", ratio(callers["serial"], callers["replicas"])
        ),
        Figure("memory of a second replica", second, unit="MB"),
        Figure("texts/s of replicas, of one run at a time", ratio(many["threads"], many["replicas"])),
    ]
    numbers = {
        f"{CALLERS} callers: {callers['off']:.1e} from one caller, at most {TOLERANCE:g}": callers["off"] <= TOLERANCE,
        f"replicas: {many['off']:.1e} from one run at a time, at most {TOLERANCE:g}": many["off"] <= TOLERANCE,
        "threads that started are as many as were granted": found["container"]["right"],
    }
    return finish(arguments, "The runtime in a service", measured, figures, numbers)


def container(model: Path, quick: bool, threads: int) -> dict[str, Any]:
    """Open a session where 16 CPUs are visible and two are granted, and count the threads that start."""
    import pinnace.runtime.machine.threads as granted
    from pinnace.runtime.engine.session import load
    from pinnace.runtime.machine import large_pages

    os.environ[large_pages.VARIABLE] = "0"  # its thread lives for a moment only, and would be counted
    counts, right = {}, True
    for name, files in CONTAINERS.items():
        with tempfile.TemporaryDirectory() as folder:
            for path, text in files.items():
                target = Path(folder, path)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(text, "ascii")
            granted.affinity = lambda: frozenset(range(VISIBLE))
            granted.granted_cores.__defaults__ = (Path(folder),)
            before = tasks()
            session = load(model)
            counts[name] = session.threads
            # The caller is one of the threads of a run.
            right = right and 1 + tasks() - before == session.threads == 2
            del session
    return {"threads": counts, "right": right}


def tasks() -> int:
    """Threads of this process."""
    return len(list(Path("/proc/self/task").iterdir()))


def idle(model: Path, quick: bool, threads: int) -> dict[str, Any]:
    """CPU time in the seconds after a burst of runs."""
    import pinnace

    pipe: Any = pinnace.pipeline("embed", model, threads=threads)
    pipe(texts(100))
    seconds = 1 if quick else 10
    before = time.process_time()
    time.sleep(seconds)
    return {"share": (time.process_time() - before) / seconds}


def memory(model: Path, quick: bool, threads: int) -> dict[str, Any]:
    """Resident memory over batches of random rows and lengths, each of at most 640 tokens."""
    import numpy as np

    from pinnace.runtime.engine.session import load

    session, random = load(model, threads=threads), np.random.default_rng(0)
    runs, warm = (300, 100) if quick else (10_000, 1000)
    found = []
    for number in range(1, runs + 1):
        length = int(random.integers(1, 257))
        shape = (int(random.integers(1, 1 + max(1, min(8, 640 // length)))), length)
        ids = random.integers(1000, 20_000, shape)
        session.run({"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)})
        if number >= warm and number % 100 == 0:
            found.append(int(Path("/proc/self/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE"))
    return {"warm": found[0], "most": max(found), "last": found[-1], "runs": runs}


def callers(model: Path, quick: bool, threads: int) -> dict[str, Any]:
    """The same requests from one caller and from eight at once on one pipeline, and from eight on one with replicas."""
    import numpy as np

    import pinnace

    one: Any = pinnace.pipeline("embed", model, threads=threads)
    many: Any = pinnace.pipeline("embed", model, threads=threads, replicas="auto")
    chosen = texts(300)
    requests = [chosen[i : i + 4] for i in range(0, 32 if quick else 160, 4)]

    def ask(pipe: Any) -> Callable[[list[str]], Any]:
        return lambda request: pipe(request, return_tensors=True)

    with ThreadPoolExecutor(CALLERS) as pool:
        ways: dict[str, Callable[[], list[Any]]] = {
            "serial": lambda: list(map(ask(one), requests)),
            "together": lambda: list(pool.map(ask(one), requests)),
            "replicas": lambda: list(pool.map(ask(many), requests)),
        }
        return compared(ways, 2 if quick else 9, np)


def replicas(model: Path, quick: bool, threads: int) -> dict[str, Any]:
    """Many texts on one run at a time with all threads, and on as many runs of one thread."""
    import numpy as np

    import pinnace

    chosen = texts(60 if quick else 300)
    one: Any = pinnace.pipeline("embed", model, threads=threads)
    many: Any = pinnace.pipeline("embed", model, threads=threads, replicas="auto")
    ways: dict[str, Callable[[], list[Any]]] = {
        "threads": lambda: [one(chosen, return_tensors=True)],
        "replicas": lambda: [many(chosen, return_tensors=True)],
    }
    return compared(ways, 1 if quick else 7, np)


def peak_of(count: int) -> Callable[[Path, bool, int], dict[str, Any]]:
    """Make a child that tells the peak memory of so many replicas of one thread."""

    def child(model: Path, quick: bool, threads: int) -> dict[str, Any]:
        import resource

        import pinnace

        pipe: Any = pinnace.pipeline("embed", model, threads=count, replicas=count)
        pipe(texts(60 if quick else 300), return_tensors=True)
        return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}

    return child


def compared(ways: dict[str, Callable[[], list[Any]]], rounds: int, np: Any) -> dict[str, Any]:
    """Seconds of all ways in turn, one round not counted, and the largest difference from the first one's results."""
    seconds: dict[str, Any] = {name: [] for name in ways}
    results: dict[str, Any] = {}
    for turn in range(rounds + 1):
        for name, run in ways.items():
            start = time.perf_counter()
            results[name] = np.concatenate([np.asarray(part) for part in run()])
            if turn:
                seconds[name].append(time.perf_counter() - start)
    first, *others = results.values()
    print({name: statistics.median(found) for name, found in seconds.items()}, file=sys.stderr)
    return {**seconds, "off": max(float(np.abs(first - other).max()) for other in others)}


CHILDREN: Final[dict[str, Callable[[Path, bool, int], dict[str, Any]]]] = {
    "container": container,
    "idle": idle,
    "callers": callers,
    "replicas": replicas,
    "one replica": peak_of(1),
    "two replicas": peak_of(2),
    "memory": memory,
}

if __name__ == "__main__":
    sys.exit(main())
