"""The device that was asked for, or an error that says what is there and what to install. Never a silent other one."""

from __future__ import annotations

import contextlib
import re
import sys
import types
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from pinnace.errors import MachineError, UsageError, unknown_word
from pinnace.runtime.engine.ort import GPU_REMEDY, clash, onnxruntime

CPU: Final = "CPUExecutionProvider"
# Device word -> ONNX Runtime's name of the provider.
PROVIDERS: Final[Mapping[str, str]] = types.MappingProxyType({"cpu": CPU, "cuda": "CUDAExecutionProvider"})

# What others call the same device; the nearest word in letters to "gpu" is "cpu".
_NAMES_OF_CUDA: Final = ("gpu", "nvidia", "cuda")

# The operators that do a model's work. What a device has no kernel for goes to the CPU; nodes that compute shapes may.
WORK: Final = frozenset(
    {"MatMul", "FusedMatMul", "Gemm", "MatMulNBits", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"}
    | {"Attention", "MultiHeadAttention", "GroupQueryAttention", "LayerNormalization", "RMSNormalization"}
    | {"SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "EmbedLayerNormalization", "RotaryEmbedding"}
)
_RECORD: Final = "session.record_ep_graph_assignment_info"

Provider = tuple[str, dict[str, Any]]


def parse_device(device: str) -> tuple[str, int]:
    """Split ``"cpu"``, ``"cuda"`` or ``"cuda:1"`` into its word and number.

    Raises:
        UsageError: no such device.
    """
    match = re.fullmatch(r"(\w+)(?::(\d{1,4}))?", device) if isinstance(device, str) else None
    if match is None or match[1] not in PROVIDERS:
        raise _unknown(str(device))
    if match[1] == "cpu" and match[2]:
        raise UsageError(f"unknown device {device!r}: the CPU has no number. Use device='cpu' and threads=N")
    return match[1], int(match[2] or 0)


def _unknown(device: str) -> UsageError:
    known = [*PROVIDERS, "cuda:N"]
    if device.lower().partition(":")[0] in _NAMES_OF_CUDA:
        return UsageError(f"unknown device {device!r}. Did you mean 'cuda'?\n  known: {', '.join(known)}")
    return unknown_word("device", device, known)


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
    if not hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info"):
        raise MachineError(
            f"onnxruntime {onnxruntime.__version__} does not say which nodes run on {device!r} and which on the CPU. "
            f"Install 1.24 or newer:\n{GPU_REMEDY}\nor use device='cpu'"
        )
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


def record_placement(device: str, options: onnxruntime.SessionOptions) -> None:
    """Let a session that is opened with these options remember which provider got which node."""
    if parse_device(device)[0] != "cpu":
        options.add_session_config_entry(_RECORD, "1")


def check_placement(device: str, graph: str, native: Any) -> None:
    """Check that a device does the work of a graph, and not the CPU beside it.

    Args:
        device: as the caller wrote it.
        graph: name of the file, for the message.
        native: ONNX Runtime's session, opened with `record_placement`.

    Raises:
        MachineError: nodes that do the work have no kernel on the device.
    """
    if parse_device(device)[0] == "cpu":
        return
    parts = native.get_provider_graph_assignment_info()
    on_cpu = [node.op_type for part in parts if part.ep_name == CPU for node in part.get_nodes()]
    left = Counter(kind for kind in on_cpu if kind in WORK)
    if left:
        nodes = ", ".join(f"{count} {kind}" for kind, count in sorted(left.items()))
        raise MachineError(
            f"device {device!r} was asked for, but ONNX Runtime has no kernel there for these nodes of {graph} and "
            f"would run them on the CPU: {nodes}. Nothing was run. Take precision='fp16' (pinnace export MODEL "
            "--precision fp16 makes it) or a bundle of --target onnx; int8 and int4 are for device='cpu'"
        )


def _not_offered(device: str, provider: str) -> str:
    offered = ", ".join(onnxruntime.get_available_providers())
    text = f"device {device!r} needs {provider}; this onnxruntime {onnxruntime.__version__} offers {offered}. "
    return text + (clash() or f"Install the build for GPUs:\n{GPU_REMEDY}\nor use device='cpu'")
