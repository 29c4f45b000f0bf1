"""What a profile runs: an encoder's batch, or a decoder's prompt and its single steps, each call timed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import numpy as np

from pinnace.bench.jobs import random_ids
from pinnace.bench.own import ids_feeds
from pinnace.errors import UsageError
from pinnace.runtime.bundles.bundle import Bundle
from pinnace.runtime.engine.cancellation import RunLimit
from pinnace.runtime.engine.native import open_graph, session_options
from pinnace.runtime.engine.session import Session
from pinnace.runtime.generation.decoder import Decoder

RUN: Final = "run"
PROMPT: Final = "prompt"
STEP: Final = "step"
GRAPH_NAME: Final = "optimised.onnx"
_SEED: Final = 7


class Call(NamedTuple):
    """One run of the graph.

    Attributes:
        kind: `RUN`, `PROMPT` or `STEP`.
        seconds: how long it took.
        keys: how many keys a new token of a decoder sees, itself among them, in the mean of the run's; None in an
            encoder, whose tokens see all.
    """

    kind: str
    seconds: float
    keys: float | None


class ProfiledSession(Session):
    """A session that writes down how long each node takes.

    Args:
        bundle: an opened bundle.
        precision: as for `Session`.
        threads: as for `Session`.
        folder: where ONNX Runtime writes its profile and, if asked to, the graph that it really runs.
        keep_graph: write that graph, as `GRAPH_NAME`. Weights that lie in files of their own are not copied.
    """

    def __init__(
        self, bundle: Bundle, precision: str | None, threads: int | None, folder: Path, *, keep_graph: bool
    ) -> None:
        self._given, self._folder, self._keep_graph = bundle, folder, keep_graph
        self._traced: Any = None
        super().__init__(bundle, precision, threads=threads)

    def _open(self) -> Any:
        """Open the graph as any session does, then once more with the profiler on."""
        super()._open()
        if self._traced is None:
            options = session_options(self.threads)
            options.enable_profiling = True
            options.profile_file_prefix = str(self._folder / "profile")
            if self._keep_graph:
                options.optimized_model_filepath = str(self._folder / GRAPH_NAME)
            self._traced = open_graph(self._given.graph_path(self.precision), options, self.device)
        return self._traced


class ProfiledWork(Protocol):
    """Something to run again and again."""

    sizes: dict[str, int]

    def run(self) -> list[Call]:
        """Run it once; every run of the graph is one entry."""


class EncoderWork:
    """One batch of random tokens.

    Args:
        session: an open bundle without a cache.
        batch: rows; None for 1.
        length: tokens of a row; None for 128, or the most that the model takes.

    Raises:
        UsageError: the bundle was exported with other, fixed sizes.
        InputError: more than the model takes.
    """

    def __init__(self, session: Session, batch: int | None, length: int | None) -> None:
        limits = session.bundle.manifest.limits
        asked = {"batch": batch, "sequence": length}
        sizes = {"batch": batch or 1, "sequence": length or min(128, limits.sequence)}
        for name, place in (("batch", 0), ("sequence", -1)):
            fixed = session.inputs[0].shape[place]
            if isinstance(fixed, int):
                if asked[name] not in (None, fixed):
                    raise UsageError(f"this bundle was exported with {name}={fixed}; {name}={asked[name]} cannot run")
                sizes[name] = fixed
        rows = [random_ids(sizes["sequence"], limits.vocabulary, _SEED + row) for row in range(sizes["batch"])]
        self._session, self._inputs = session, ids_feeds(session.bundle.manifest, np.array(rows, np.int64))
        self.sizes = {"batch": sizes["batch"], "length": sizes["sequence"]}

    def run(self) -> list[Call]:
        """Run the batch once."""
        start = time.perf_counter()
        self._session.run(self._inputs)
        return [Call(RUN, time.perf_counter() - start, None)]


class DecoderWork:
    """A random prompt in each row, then single steps.

    Args:
        session: an open bundle with a cache.
        batch: rows; None for 1.
        prompt: tokens of the prompt; None for 128, or half of what the model takes.
        steps: tokens after it; None for 32, or what is left.

    Raises:
        UsageError: prompt and steps are longer than a row may be.
    """

    def __init__(self, session: Session, batch: int | None, prompt: int | None, steps: int | None) -> None:
        self._decoder = decoder = Decoder(session)
        prompt = prompt or min(128, decoder.limit // 2)
        steps = steps or max(1, min(32, decoder.limit - prompt))
        if prompt + steps > decoder.limit:
            raise UsageError(
                f"a prompt of {prompt:,} tokens and {steps:,} steps make {prompt + steps:,} tokens; "
                f"this model takes {decoder.limit:,}"
            )
        self.sizes = {"batch": batch or 1, "prompt": prompt, "decode_steps": steps}
        decoder.check_memory(self.sizes["batch"], prompt + steps, prompt)
        rows = range(self.sizes["batch"])
        self._ids = np.array([random_ids(prompt + steps, decoder.input_vocabulary, _SEED + row) for row in rows])

    def run(self) -> list[Call]:
        """Run the prompt in one piece and each step; making the batch is not timed."""
        rows, prompt = self.sizes["batch"], self.sizes["prompt"]
        batch = self._decoder.batch(rows, self._ids.shape[1])
        calls, ones = [], np.ones(rows, np.int64)
        with RunLimit() as limit:
            start = time.perf_counter()
            batch.run(self._ids[:, :prompt], prompt * ones, limit)
            calls.append(Call(PROMPT, time.perf_counter() - start, (prompt + 1) / 2))
            for place in range(prompt, self._ids.shape[1]):
                start = time.perf_counter()
                batch.step(self._ids[:, place], limit)
                calls.append(Call(STEP, time.perf_counter() - start, place + 1))
        return calls
