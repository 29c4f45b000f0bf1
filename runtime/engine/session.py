"""Raw tensors by name, numpy in and numpy out: one variant of a bundle, opened in ONNX Runtime."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import threading
import time
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from pinnace.arrays import Array
from pinnace.errors import UsageError, unknown_word
from pinnace.runtime.arguments import check_count, check_seconds
from pinnace.runtime.bundles.bundle import Bundle
from pinnace.runtime.bundles.needs import check_needs
from pinnace.runtime.engine import shared_threads
from pinnace.runtime.engine.cancellation import Cancellation, check_cancellation
from pinnace.runtime.engine.finite import check_finite
from pinnace.runtime.engine.footprint import Footprint, check_memory_limit
from pinnace.runtime.engine.inputs import check_inputs, example_inputs
from pinnace.runtime.engine.matching import match_manifest
from pinnace.runtime.engine.native import open_graph, open_shared, run_error, run_graph, session_options
from pinnace.runtime.machine import cores, threads
from pinnace.runtime.machine.forks import renew_in_children
from pinnace.spec import TensorSpec


@dataclasses.dataclass(frozen=True)
class _Settings:
    """What a session is opened with, again in a forked child or after unpickling."""

    path: Path
    verify: bool
    precision: str
    device: str
    threads: int | None
    spin: bool
    check_finite: bool
    memory_limit: int | None


class Session:
    """One variant of a bundle, ready to run. Threads may share it.

    Sessions of the same files with the same settings share their weights. What `run` computes waits for free cores, up
    to a second, whichever session of the process has them; the steps of a generation wait for none. A session pickles
    by path, and opens again on first use after unpickling or in a forked child.

    Args:
        bundle: an opened bundle.
        precision: which variant; None takes fp32 where present, else the first; ``"auto"`` the best verified one here.
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``: this one, or an error.
        threads: threads for one run; None takes ``PINNACE_THREADS`` or what the machine grants.
        spin: let idle threads wait busily: a little faster alone, and a waste beside other work.
        check_finite: refuse outputs with NaN or infinity.
        memory_limit: most bytes that weights and one run may take; a run that needs more is refused.

    Raises:
        UsageError: no such precision or device, or a senseless number of threads.
        MachineError: this machine or this onnxruntime cannot provide the device, the processor lacks what the variant
            needs, or the weights exceed the limit.
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
        memory_limit: int | None = None,
    ) -> None:
        check_count("threads", threads)
        check_memory_limit(memory_limit)
        self._settings = _Settings(
            bundle.path, bundle.verified, bundle.precision(precision, device), device,
            threads, spin, check_finite, memory_limit,
        )  # fmt: skip
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
        return self._settings.precision

    @property
    def device(self) -> str:
        """The device as it was asked for."""
        return self._settings.device

    @property
    def threads(self) -> int:
        """Threads of one run."""
        return shared_threads.shared_count() or threads.thread_count(self._settings.threads)

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
    def memory_limit(self) -> int | None:
        """Most bytes that weights and runs may take, None for no limit."""
        return self._settings.memory_limit

    @property
    def footprint(self) -> Footprint:
        """What weights and runs take of the memory; nothing is known of it without a limit."""
        self._open()
        return self._footprint

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs: names, types, shapes; an fp16 decoder takes its keys and values as float16."""
        return self._as_typed(self.bundle.manifest.inputs)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs: names, types, shapes."""
        return self._as_typed(self.bundle.manifest.outputs)

    def run(
        self,
        inputs: Mapping[str, Any],
        *,
        outputs: Sequence[str] | None = None,
        timeout: float | None = None,
        cancellation: Cancellation | None = None,
    ) -> dict[str, Array]:
        """Run the model once.

        Args:
            inputs: for each name of `inputs`, an array (or nested lists of ints) of that shape. Token ids, masks and
                positions are int64; smaller integers and booleans are widened.
            outputs: the names to compute and return; None for all.
            timeout: most seconds that the run may take, the wait for free cores included.
            cancellation: a switch to stop the run from another thread.

        Returns:
            Output name to array, in the order of ``outputs``.

        Raises:
            InputError: an input that the model cannot take; nothing was computed.
            UsageError: no such output, or a timeout or switch that is none.
            DeadlineExceeded: the time was over, or the run was cancelled; the session works on.
            NumericalError: an output with NaN or infinity.
            MachineError: not enough memory; the session works on.
        """
        if not (isinstance(timeout, int | float) and timeout <= 0):  # a caller's time may be over, which is no mistake
            check_seconds("timeout", timeout)
        check_cancellation(cancellation)
        native = self._open()
        names = self._output_names(outputs)
        begun = time.monotonic()
        try:
            ready = check_inputs(self.bundle.manifest, inputs, self._dtypes, self._memory)
            self._check_limit(ready)
            with self._cores(timeout):
                left = None if timeout is None else timeout - (time.monotonic() - begun)
                found = run_graph(native, names, ready, left, cancellation)
            if self._settings.check_finite:
                check_finite(found, self._settings.path)
        except MemoryError as error:
            raise run_error(error) from None
        return found

    def _cores(self, timeout: float | None) -> contextlib.AbstractContextManager[None]:
        """Wait for free cores; a GPU has its own queue."""
        if self.device != "cpu":
            return contextlib.nullcontext()
        patience = cores.PATIENCE if timeout is None else max(0.0, min(timeout, cores.PATIENCE))
        return cores.queue().lent(self._count, patience)

    def _check_limit(self, ready: Mapping[str, Array]) -> None:
        limit = self.memory_limit
        if limit is not None and (ids := ready.get("input_ids")) is not None:
            self._footprint.check_run(ids.size // ids.shape[-1], ids.shape[-1], limit)

    def placement(self) -> dict[str, list[str]]:
        """Return which nodes run on which provider: provider name to node names, in the order in which they run.

        Found by running the smallest input once under ONNX Runtime's profiler, in a session of its own; nodes that
        were folded into constants or fused into others do not appear, the fused ones do.
        """
        from pinnace.runtime.engine.placement import profile_nodes

        self._open()
        options = session_options(self.threads)
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
        self._count = 1
        self._memory: int | None = None
        self._footprint = Footprint(0, 0, 0)
        self._dtypes: dict[str, str] = {}
        renew_in_children(self)

    def renew(self) -> None:
        """Forget ONNX Runtime's session, as in a forked child, whose next run opens another."""
        # Freeing the parent's session in a child, even at its exit, would wait for threads that are not there.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._native))
        self._native = None
        self._lock = threading.Lock()

    def _open(self) -> Any:
        """Return ONNX Runtime's session, opened now if it is not open in this process."""
        if self._native is not None:
            return self._native
        with self._lock:
            if self._native is None:
                bundle = self._bundle or Bundle.open(self._settings.path, verify=self._settings.verify)
                check_needs(self.precision, bundle.variant(self.precision), bundle.path.name)
                if not bundle.verified:
                    from pinnace.runtime.bundles import hygiene

                    graph = bundle.variant(self.precision).graph
                    hygiene.check_graph(bundle.path, graph, bundle.manifest.files)
                if (limit := self.memory_limit) is not None:
                    self._footprint = Footprint.of(bundle.manifest, self.precision, bundle.config())
                    self._footprint.check_weights(limit, bundle.path.name)
                self._count = self.threads
                native = open_shared(bundle, self.precision, self.device, self._count, spin=self._settings.spin)
                self._dtypes = match_manifest(bundle, self.precision, native)
                bundle.check_same()
                self._memory = threads.memory_limit()
                self._bundle, self._native = bundle, native
        return self._native

    def _as_typed(self, specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
        return tuple(dataclasses.replace(spec, dtype=self._dtypes[spec.name]) for spec in specs)

    def _output_names(self, asked: Sequence[str] | None) -> list[str]:
        known = [spec.name for spec in self.bundle.manifest.outputs]  # types need not be looked up for each run
        if asked is None:
            return known
        if isinstance(asked, str) or not isinstance(asked, Sequence | Set) or not asked:
            raise UsageError(f"outputs must be a list of names, got {asked!r}; known: {', '.join(known)}")
        for name in asked:
            if name not in known:
                raise unknown_word("output", str(name), known)
        return list(dict.fromkeys(asked))

    def __getstate__(self) -> _Settings:
        return self._settings

    def __setstate__(self, state: _Settings) -> None:
        self._settings = state
        self._begin()

    def __repr__(self) -> str:
        return f"Session({str(self._settings.path)!r}, {self.precision}, {self.device}, threads={self.threads})"


def load(
    path: str | Path,
    precision: str | None = None,
    device: str = "cpu",
    threads: int | None = None,
    verify: bool = True,
    spin: bool = False,
    memory_limit: int | None = None,
) -> Session:
    """Open a bundle for raw tensors.

    Args:
        path: the bundle's folder.
        precision: as for `Session`.
        device: as for `Session`.
        threads: as for `Session`.
        verify: as for `Bundle.open`.
        spin: as for `Session`.
        memory_limit: as for `Session`, in bytes.

    Raises:
        PinnaceError: as `Bundle.open` and `Session`.
    """
    return Session(
        Bundle.open(path, verify=verify), precision, device=device, threads=threads, spin=spin,
        memory_limit=memory_limit,
    )  # fmt: skip
