"""ONNX Runtime's side of a session: open a graph on a device, stop it, explain it."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

from pinnace.arrays import Array
from pinnace.errors import BundleError, DeadlineExceeded, MachineError, PinnaceError, UsageError
from pinnace.runtime.bundles import integrity
from pinnace.runtime.bundles.bundle import Bundle
from pinnace.runtime.engine import providers, shared_threads
from pinnace.runtime.engine.cancellation import Cancellation
from pinnace.runtime.engine.ort import onnxruntime, version
from pinnace.runtime.machine import large_pages

# ONNX Runtime keeps the memory of the largest run for ever; one this large gives it back, at no cost beside its length.
_SHRINK_TOKENS: Final = 4096
# Microseconds for which a thread waits busily for the next operator before it sleeps. To wake one takes about as long:
# on two threads 4 % (rows of 128 tokens) to 15 % (of 16) more rows a second for the same processor time, while longer
# waits take from the work beside (benchmarks/waiting.py). 0: it sleeps at once.
WAIT_US = 20
_BOUNDED_WAIT: Final = (1, 26)  # the onnxruntime that can bound it; before, a thread waits for milliseconds


class _Shared:
    """Sessions that are open in this process, by what they were opened from and how."""

    lock = threading.Lock()
    opened: ClassVar[weakref.WeakValueDictionary[Hashable, Any]] = weakref.WeakValueDictionary()


def session_options(threads: int, *, spin: bool = False) -> onnxruntime.SessionOptions:
    """Return the settings that all sessions have.

    Args:
        threads: threads of one run; a shared pool has its own number.
        spin: let idle threads wait busily for milliseconds, not for microseconds.
    """
    options = onnxruntime.SessionOptions()
    if shared_threads.shared_count() is None:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
    else:
        options.use_per_session_threads = False
    options.log_severity_level = 3  # errors
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    # A pattern would be kept for every shape that ever came, and grow with them: 13 % over 1,000 lengths, for no speed.
    options.enable_mem_pattern = False
    wait = WAIT_US if version() >= _BOUNDED_WAIT else 0
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin or wait else "0")
    if wait and not spin:
        options.add_session_config_entry("session.intra_op.spin_duration_us", str(wait))
    return options


def open_shared(bundle: Bundle, precision: str, device: str, threads: int, *, spin: bool = False) -> Any:
    """Open a variant, or return the session that another caller in this process has open with the same settings.

    Sessions hold a packed copy of the weights; the same files with the same settings need only one. A file that was
    changed or replaced since is another file.

    Raises:
        MachineError: as `open_graph`, or a fork of a process with shared threads.
        BundleError: as `open_graph`, or a file that is missing or unsafe.
    """
    variant = bundle.variant(precision)
    files = tuple(integrity.identify(bundle.path, name) for name in (variant.graph, *variant.weights))
    key = (str(bundle.path), variant.graph, files, device, threads, spin)
    with _Shared.lock:
        native = _Shared.opened.get(key)
        if native is None:
            native = open_graph(bundle.graph_path(precision), session_options(threads, spin=spin), device)
            _Shared.opened[key] = native
    return native


def _after_fork() -> None:
    _Shared.lock = threading.Lock()
    _Shared.opened = weakref.WeakValueDictionary()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def open_graph(graph: Path, options: onnxruntime.SessionOptions, device: str) -> Any:
    """Open an ONNX file on one device.

    Raises:
        MachineError: the device is not there or does not start, the memory is too small, this onnxruntime lacks one of
            the graph's operators, or Python does not read file names as UTF-8.
        UsageError: the path is not UTF-8.
        BundleError: ONNX Runtime refuses the graph.
    """
    _check_path(graph)
    chosen = providers.providers_for(device)
    providers.record_placement(device, options)
    shared_threads.opening()
    try:
        # By default ONNX Runtime would go on with the CPU when the asked provider fails.
        with quiet(device), large_pages.for_new_memory() if device == "cpu" else contextlib.nullcontext():
            native = onnxruntime.InferenceSession(str(graph), options, providers=chosen, enable_fallback=0)
    except Exception as error:
        if "allocate" in str(error) or isinstance(error, MemoryError):
            raise MachineError(f"not enough memory to open {graph.name}: {_first_line(error)}") from None
        if "NOT_IMPLEMENTED" in str(error):
            raise MachineError(
                f"onnxruntime {onnxruntime.__version__} cannot run {graph.name} of {graph.parent}: "
                f"{_first_line(error)}. Install a newer one, or export for a lower --opset"
            ) from None
        if chosen[0][0] != providers.CPU and _is_device_error(str(error)):
            raise MachineError(f"device {device!r} could not be used: {_first_line(error)}") from None
        raise BundleError(f"ONNX Runtime cannot open {graph.name} of {graph.parent}: {_first_line(error)}") from None
    providers.check_provider(device, native.get_providers())
    providers.check_placement(device, graph.name, native)
    return native


def _check_path(graph: Path) -> None:
    """ONNX Runtime takes names of files as UTF-8; Python holds a byte that is none as half of a surrogate pair."""
    name = str(graph)
    shown = name.encode("utf-8", "replace").decode()
    if shown == name:
        return
    try:
        os.fsencode(name).decode("utf-8")
    except UnicodeError:
        raise UsageError(f"the path {shown} is not UTF-8, and ONNX Runtime opens no other; rename the folder") from None
    raise MachineError(
        f"Python does not read the path {shown} as UTF-8, and ONNX Runtime opens no other. Set PYTHONUTF8=1"
    )


@contextlib.contextmanager
def quiet(device: str) -> Iterator[None]:
    """Opening on a GPU warns, each time, that no plugin offers it; errors are still told."""
    if device == "cpu":
        yield
        return
    onnxruntime.set_default_logger_severity(3)
    try:
        yield
    finally:
        onnxruntime.set_default_logger_severity(2)  # ONNX Runtime's own setting: warnings


def _is_device_error(text: str) -> bool:
    """Whether an error text of ONNX Runtime is about the GPU and not about the graph."""
    return any(word in text.upper() for word in ("CUDA", "CUDNN", "CUBLAS"))


@contextlib.contextmanager
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
        raise DeadlineExceeded("the time limit was over before the run began. Allow more time, or send fewer requests")

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


def run_graph(
    native: Any, names: list[str], feeds: Mapping[str, Array], timeout: float | None, cancellation: Cancellation | None
) -> dict[str, Array]:
    """Run a graph once.

    Args:
        native: ONNX Runtime's session.
        names: the outputs to compute.
        feeds: the inputs, checked.
        timeout: most seconds; None for no limit.
        cancellation: a switch to stop it from another thread.

    Raises:
        DeadlineExceeded: the time was over, or it was cancelled.
        MachineError: not enough memory.
        BundleError: the graph failed.
    """
    options = onnxruntime.RunOptions()
    if max((array.size for array in feeds.values() if array.dtype.kind == "i"), default=0) > _SHRINK_TOKENS:
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    watching = contextlib.nullcontext() if cancellation is None else cancellation.watching(options)
    with deadline(options, timeout) as expired, watching:
        if cancellation is not None:
            cancellation.check()
        try:
            results: list[Array] = native.run(names, feeds, options)
        except Exception as error:
            if cancellation is not None:
                cancellation.check()
            if expired.is_set():
                raise DeadlineExceeded(
                    f"the run was stopped after {timeout:.3g} s. Allow more time, or send fewer or shorter rows"
                ) from None
            raise run_error(error) from None
    return dict(zip(names, results, strict=True))


def run_error(error: Exception) -> PinnaceError:
    """Turn what ONNX Runtime raised during a run into an error of ours."""
    text = str(error)
    if isinstance(error, MemoryError) or "allocate" in text or "bad_alloc" in text:
        return MachineError(f"not enough memory for this run: {_first_line(error)}. Send fewer or shorter rows")
    return BundleError(f"the graph failed on these inputs, though they fit the manifest: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]
