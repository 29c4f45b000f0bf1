"""Raw tensors by name, numpy in and numpy out: one variant of a bundle, opened in ONNX Runtime."""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from pinnace.errors import DeadlineExceeded, NumericalError, UsageError, unknown_word
from pinnace.runtime import hygiene, threads
from pinnace.runtime.bundle import Bundle
from pinnace.runtime.inputs import Array, check_inputs, example_inputs
from pinnace.runtime.native import deadline, match_manifest, open_graph, run_error
from pinnace.runtime.ort import onnxruntime
from pinnace.runtime.placement import profile_nodes
from pinnace.spec import TensorSpec

# ONNX Runtime keeps the memory of the largest run for ever; one this large gives it back, at no cost beside its length.
_SHRINK_TOKENS: Final = 4096


class Session:
    """One variant of a bundle, ready to run. Threads may share it.

    It pickles by path, and opens again on first use after unpickling or in a forked child.

    Args:
        bundle: an opened bundle.
        precision: which variant; None takes fp32 where present, else the first.
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``: this one, or an error.
        threads: threads for one run; None takes ``PINNACE_THREADS`` or what the machine grants.
        spin: let idle threads wait busily: a little faster alone, and a waste beside other work.
        check_finite: refuse outputs with NaN or infinity.

    Raises:
        UsageError: no such precision or device, or a senseless number of threads.
        MachineError: this machine or this onnxruntime cannot provide the device.
        BundleError: the graph is unsafe, damaged or not the one that the manifest describes.
    """

    def __init__(
        self,
        bundle: Bundle,
        precision: str | None = None,
        *,
        device: str = "cpu",
        threads: int | None = None,
        spin: bool = False,
        check_finite: bool = True,
    ) -> None:
        self._settings: dict[str, Any] = {
            "path": bundle.path,
            "verify": bundle.verified,
            "precision": bundle.precision(precision),
            "device": device,
            "threads": threads,
            "spin": spin,
            "check_finite": check_finite,
        }
        self._begin(bundle)
        self._open()

    @property
    def bundle(self) -> Bundle:
        """The bundle that this session runs."""
        self._open()
        if self._bundle is None:
            raise RuntimeError("an open session has a bundle")
        return self._bundle

    @property
    def precision(self) -> str:
        """The variant that runs, such as ``"fp32"``."""
        return str(self._settings["precision"])

    @property
    def device(self) -> str:
        """The device as it was asked for."""
        return str(self._settings["device"])

    @property
    def threads(self) -> int:
        """Threads of one run."""
        return threads.thread_count(self._settings["threads"])

    @property
    def native(self) -> Any:
        """ONNX Runtime's own session, for callers that bind buffers themselves and check what they feed."""
        return self._open()

    @property
    def memory(self) -> int | None:
        """Bytes that the process may use, None if unknown."""
        self._open()
        return self._memory

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs: names, types, shapes."""
        return self.bundle.manifest.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs: names, types, shapes."""
        return self.bundle.manifest.outputs

    @property
    def numerical_errors(self) -> int:
        """How many runs gave NaN or infinity since the session was opened in this process."""
        return self._numerical_errors

    def run(
        self, inputs: Mapping[str, Any], *, outputs: Sequence[str] | None = None, timeout: float | None = None
    ) -> dict[str, Array]:
        """Run the model once.

        Args:
            inputs: for each name of `inputs`, an array (or nested lists of ints) of that shape. Token ids, masks and
                positions are int64; smaller integers and booleans are widened.
            outputs: the names to compute and return; None for all.
            timeout: most seconds that the run may take.

        Returns:
            Output name to array, in the order of ``outputs``.

        Raises:
            InputError: an input that the model cannot take; nothing was computed.
            UsageError: no such output.
            DeadlineExceeded: the time was over; the session works on.
            NumericalError: an output with NaN or infinity.
            MachineError: not enough memory.
        """
        native = self._open()
        names = self._output_names(outputs)
        ready = check_inputs(self.bundle.manifest, inputs, self._dtypes, self._memory)
        options = onnxruntime.RunOptions()
        if max((array.size for array in ready.values() if array.dtype.kind == "i"), default=0) > _SHRINK_TOKENS:
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        with deadline(options, timeout) as expired:
            try:
                results: list[Array] = native.run(names, ready, options)
            except Exception as error:
                if expired.is_set():
                    raise DeadlineExceeded(
                        f"the run was stopped after {timeout:g} s. Allow more time, or send fewer or shorter rows"
                    ) from None
                raise run_error(error) from None
        found = dict(zip(names, results, strict=True))
        if self._settings["check_finite"]:
            self._check_finite(found)
        return found

    def placement(self) -> dict[str, list[str]]:
        """Return which nodes run on which provider: provider name to node names, in the order in which they run.

        Found by running the smallest input once under ONNX Runtime's profiler, in a session of its own; nodes that
        were folded into constants or fused into others do not appear, the fused ones do.
        """
        self._open()
        options = self._options()
        with profile_nodes(options) as nodes:
            native = open_graph(self.bundle.graph_path(self.precision), options, self.device)
            native.run(None, example_inputs(self.bundle.manifest, self._dtypes))
            nodes.read(native.end_profiling())
        return nodes.by_provider

    def _begin(self, bundle: Bundle | None = None) -> None:
        """Start as a session that is not open yet."""
        self._bundle = bundle
        self._native: Any = None
        self._lock = threading.Lock()
        self._numerical_errors = 0
        self._memory: int | None = None
        self._dtypes: dict[str, str] = {}
        _SESSIONS.add(self)

    def _open(self) -> Any:
        """Return ONNX Runtime's session, opened now if it is not open in this process."""
        if self._native is not None:
            return self._native
        with self._lock:
            if self._native is None:
                bundle = self._bundle or Bundle.open(self._settings["path"], verify=self._settings["verify"])
                if not bundle.verified:
                    graph = bundle.variant(self.precision).graph
                    hygiene.check_graph(bundle.path, graph, bundle.manifest.files)
                native = open_graph(bundle.graph_path(self.precision), self._options(), self.device)
                self._dtypes = match_manifest(bundle, self.precision, native)
                self._memory = threads.memory_limit()
                self._bundle, self._native = bundle, native
        return self._native

    def _options(self) -> onnxruntime.SessionOptions:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if self._settings["spin"] else "0")
        return options

    def _output_names(self, asked: Sequence[str] | None) -> list[str]:
        known = [spec.name for spec in self.outputs]
        if asked is None:
            return known
        if isinstance(asked, str) or not asked:
            raise UsageError(f"outputs must be a list of names, got {asked!r}; known: {', '.join(known)}")
        for name in asked:
            if name not in known:
                raise unknown_word("output", str(name), known)
        return list(dict.fromkeys(asked))

    def _check_finite(self, outputs: Mapping[str, Array]) -> None:
        for name, array in outputs.items():
            if array.dtype.kind != "f":
                continue
            with np.errstate(all="ignore"):
                # One pass without a temporary array; a sum that overflows is looked at closely.
                total = float(array.sum(dtype=np.float32 if array.dtype.itemsize < 4 else None))
            if np.isfinite(total) or np.isfinite(array).all():
                continue
            self._numerical_errors += 1
            nans, infinite = int(np.isnan(array).sum()), int(np.isinf(array).sum())
            row = int(np.argwhere(~np.isfinite(array))[0][0]) if array.ndim else 0
            raise NumericalError(
                f"the output {name!r} holds {nans:,} NaN and {infinite:,} infinite of {array.size:,} numbers, first in "
                f"row {row}. Check the bundle with: pinnace verify {self._settings['path']}"
            )

    def __getstate__(self) -> dict[str, Any]:
        return self._settings

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._settings = state
        self._begin()

    def __repr__(self) -> str:
        return f"Session({str(self._settings['path'])!r}, {self.precision}, {self.device}, threads={self.threads})"


def load(
    path: str | Path,
    precision: str | None = None,
    device: str = "cpu",
    threads: int | None = None,
    verify: bool = True,
) -> Session:
    """Open a bundle for raw tensors.

    Args:
        path: the bundle's folder.
        precision: as for `Session`.
        device: as for `Session`.
        threads: as for `Session`.
        verify: as for `Bundle.open`.

    Raises:
        PinnaceError: as `Bundle.open` and `Session`.
    """
    return Session(Bundle.open(path, verify=verify), precision, device=device, threads=threads)


_SESSIONS: Final[weakref.WeakSet[Session]] = weakref.WeakSet()


def _after_fork() -> None:
    for session in list(_SESSIONS):
        # Freeing the parent's session in a child, even at its exit, would wait for threads that are not there.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(session._native))
        session._native = None
        session._lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
