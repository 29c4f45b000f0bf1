"""Cores, quota, memory and caches, read from trees of files laid out like a container's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pinnace.errors import UsageError
from pinnace.runtime.machine import threads


def lay(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


V2 = {"proc/self/cgroup": "0::/app/one\n"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({**V2, "sys/fs/cgroup/app/one/cpu.max": "150000 100000\n"}, 1.5),
        ({**V2, "sys/fs/cgroup/app/one/cpu.max": "max 100000\n"}, None),
        ({**V2, "sys/fs/cgroup/app/one/cpu.max": "400000 100000", "sys/fs/cgroup/app/cpu.max": "200000 100000"}, 2.0),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000"}, 0.5),
        ({"proc/self/cgroup": "0::/../other\n", "sys/fs/cgroup/cpu.max": "300000 100000"}, 3.0),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/docker/x\n0::/\n",
                "sys/fs/cgroup/cpu,cpuacct/docker/x/cpu.cfs_quota_us": "250000",
                "sys/fs/cgroup/cpu,cpuacct/docker/x/cpu.cfs_period_us": "100000",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
            },
            2.5,
        ),
        ({**V2, "sys/fs/cgroup/app/one/cpu.max": "garbage"}, None),
    ],
)
def test_quota(tmp_path: Path, files: dict[str, str], expected: float | None) -> None:
    assert threads.cpu_quota(lay(tmp_path, files)) == expected


def test_quota_below_one_still_gives_a_thread(tmp_path: Path) -> None:
    assert threads.granted_cores(lay(tmp_path, {**V2, "sys/fs/cgroup/app/one/cpu.max": "20000 100000"})) == 1


def test_two_hyper_threads_are_one_core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "affinity", lambda: frozenset({0, 1, 2, 3}))
    siblings = {0: "0,2", 2: "0,2", 1: "1,3", 3: "1,3"}
    topology = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    assert threads.granted_cores(lay(tmp_path, {topology.format(c): s for c, s in siblings.items()})) == 2
    assert threads.granted_cores(tmp_path / "nothing-there") == 4


def test_memory_is_the_smallest_limit(tmp_path: Path) -> None:
    lay(tmp_path, {**V2, "proc/meminfo": "MemTotal:       8000 kB\n", "sys/fs/cgroup/app/memory.max": "max"})
    assert threads.memory_limit(tmp_path) == 8000 * 1024
    lay(tmp_path, {"sys/fs/cgroup/app/memory.max": "1000000"})
    assert threads.memory_limit(tmp_path) == 1_000_000
    lay(tmp_path, {"proc/self/cgroup": "3:memory:/m\n", "sys/fs/cgroup/memory/m/memory.limit_in_bytes": "500000"})
    assert threads.memory_limit(tmp_path) == 500_000
    assert threads.memory_limit(tmp_path / "nothing-there") is None


def test_cache_counts_the_share_of_one_core(tmp_path: Path) -> None:
    base = "sys/devices/system/cpu/cpu0/cache/index"
    facts = {
        0: ("Data", "32K", "0"),
        1: ("Instruction", "9999K", "0"),
        2: ("Unified", "512K", "0"),
        3: ("Unified", "32M", "0-7"),
    }
    for index, (kind, size, sharers) in facts.items():
        lay(
            tmp_path,
            {f"{base}{index}/type": kind, f"{base}{index}/size": size, f"{base}{index}/shared_cpu_list": sharers},
        )
    assert threads.cache_per_core(tmp_path) == 4 << 20
    assert threads.cache_per_core(tmp_path / "nothing-there") is None


def test_the_callers_number_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(threads.THREADS_VARIABLE, "7")
    assert threads.thread_count() == 7
    assert threads.thread_count(3) == 3
    monkeypatch.delenv(threads.THREADS_VARIABLE)
    assert threads.thread_count() == threads.granted_cores() >= 1


@pytest.mark.parametrize("word", ["0", "-1", "many", "1e3", "99999"])
def test_senseless_numbers(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(threads.THREADS_VARIABLE, word)
    with pytest.raises(UsageError, match=f"PINNACE_THREADS is '{word}'"):
        threads.thread_count()
    with pytest.raises(UsageError, match="threads is 0"):
        threads.thread_count(0)
    for wrong in (2.7, "2", True):
        with pytest.raises(UsageError, match="threads is "):
            threads.thread_count(wrong)  # type: ignore[arg-type]
    assert threads.thread_count(np.int64(2)) == 2  # type: ignore[arg-type]
