"""What this process may use of the machine: cores by affinity and container quota, memory, cache. Read from files."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pinnace.errors import UsageError

THREADS_VARIABLE: Final = "PINNACE_THREADS"
ROOT: Final = Path("/")


def thread_count(asked: int | None = None) -> int:
    """Return the number of threads for one model: the caller's, else ``PINNACE_THREADS``, else what is granted.

    Raises:
        UsageError: the number is not a whole number of at least 1.
    """
    word: int | str | None = asked if asked is not None else os.environ.get(THREADS_VARIABLE) or None
    if word is None:
        return granted_cores()
    try:
        count = operator.index(asked) if asked is not None else int(word)
    except (TypeError, ValueError):
        count = 0
    if not 1 <= count <= 1024 or isinstance(word, bool):
        where = "threads" if asked is not None else THREADS_VARIABLE
        raise UsageError(f"{where} is {word!r}; expected a whole number of at least 1, or nothing for this machine's")
    return count


def granted_cores(root: Path = ROOT) -> int:
    """Return the cores that this process may keep busy: at least 1.

    The smallest of the physical cores of the affinity mask (two hyper-threads share one multiplier) and the
    container's quota, rounded down, since a thread beyond the quota makes all of them wait.
    """
    quota = cpu_quota(root)
    cores = _physical_cores(affinity(), root)
    return max(1, cores if quota is None else min(cores, int(quota)))


def affinity() -> frozenset[int]:
    """Return the numbers of the CPUs on which this process may run."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def cpu_quota(root: Path = ROOT) -> float | None:
    """Return the container's CPU quota in cores, None if unlimited. Control groups of version 1 and 2 are read."""
    found = [*_quotas_v2(root), *_quotas_v1(root)]
    return min(found) if found else None


def memory_limit(root: Path = ROOT) -> int | None:
    """Return the bytes of memory that this process may use: the container's limit or the machine's memory."""
    found = []
    for folder in _groups(root, ""):
        found.append(_number(folder / "memory.max"))
    for folder in _groups(root, "memory"):
        found.append(_number(folder / "memory.limit_in_bytes"))
    for line in _text(root / "proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            found.append(int(line.split()[1]) * 1024)
    limits = [limit for limit in found if limit is not None and limit > 0]
    return min(limits) if limits else None


def cache_per_core(root: Path = ROOT) -> int | None:
    """Return the bytes of the largest cache that one core has to itself, its share of a shared cache included."""
    shares = []
    for folder in sorted((root / "sys/devices/system/cpu/cpu0/cache").glob("index*")):
        size = _text(folder / "size").strip()
        if _text(folder / "type").strip() == "Instruction" or not size[:-1].isdigit():
            continue
        unit = {"K": 1 << 10, "M": 1 << 20}.get(size[-1], 0)
        sharers = len(_cpu_list(_text(folder / "shared_cpu_list")))
        shares.append(int(size[:-1]) * unit // max(1, sharers))
    return max(shares, default=None) or None


def _physical_cores(cpus: frozenset[int], root: Path) -> int:
    """Count the cores behind these CPUs; a CPU whose siblings are unknown counts as one."""
    folder = root / "sys/devices/system/cpu"
    siblings = {c: _text(folder / f"cpu{c}/topology/thread_siblings_list").strip() or str(c) for c in cpus}
    return len(set(siblings.values()))


def _quotas_v2(root: Path) -> Iterator[float]:
    for folder in _groups(root, ""):
        words = _text(folder / "cpu.max").split()
        if len(words) == 2 and words[0].isdigit() and words[1].isdigit() and int(words[1]) > 0:
            yield int(words[0]) / int(words[1])


def _quotas_v1(root: Path) -> Iterator[float]:
    for folder in _groups(root, "cpu"):
        quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
        if quota is not None and quota > 0 and period:
            yield quota / period


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of this process's control group and of those above it, the mount's own root included.

    Args:
        root: where ``proc`` and ``sys`` lie.
        controller: ``""`` for version 2, the controller's name for version 1.
    """
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if controller not in names.split(","):
            continue
        bases = ["sys/fs/cgroup", "sys/fs/cgroup/unified"] if not controller else [f"sys/fs/cgroup/{names}"]
        if controller and names != controller:
            bases.append(f"sys/fs/cgroup/{controller}")
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for base in bases:
            yield root / base
            for depth in range(1, len(parts) + 1):
                yield root.joinpath(base, *parts[:depth])


def _number(path: Path) -> int | None:
    word = _text(path).strip()
    return int(word) if word.lstrip("-").isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def _cpu_list(text: str) -> set[int]:
    """Read a list such as ``0-3,8``."""
    cpus: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first.isdigit():
            cpus.update(range(int(first), int(last if last.isdigit() else first) + 1))
    return cpus
