"""The one place that imports ONNX Runtime: it stays silent towards the network, and two clashing builds are told.

Since version 1.29 its official builds send events to their maker unless ``ORT_DISABLE_TELEMETRY`` is set before the
import, and the thread that does so keeps forked children from ending. Set the variable to 0 to have it.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from pinnace.arrays import Array
from pinnace.errors import MachineError

# Two distributions that install the same module; whichever came last has overwritten the other.
CPU_PACKAGE: Final = "onnxruntime"
GPU_PACKAGE: Final = "onnxruntime-gpu"
GPU_REMEDY: Final = (
    f"  pip uninstall --yes {CPU_PACKAGE} {GPU_PACKAGE}\n  pip install --force-reinstall '{GPU_PACKAGE}[cuda,cudnn]'"
)


def package_versions() -> dict[str, str]:
    """Return the installed ONNX Runtime distributions and their versions.

    Read off the names of the folders beside the module: importing importlib.metadata alone takes 30 ms of every start.
    """
    spec = importlib.util.find_spec(CPU_PACKAGE)
    if spec is None or spec.origin is None:
        return {}
    folders = os.listdir(Path(spec.origin).parents[1])  # noqa: PTH208 - names are enough
    found = {}
    for package in (CPU_PACKAGE, GPU_PACKAGE):
        for folder in folders:
            name, _, rest = folder.partition("-")
            if name == package.replace("-", "_") and rest.endswith(".dist-info"):
                found[package] = rest.removesuffix(".dist-info")
    return found


def clash() -> str | None:
    """Return what to do where both ONNX Runtime distributions are installed, None where all is well."""
    if len(package_versions()) < 2:
        return None
    return (
        f"{CPU_PACKAGE} and {GPU_PACKAGE} are both installed and overwrite each other's files. "
        f"For a GPU:\n{GPU_REMEDY}\n"
        f"For the CPU only:\n  pip uninstall --yes {CPU_PACKAGE} {GPU_PACKAGE}\n"
        f"  pip install --force-reinstall {CPU_PACKAGE}"
    )


os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
_CLASH: Final = clash()
if _CLASH:
    warnings.warn(_CLASH, RuntimeWarning, stacklevel=2)

import onnxruntime  # noqa: E402 - only after the variable is set

if not hasattr(onnxruntime, "InferenceSession"):
    raise MachineError(
        "the package onnxruntime is installed in parts only, as after removing one of two clashing builds.\n"
        f"  pip install --force-reinstall {CPU_PACKAGE}\nor, for a GPU:\n{GPU_REMEDY}"
    )


def version() -> tuple[int, int]:
    """Return the first two numbers of onnxruntime's version."""
    major, minor = onnxruntime.__version__.split(".")[:2]
    return int(major), int(minor)


def plain_session(graph: Path) -> onnxruntime.InferenceSession:
    """Open an ONNX file on the CPU with default settings, saying errors only; for checks, not for serving."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def run_plain(session: onnxruntime.InferenceSession, names: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
    """Run a plain session; fp32 keys and values are rounded where a graph takes fp16 ones."""
    halves = {value.name for value in session.get_inputs() if value.type == "tensor(float16)"}
    made: list[Array] = session.run(list(names), as_halves(feeds, halves))
    return made


def as_halves(feeds: Mapping[str, Array], names: Collection[str]) -> dict[str, Array]:
    """The feeds, those of the given names in half precision."""
    return {name: array.astype(np.float16) if name in names else array for name, array in feeds.items()}


__all__ = [
    "CPU_PACKAGE",
    "GPU_PACKAGE",
    "GPU_REMEDY",
    "as_halves",
    "clash",
    "onnxruntime",
    "package_versions",
    "plain_session",
    "run_plain",
    "version",
]
