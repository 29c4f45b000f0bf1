"""What a pipeline opens at first use: session and tokenizer, both at once; and how its runs share the machine."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Final, NamedTuple

from pinnace.runtime.bundles.bundle import Bundle
from pinnace.runtime.engine.footprint import Footprint
from pinnace.runtime.engine.session import Session
from pinnace.runtime.machine.threads import granted_cores, thread_count
from pinnace.runtime.pipelines.batching import RUN_TOKENS, default_token_budget
from pinnace.runtime.pipelines.feeds import fixed_shape
from pinnace.runtime.tokenization.tokenizer import Tokenizer, load_tokenizer

# Most bytes that one batch's outputs may take: logits over a vocabulary are far larger than the activations.
OUTPUT_BYTES: Final = 64 << 20


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What `Pipeline` was made with, and is made with again where it is unpickled; its docstring says what each is."""

    bundle: str
    precision: str
    device: str
    threads: int | None
    batch_tokens: int | None
    verify: bool
    replicas: int | str
    spin: bool
    memory_limit: int | None


class Shares(NamedTuple):
    """How the runs of a pipeline share the machine.

    Attributes:
        replicas: batches of a call that run at once.
        threads: threads of each run.
        at_once: runs of all calls together that keep the device busy.
    """

    replicas: int
    threads: int
    at_once: int


def share_machine(arguments: Arguments, *, decoder: bool) -> Shares:
    """Work out the shares from what the machine grants now.

    On a GPU two runs are under way, one of which is made ready meanwhile. Where the memory is limited there are no more
    than the limit counts.

    Args:
        arguments: those of `Pipeline`.
        decoder: rows share steps, so that one batch runs at a time.

    Raises:
        UsageError: a senseless number of threads in the environment.
    """
    count, asked = thread_count(arguments.threads), arguments.replicas
    on_gpu = arguments.device != "cpu"
    if on_gpu or decoder:
        asked = 1
    replicas = count if asked == "auto" else int(asked)
    threads = max(1, count // replicas)
    if on_gpu:
        return Shares(replicas, threads, 2)
    if arguments.memory_limit is not None:
        return Shares(replicas, threads, replicas)
    return Shares(replicas, threads, max(replicas, granted_cores() // threads))


@dataclasses.dataclass(frozen=True)
class Parts:
    """What was opened.

    Attributes:
        session: runs the graph.
        tokenizer: makes its inputs.
        token_budget: most tokens of a batch, padding counted.
        run_tokens: what a run costs beside its tokens, in tokens.
        longest: most tokens of a row.
        footprint: what weights and runs take of the memory.
    """

    session: Session
    tokenizer: Tokenizer
    token_budget: int
    run_tokens: int
    longest: int
    footprint: Footprint


def open_parts(bundle: Bundle, arguments: Arguments, threads: int) -> Parts:
    """Open the session and the tokenizer of a bundle.

    Args:
        bundle: the bundle, opened.
        arguments: those of `Pipeline`.
        threads: threads of one run.

    Raises:
        PinnaceError: as `Session` and `load_tokenizer`.
    """
    manifest = bundle.manifest
    # The session is opened in C++ and holds no lock of Python's, so the tokenizer is read meanwhile.
    with _Reading(bundle.path) as reading:
        session = Session(
            bundle, arguments.precision, device=arguments.device, threads=threads,
            spin=arguments.spin, memory_limit=arguments.memory_limit,
        )  # fmt: skip
        tokenizer = reading.result()
    shape = fixed_shape(manifest)
    longest = min(manifest.limits.sequence, tokenizer.model_max_length or manifest.limits.sequence)
    longest = min(longest, shape.tokens or longest)
    config = bundle.config()  # read last, for this also tells whether session and tokenizer are still this bundle's
    budget = arguments.batch_tokens or default_token_budget(int(config.get("hidden_size", 768)))
    numbers = [s.shape[-1] for s in manifest.outputs if len(s.shape) == 3 and isinstance(s.shape[-1], int)]
    budget = min(budget, max(1, OUTPUT_BYTES // (4 * max(numbers, default=1))))
    # A run of fixed shape costs the same whatever it holds, and one on a GPU little more for many rows than for few.
    few = shape.rows or shape.tokens or arguments.device != "cpu"
    footprint = Footprint.of(manifest, session.precision, config)
    return Parts(session, tokenizer, budget, budget if few else RUN_TOKENS, longest, footprint)


class _Reading(threading.Thread):
    """A tokenizer that is being read. (``concurrent.futures`` brings logging and more: 10 ms of every start.)"""

    def __init__(self, folder: Path) -> None:
        super().__init__(name="pinnace-tokenizer")
        self._folder = folder
        self._tokenizer: Tokenizer | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> _Reading:
        self.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.join()

    def run(self) -> None:
        """Read it."""
        try:
            self._tokenizer = load_tokenizer(self._folder)
        except BaseException as error:  # raised again where it is asked for
            self._error = error

    def result(self) -> Tokenizer:
        """Wait for the tokenizer."""
        self.join()
        if self._tokenizer is None:
            raise self._error or RuntimeError("the thread ended early")
        return self._tokenizer
