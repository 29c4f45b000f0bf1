"""The device that was asked for, or an error that says what is there and what to install. Never a silent other one."""

from __future__ import annotations

import contextlib
import re
import sys
import types
from collections.abc import Mapping
from typing import Any, Final

from pinnace.errors import MachineError, UsageError, unknown_word
from pinnace.runtime.ort import GPU_REMEDY, clash, onnxruntime

CPU: Final = "CPUExecutionProvider"
# Device word -> ONNX Runtime's name of the provider.
PROVIDERS: Final[Mapping[str, str]] = types.MappingProxyType({"cpu": CPU, "cuda": "CUDAExecutionProvider"})

Provider = tuple[str, dict[str, Any]]


def parse_device(device: str) -> tuple[str, int]:
    """Split ``"cpu"``, ``"cuda"`` or ``"cuda:1"`` into its word and number.

    Raises:
        UsageError: no such device.
    """
    match = re.fullmatch(r"(\w+)(?::(\d{1,4}))?", device) if isinstance(device, str) else None
    if match is None or match[1] not in PROVIDERS:
        raise unknown_word("device", str(device), [*PROVIDERS, "cuda:1"])
    if match[1] == "cpu" and match[2]:
        raise UsageError(f"unknown device {device!r}: the CPU has no number. Use device='cpu' and threads=N")
    return match[1], int(match[2] or 0)


def providers_for(device: str) -> list[Provider]:
    """Return the providers to open a session with, the asked one first.

    A GPU is followed by the CPU, to which ONNX Runtime gives nodes that only compute shapes; `Session.placement` tells.

    Raises:
        UsageError: no such device.
        MachineError: this onnxruntime has no provider for it.
    """
    word, number = parse_device(device)
    provider = PROVIDERS[word]
    if provider not in onnxruntime.get_available_providers():
        raise MachineError(_not_offered(device, provider))
    if provider == CPU:
        return [(CPU, {})]
    if hasattr(onnxruntime, "preload_dlls"):
        # It reports on stdout, which belongs to results.
        with contextlib.redirect_stdout(sys.stderr):
            onnxruntime.preload_dlls()
    # TF32 would round fp32 products to 10 bits, a hundred times over the tolerance of fp32.
    return [(provider, {"device_id": str(number), "use_tf32": "0"}), (CPU, {})]


def check_provider(device: str, active: list[str]) -> None:
    """Check that a session runs on the device that was asked for.

    Args:
        device: as the caller wrote it.
        active: the providers of the opened session.

    Raises:
        MachineError: ONNX Runtime left the provider out, for instance because a CUDA library is missing.
    """
    provider = PROVIDERS[parse_device(device)[0]]
    if provider not in active:
        raise MachineError(
            f"device {device!r} was asked for, but {provider} could not start (ONNX Runtime says why above); "
            f"only {', '.join(active)} did. Nothing was run. Check the driver with nvidia-smi, then the libraries:\n"
            f"{GPU_REMEDY}\nor use device='cpu'"
        )


def _not_offered(device: str, provider: str) -> str:
    offered = ", ".join(onnxruntime.get_available_providers())
    text = f"device {device!r} needs {provider}; this onnxruntime {onnxruntime.__version__} offers {offered}. "
    return text + (clash() or f"Install the build for GPUs:\n{GPU_REMEDY}\nor use device='cpu'")
