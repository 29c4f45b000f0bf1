"""What about this machine and its installation helps or harms: processor, grants, versions, known hazards."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import platform
import re
import shutil
import tempfile
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from pinnace.errors import PinnaceError
from pinnace.runtime.bundles import verdicts
from pinnace.runtime.machine import cpu, threads
from pinnace.spec import EXACT_INT8_DOT

OK: Final = "ok"
WARN: Final = "warn"
FAIL: Final = "fail"


@dataclasses.dataclass(frozen=True)
class Finding:
    """One fact: its level (``ok``, ``warn``, ``fail``), what it is about, what was found, and what to do."""

    level: str
    subject: str
    text: str
    remedy: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the finding as plain data."""
        return dataclasses.asdict(self)


class Package(NamedTuple):
    """What a distribution is needed for, and the least version that Pinnace is tested with; none where it is unused."""

    use: str
    least: str | None = None


class Hazard(NamedTuple):
    """A version of a package that is known to hurt: below ``before``, and no lower than ``since``."""

    package: str
    since: str
    before: str
    level: str
    text: str
    remedy: str


_GPU: Final = "core, for a GPU"
_UNUSED: Final = "not used by Pinnace"
# Those of pyproject.toml, the build for a GPU, and others that many environments have beside Pinnace.
PACKAGES: Final[Mapping[str, Package]] = types.MappingProxyType(
    {
        "numpy": Package("core", "1.26"),
        "onnxruntime": Package("core", "1.24"),
        "onnxruntime-gpu": Package(_GPU, "1.24"),
        "tokenizers": Package("core", "0.21"),
        "torch": Package("extra export", "2.10"),
        "onnx": Package("extra export", "1.21"),
        "onnx-ir": Package("extra export", "1.0"),
        "huggingface_hub": Package("extra hub", "1.0"),
        "minijinja": Package("extra chat", "3.0"),
        "starlette": Package("extra serve", "0.40"),
        "uvicorn": Package("extra serve", "0.30"),
        "matplotlib": Package("extra report", "3.8"),
        "safetensors": Package(_UNUSED),
        "transformers": Package(_UNUSED),
        "optimum-onnx": Package(_UNUSED),
    }
)

HAZARDS: Final = (
    Hazard("torch", "0", "2.6", FAIL, "loading a pickle runs code even with weights_only (CVE-2025-32434)",
           "pip install 'torch>=2.10'"),
    Hazard("torch", "2.6", "2.10", WARN, "loading a pickle can corrupt memory even with weights_only (CVE-2026-24747)",
           "pip install 'torch>=2.10', or keep to safetensors"),
    Hazard("transformers", "4.56", "5.3", WARN, "a config.json can make it fetch and run code (CVE-2026-4372)",
           "pip install 'transformers>=5.3'; Pinnace itself never loads it"),
    Hazard("onnx", "0", "1.21", WARN, "external data of a hostile graph can reach files outside its folder",
           "pip install 'onnx>=1.21'"),
)  # fmt: skip

_LITTLE_MEMORY: Final = 1 << 30
_LITTLE_DISK: Final = 1 << 30


def diagnose() -> list[Finding]:
    """Look at the machine and the installation. Nothing heavy is imported and nothing is changed.

    Returns:
        Findings, in the order of `LOOKS`.
    """
    return [finding for look in LOOKS for finding in look()]


def worst_level(findings: list[Finding]) -> str:
    """Return the worst level among the findings."""
    levels = {finding.level for finding in findings}
    return next((level for level in (FAIL, WARN) if level in levels), OK)


def _python() -> Iterator[Finding]:
    yield Finding(OK, "system", f"Python {platform.python_version()}, {platform.system()} {platform.machine()}")


def _processor() -> Iterator[Finding]:
    yield from processor_findings(cpu.read_cpu())


def processor_findings(processor: cpu.Cpu) -> Iterator[Finding]:
    """Judge a processor by its features."""
    yield Finding(OK, "processor", f"{processor.name} ({', '.join(processor.features) or 'features unknown'})")
    if not processor.known:
        return  # a variant that needs a feature warns when it is opened
    if processor.int8_dot() != "exact":
        yield Finding(
            WARN,
            "int8",
            "no integer dot product (VNNI) here: full-range int8 weights saturate and answer wrongly",
            "use int8 variants with reduced range, which is what pinnace quantize writes here; those that need "
            f"{EXACT_INT8_DOT} are refused",
        )
    if processor.machine in ("x86_64", "AMD64") and "avx2" not in processor.features:
        yield Finding(WARN, "processor", "no AVX2: everything runs several times slower", "use a newer machine type")


def _cores() -> Iterator[Finding]:
    visible, granted = os.cpu_count() or 1, threads.granted_cores()
    quota = threads.cpu_quota()
    limit = f"{quota:g} CPUs" if quota is not None else "none"
    yield Finding(
        OK,
        "cores",
        f"{granted} used by default; {visible} visible, {len(threads.affinity())} in the mask, quota {limit}",
    )
    if quota is not None and quota < 1:
        yield Finding(
            WARN, "cores", f"the quota of {quota:g} CPUs makes every run wait", "grant the container a whole CPU"
        )
    try:
        count = threads.thread_count()
    except PinnaceError as error:
        yield Finding(FAIL, "threads", str(error), f"unset {threads.THREADS_VARIABLE}")
        return
    if count > granted:
        yield Finding(
            WARN,
            "threads",
            f"{threads.THREADS_VARIABLE} is {count}, more than the {granted} granted: threads wait for each other",
            f"unset {threads.THREADS_VARIABLE}",
        )
    if "OMP_NUM_THREADS" in os.environ:
        yield Finding(OK, "threads", "OMP_NUM_THREADS is set; Pinnace does not read it (PINNACE_THREADS counts)")


def _memory() -> Iterator[Finding]:
    limit = threads.memory_limit()
    if limit is None:
        yield Finding(WARN, "memory", "the limit is unknown", "")
    elif limit < _LITTLE_MEMORY:
        yield Finding(
            WARN, "memory", f"{limit / 1e9:.1f} GB: too little for a BERT-base in fp32", "use an int8 variant"
        )
    else:
        yield Finding(OK, "memory", f"{limit / 1e9:.1f} GB may be used")


def _runtime() -> Iterator[Finding]:
    try:
        from pinnace.runtime.engine import ort
    except (ImportError, PinnaceError) as error:
        yield Finding(FAIL, "onnxruntime", f"cannot be imported: {error}", "pip install --force-reinstall onnxruntime")
        return
    offered = ", ".join(p.removesuffix("ExecutionProvider") for p in ort.onnxruntime.get_available_providers())
    yield Finding(OK, "onnxruntime", f"{ort.onnxruntime.__version__}, offers {offered}")
    if told := ort.clash():
        yield Finding(FAIL, "onnxruntime", "two builds are installed and overwrite each other's files", told)
    if os.environ.get("ORT_DISABLE_TELEMETRY", "") in ("", "0"):
        yield Finding(
            WARN,
            "onnxruntime",
            "it reports usage to its maker (on by default since 1.29)",
            "unset ORT_DISABLE_TELEMETRY, or set it to 1: Pinnace then switches that off",
        )
    if shutil.which("nvidia-smi") and "CUDAExecutionProvider" not in ort.onnxruntime.get_available_providers():
        yield Finding(WARN, "gpu", "there is an NVIDIA driver, but this onnxruntime has no CUDA", ort.GPU_REMEDY)


def _versions() -> Iterator[Finding]:
    installed = {}
    for package, (use, _) in PACKAGES.items():
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            if use == "core" and package != "onnxruntime":
                yield Finding(FAIL, package, "not installed, and nothing works without it", f"pip install {package}")
    parts = [f"{package} {version} ({PACKAGES[package].use})" for package, version in installed.items()]
    yield Finding(OK, "packages", ", ".join(parts))
    yield from hazards_of(installed)


def hazards_of(installed: Mapping[str, str]) -> Iterator[Finding]:
    """Yield the known hazards of these versions, and those that are older than what Pinnace is tested with."""
    told = set()
    for hazard in HAZARDS:
        version = installed.get(hazard.package)
        if version and _key(hazard.since) <= _key(version) < _key(hazard.before):
            told.add(hazard.package)
            yield Finding(hazard.level, f"{hazard.package} {version}", hazard.text, hazard.remedy)
    for package, (use, least) in PACKAGES.items():
        version = installed.get(package)
        if version and least and package not in told and _key(version) < _key(least):
            level = FAIL if use in ("core", _GPU) else WARN
            remedy = f"pip install '{package}>={least}'"
            yield Finding(level, f"{package} {version}", "older than what Pinnace is tested with", remedy)


def _cache() -> Iterator[Finding]:
    folder = verdicts.cache_folder()
    where = folder or Path("~/.cache/pinnace")
    existing = next((parent for parent in (where, *where.parents) if parent.exists()), None) if folder else None
    try:
        if existing is None:
            raise OSError("there is no home folder")
        with tempfile.TemporaryFile(dir=existing):
            free = shutil.disk_usage(existing).free
    except OSError as error:
        reason = error.strerror or str(error)
        yield Finding(
            WARN,
            "cache",
            f"{where} cannot be written ({reason}): every start hashes the whole bundle again",
            "set XDG_CACHE_HOME to a writable folder",
        )
        return
    level = OK if free >= _LITTLE_DISK else WARN
    yield Finding(
        level, "cache", f"{where} can be written, {free / 1e9:.1f} GB free", "" if level == OK else "free some"
    )


def _key(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3])


LOOKS: Final[tuple[Callable[[], Iterator[Finding]], ...]] = (
    _python, _processor, _cores, _memory, _runtime, _versions, _cache,
)  # fmt: skip
