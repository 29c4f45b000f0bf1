"""Facts of the machine that explain a measurement. Only the standard library is imported: peers run it too."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

PACKAGES: Final = (
    "pinnace", "numpy", "onnxruntime", "onnxruntime-gpu", "tokenizers", "torch", "onnx", "transformers",
    "optimum-onnx", "sentence-transformers", "fastembed", "onnxruntime-genai", "llama-cpp-python", "openvino",
)  # fmt: skip
FEATURES: Final = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm")
ENERGY: Final = Path("/sys/class/powercap")
CPUS: Final = Path("/sys/devices/system/cpu")


def processor() -> dict[str, Any]:
    """Name and instruction sets of the processor, and the system that runs on it."""
    text = _text(Path("/proc/cpuinfo"))
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    have = set(flags[1].split()) if flags else set()
    return {
        "processor": name[1].strip() if name else platform.processor() or platform.machine(),
        "features": [feature for feature in FEATURES if feature in have],
        "system": f"{platform.system()} {platform.machine()}",
    }


def affinity() -> list[int]:
    """CPUs on which this process may run."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def chosen_cpus(count: int, folder: Path = CPUS) -> list[int]:
    """The CPUs to hold so many threads: one of each core first, since two hyper-threads share one multiplier."""
    seen: set[str] = set()
    first: list[int] = []
    second: list[int] = []
    for cpu in affinity():
        core = _text(folder / f"cpu{cpu}/topology/thread_siblings_list").strip() or str(cpu)
        (second if core in seen else first).append(cpu)
        seen.add(core)
    return sorted([*first, *second][:count])


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Versions of Python and of those packages that are installed."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def install_bytes(package: str) -> int | None:
    """Bytes of the files of a package and of all that it needs; None where it is not installed."""
    total, waiting, seen = 0, [package], set()
    while waiting:
        name = _plain(waiting.pop())
        if name in seen:
            continue
        seen.add(name)
        try:
            found = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            if name == _plain(package):
                return None
            continue  # a dependency of another system
        total += sum(_files(found))
        # What stands behind an extra is not needed.
        waiting += [need for need in found.requires or () if not re.search(r"\bextra\b", need.partition(";")[2])]
    return total


def _files(found: importlib.metadata.Distribution) -> Iterator[int]:
    """Sizes of a distribution's files; of an editable one those of the package's folder."""
    name = found.metadata["Name"]
    sizes = []
    for file in found.files or ():
        try:
            sizes.append(Path(str(found.locate_file(file))).stat().st_size)
        except OSError:
            continue
    spec = importlib.util.find_spec(name) if str(name).isidentifier() else None
    if spec is not None and spec.origin is not None:
        folder = Path(spec.origin).parent
        if not any(folder.name in str(file) for file in found.files or ()):
            sizes += [p.stat().st_size for p in _walk(folder) if p.suffix in (".py", ".typed")]
    yield from sizes


def _walk(folder: Path) -> Iterator[Path]:
    for place, _, names in os.walk(folder, followlinks=True):  # a checkout's subpackages are links
        yield from (Path(place) / name for name in names)


def _plain(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    return re.sub(r"[-_.]+", "-", match[0]).lower() if match else requirement


def load() -> float:
    """Average number of running processes in the last minute; 0 where the system does not tell."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else 0.0


class Energy:
    """The processor's energy counters (RAPL), which wrap around."""

    def __init__(self, root: Path = ENERGY) -> None:
        self._counters: list[tuple[Path, int]] = []
        for folder in sorted(root.glob("intel-rapl:*")):
            # Packages alone: what is below them is part of them.
            if folder.name.count(":") == 1 and (energy := _number(folder / "energy_uj")) is not None:
                self._counters.append((folder / "energy_uj", _number(folder / "max_energy_range_uj") or energy))

    @property
    def there(self) -> bool:
        """Whether the machine tells its energy to this user."""
        return bool(self._counters)

    def read(self) -> list[int]:
        """Microjoules of each package, counted from some time on."""
        return [_number(path) or 0 for path, _ in self._counters]

    def joules(self, before: Sequence[int], after: Sequence[int]) -> float:
        """Energy between two readings, less than one round of the counters apart."""
        parts = zip(before, after, self._counters, strict=True)
        return sum((b - a) % (most + 1) for a, b, (_, most) in parts) / 1e6


class Usage:
    """Memory and CPU time of a running process, as the kernel counts them; ``/proc`` is needed."""

    def __init__(self, pid: int) -> None:
        self._folder = Path(f"/proc/{pid}")

    def memory(self) -> tuple[int | None, int | None]:
        """Resident bytes now and at most since its start; None where the system does not tell."""
        found = dict(re.findall(r"^(VmRSS|VmHWM):\s*(\d+) kB", _text(self._folder / "status"), re.MULTILINE))
        now, most = (int(found[key]) * 1024 if key in found else None for key in ("VmRSS", "VmHWM"))
        return now, most

    def cpu_seconds(self) -> float | None:
        """CPU time of all its threads."""
        times = [_text(path).split() for path in self._folder.glob("task/*/schedstat")]
        return sum(int(words[0]) for words in times if words) / 1e9 if any(times) else None

    def idle_share(self, seconds: float) -> float | None:
        """Share of one CPU that it takes while nothing is asked of it."""
        before, start = self.cpu_seconds(), time.perf_counter()
        time.sleep(seconds)
        after, end = self.cpu_seconds(), time.perf_counter()
        return None if before is None or after is None else max(0.0, after - before) / (end - start)


def _number(path: Path) -> int | None:
    word = _text(path).strip()
    return int(word) if word.isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", errors="replace")
    except OSError:
        return ""
