"""ONNX Runtime's side of a session: open a graph on a device, match it with the manifest, stop it, explain it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from pinnace.errors import BundleError, DeadlineExceeded, MachineError, PinnaceError
from pinnace.runtime import providers
from pinnace.runtime.bundle import Bundle
from pinnace.runtime.ort import onnxruntime

# ONNX Runtime's words for the types that inputs and outputs of a bundle may have.
_ORT_DTYPES: Final[Mapping[str, str]] = {
    "tensor(int64)": "int64", "tensor(int32)": "int32", "tensor(bool)": "bool",
    "tensor(float)": "float32", "tensor(float16)": "float16",
}  # fmt: skip
_FLOATS: Final = ("float32", "float16")


def open_graph(graph: Path, options: onnxruntime.SessionOptions, device: str) -> Any:
    """Open an ONNX file on one device.

    Raises:
        MachineError: the device is not there or does not start, or the memory is too small.
        BundleError: ONNX Runtime refuses the graph.
    """
    chosen = providers.providers_for(device)
    try:
        # By default ONNX Runtime would go on with the CPU when the asked provider fails.
        native = onnxruntime.InferenceSession(str(graph), options, providers=chosen, enable_fallback=0)
    except Exception as error:
        if "allocate" in str(error) or isinstance(error, MemoryError):
            raise MachineError(f"not enough memory to open {graph.name}: {_first_line(error)}") from None
        if chosen[0][0] != providers.CPU and _is_device_error(str(error)):
            raise MachineError(f"device {device!r} could not be used: {_first_line(error)}") from None
        raise BundleError(f"ONNX Runtime cannot open {graph.name} of {graph.parent}: {_first_line(error)}") from None
    providers.check_provider(device, native.get_providers())
    return native


def _is_device_error(text: str) -> bool:
    """Whether an error text of ONNX Runtime is about the GPU and not about the graph."""
    return any(word in text.upper() for word in ("CUDA", "CUDNN", "CUBLAS"))


def match_manifest(bundle: Bundle, precision: str, native: Any) -> dict[str, str]:
    """Check that the graph has the manifest's inputs and outputs, and return the types of its inputs.

    Float types may differ: one manifest speaks for the fp32 and the fp16 variant.

    Raises:
        BundleError: a missing, additional or differently typed input or output, by name.
    """
    graph = bundle.variant(precision).graph
    dtypes: dict[str, str] = {}
    for kind, specs, values in (
        ("input", bundle.manifest.inputs, native.get_inputs()),
        ("output", bundle.manifest.outputs, native.get_outputs()),
    ):
        found = {value.name: _ORT_DTYPES.get(value.type, value.type) for value in values}
        named = {spec.name: spec.dtype for spec in specs}
        for name in sorted(set(found) ^ set(named)):
            has, lacks = (graph, "manifest.json") if name in found else ("manifest.json", graph)
            raise BundleError(f"{bundle.path.name}: {has} has the {kind} {name!r}, {lacks} has not. Export it again")
        for name, dtype in named.items():
            if found[name] not in _ORT_DTYPES.values() or not (
                found[name] == dtype or (found[name] in _FLOATS and dtype in _FLOATS)
            ):
                raise BundleError(
                    f"{graph}: the {kind} {name!r} has the type {found[name]}, manifest.json says {dtype}"
                )
        if kind == "input":
            dtypes = found
    return dtypes


@contextmanager
def deadline(options: Any, timeout: float | None) -> Iterator[threading.Event]:
    """Stop a run when its time is over; the event tells that it was.

    Args:
        options: ``onnxruntime.RunOptions`` of the run inside the block.
        timeout: seconds; None for no limit.

    Raises:
        DeadlineExceeded: the time is over already.
    """
    expired = threading.Event()
    if timeout is None:
        yield expired
        return
    if not timeout > 0:
        raise DeadlineExceeded(f"the time limit of {timeout:g} s was over before the run began")

    def stop() -> None:
        expired.set()
        options.terminate = True

    timer = threading.Timer(min(timeout, threading.TIMEOUT_MAX), stop)
    timer.daemon = True
    timer.start()
    try:
        yield expired
    finally:
        timer.cancel()


def run_error(error: Exception) -> PinnaceError:
    """Turn what ONNX Runtime raised during a run into an error of ours."""
    text = str(error)
    if isinstance(error, MemoryError) or "allocate" in text or "bad_alloc" in text:
        return MachineError(f"not enough memory for this run: {_first_line(error)}. Send fewer or shorter rows")
    return BundleError(f"the graph failed on these inputs, though they fit the manifest: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]
