"""What all pipelines share: opening by path, one input or many, call options, batches by length."""

from __future__ import annotations

import abc
import dataclasses
import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar, Final, Generic

from pinnace.errors import InputError, MachineError, UsageError, unknown_word
from pinnace.runtime.arguments import check_count, check_replicas
from pinnace.runtime.bundles.bundle import Bundle
from pinnace.runtime.engine.footprint import check_memory_limit
from pinnace.runtime.engine.providers import providers_for
from pinnace.runtime.engine.session import Session
from pinnace.runtime.machine import workers
from pinnace.runtime.machine.forks import renew_in_children
from pinnace.runtime.pipelines.batching import plan_batches
from pinnace.runtime.pipelines.call_options import CallOptions, Options
from pinnace.runtime.pipelines.feeds import fixed_shape, make_feeds
from pinnace.runtime.pipelines.items import Pair
from pinnace.runtime.pipelines.opening import Arguments, Parts, open_parts, share_machine
from pinnace.runtime.pipelines.pieces import pieces
from pinnace.runtime.pipelines.room import Room
from pinnace.runtime.pipelines.shared_runs import Outputs, SharedRuns
from pinnace.runtime.pipelines.token_rows import TokenRow, token_rows
from pinnace.runtime.tokenization.tokenizer import BatchEncoding, Tokenizer
from pinnace.spec import Manifest

# Inputs that are tokenized and sorted together: many are answered in pieces of so many inputs and so many characters,
# since a token's record takes hundreds of bytes until its piece is done.
CHUNK: Final = 1024
CHUNK_CHARACTERS: Final = 1 << 20
# Smaller for a stream, whose answers somebody waits for or keeps: half the inputs cost about 1 % more padding and runs,
# a quarter 2 to 4 %. Many replicas need more, so that none waits at the end of a piece.
STREAM_CHUNK: Final = 512
STREAM_CHARACTERS: Final = 1 << 18
_ROWS_PER_REPLICA: Final = 32
__all__ = ["CallOptions", "Options", "Outputs", "Pipeline"]


class Pipeline(abc.ABC, Generic[Options]):
    """Text in, the task's answers out.

    One input gives one result, a list a list, and any other iterable an iterator that reads its source in pieces.
    A pipeline may be used by many threads at once. It pickles as its arguments and opens its session at first use,
    so process pools can carry it.

    Args:
        bundle: folder of a bundle, or an opened bundle.
        precision: the variant to run; None takes the bundle's default, ``"auto"`` the best verified one here.
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
        threads: threads of all runs together; None takes what the machine grants this process.
        batch_tokens: most tokens in a batch, padding counted; None takes what fits the processor's cache.
        verify: check the bundle's files against their hashes.
        replicas: batches of a call that run at once, each on its share of the threads: more answers a second where
            there are many inputs, a slower one where there is one. ``"auto"`` takes as many as threads.
        spin: let idle threads wait busily: a little faster alone, and a waste beside other work.
        memory_limit: most bytes that weights and runs may take: batches become smaller, and what cannot fit is refused.

    Raises:
        BundleError: no bundle, or a damaged one.
        UsageError: the bundle is for another task, or has no such precision.
        MachineError: this machine or this onnxruntime cannot provide the device, or the weights exceed the limit.
    """

    task: ClassVar[str]
    bundle_tasks: ClassVar[tuple[str, ...]]
    output_names: ClassVar[tuple[str, ...]] = ("logits",)
    options_type: ClassVar[type[CallOptions]]

    def __init__(
        self,
        bundle: str | Path | Bundle,
        precision: str | None = None,
        device: str = "cpu",
        threads: int | None = None,
        batch_tokens: int | None = None,
        verify: bool = True,
        replicas: int | str = 1,
        spin: bool = False,
        memory_limit: int | None = None,
    ) -> None:
        check_count("threads", threads)
        check_count("batch_tokens", batch_tokens)
        check_replicas(replicas)
        check_memory_limit(memory_limit)
        providers_for(device)
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle, verify=verify)
        if opened.manifest.task not in self.bundle_tasks:
            raise UsageError(
                f"the bundle {opened.path.name} is for {opened.manifest.task} ({opened.manifest.head}), "
                f"and {self.task} needs one for {' or '.join(self.bundle_tasks)}.\n"
                f"  Use pinnace.pipeline({opened.manifest.task!r}, ...), or export a checkpoint with --task {self.task}"
            )
        self._arguments = Arguments(
            str(opened.path), opened.precision(precision, device), device, threads,
            batch_tokens, verify, replicas, spin, memory_limit,
        )  # fmt: skip
        self._bundle = opened
        self._opened: Parts | None = None
        # The machine is asked once: each look reads files, and runs, their room and the session must not drift apart.
        self._shares = share_machine(self._arguments, decoder=opened.manifest.cache is not None)
        self.shared_runs = SharedRuns(self._shares.at_once)
        self.renew()
        renew_in_children(self)

    def renew(self) -> None:
        """Make the locks anew, as in a forked child."""
        self._lock = threading.Lock()
        self._room = Room(self.replicas)

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """Answer one input, a list of inputs, or lazily any other iterable of inputs.

        Raises:
            InputError: an input of the wrong type; the text names its place.
            UsageError: an unknown or unfit option.
        """
        if len(inputs) != 1:
            raise InputError(f"{self.task} got {len(inputs)} inputs by position, expected one; put many into a list")
        return self._route(inputs[0], self._read_options(options))

    @property
    def manifest(self) -> Manifest:
        """All facts of the bundle."""
        return self._bundle.manifest

    @property
    def path(self) -> Path:
        """The bundle's folder."""
        return Path(self._arguments.bundle)

    @property
    def session(self) -> Session:
        """The session, opened at first use."""
        return self._open().session

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, opened at first use."""
        return self._open().tokenizer

    @property
    def replicas(self) -> int:
        """How many batches run at once: 1 on a GPU, which is one machine, and for a decoder, whose rows share steps."""
        return self._shares.replicas

    @property
    def longest(self) -> int:
        """Most tokens of one row: what the tokenizer, the model and a fixed-shape graph all take."""
        return self._open().longest

    @abc.abstractmethod
    def check_input(self, item: Any, place: str) -> Any:
        """Return the input in the form that `answer` takes.

        Raises:
            InputError: a wrong type; ``place`` says which input it is.
        """

    @abc.abstractmethod
    def answer(self, items: list[Any], options: Options) -> list[Any]:
        """Return the result of each checked input, in order."""

    def is_one(self, inputs: Any, options: Options) -> bool:
        """Whether ``inputs`` is one input rather than many."""
        return isinstance(inputs, str | bytes | Mapping) or not isinstance(inputs, Iterable)

    def piece_size(self, options: Options) -> int:
        """Most inputs of a stream that are answered together; their answers come when all of them are done."""
        return min(CHUNK, max(STREAM_CHUNK, _ROWS_PER_REPLICA * self.replicas))

    def encode(
        self, texts: Any, pairs: Any = None, *, tokenizer: Tokenizer | None = None, **arguments: Any
    ) -> BatchEncoding:
        """Tokenize, by default as the pipeline does, without padding and cut to the longest row."""
        arguments = {"truncation": True, "max_length": self.longest, **arguments}
        return (tokenizer or self.tokenizer)(
            texts, pairs, padding=False, return_attention_mask=False, return_token_type_ids=False, **arguments
        )

    def encode_pairs(
        self, pairs: Iterable[Pair], *, between: Callable[[], object] = lambda: None, **arguments: Any
    ) -> list[TokenRow]:
        """Tokenize texts and pairs of texts, mixed, as `encode` does; one row for each.

        Args:
            pairs: the texts, each with its partner or None; read as they are needed.
            between: called before each slice of them, such as ``options.seconds_left``; what it raises ends the work.
            arguments: the tokenizer's.
        """
        return token_rows(lambda texts, partners: self.encode(texts, partners, **arguments), pairs, between)

    def batches(self, encodings: Sequence[Any], options: Options) -> Iterator[tuple[list[int], Outputs]]:
        """Run rows in batches of like length.

        Args:
            encodings: tokenized rows.
            options: the call's options.

        Yields:
            Places of the batch's rows in ``encodings``, and the outputs of exactly these rows, padded at the right.

        Raises:
            InputError: a row longer than the model takes.
            DeadlineExceeded: the call's timeout has passed, or it was cancelled.
            MachineError: not enough memory, or less allowed than a row needs.
            NumericalError: an output with NaN or infinity.
        """
        opened = self._open()
        lengths = [len(encoding) for encoding in encodings]
        if lengths and max(lengths) > opened.longest:
            raise InputError(
                f"an input has {max(lengths)} tokens, expected at most {opened.longest}; leave truncation on, or cut it"
            )
        shape = fixed_shape(self.manifest)
        units = [encodings[i : i + shape.width] for i in range(0, len(encodings), shape.width)]
        heaviest = [max(map(len, unit)) for unit in units]
        most = min((n for n in (options.batch_size, shape.rows) if n is not None), default=None)
        jobs = self._plan(heaviest, most)

        def run(chosen: list[Sequence[Any]]) -> Outputs:
            rows = [row for unit in chosen for row in unit]
            try:
                feeds = make_feeds(self.manifest, rows, self.tokenizer.pad_token_id or 0, shape.width, shape.rows)
                with nullcontext() if self._arguments.memory_limit is None else self._room.taken(options):
                    outputs = opened.session.run(
                        feeds, outputs=self.output_names, timeout=options.seconds_left(),
                        cancellation=options.cancellation,
                    )  # fmt: skip
            except MemoryError:
                raise MachineError(f"not enough memory for a batch of {len(rows)} rows; set batch_tokens=") from None
            return {name: values[: len(chosen)] for name, values in outputs.items()}

        if self.replicas == 1 or len(jobs) == 1:
            alone = most is not None or shape.width > 1
            parts = self.shared_runs.batches(units, heaviest, jobs, run, self._plan, options, alone=alone)
        else:
            parts = workers.run_in_order(lambda job: (job, run([units[i] for i in job])), jobs, self.replicas)
        for job, outputs in parts:
            yield [unit * shape.width + i for unit in job for i in range(shape.width)], outputs

    def _plan(self, lengths: Sequence[int], most: int | None = None) -> list[list[int]]:
        """Group rows of these lengths, or groups of rows where a graph fixes how many belong together, into batches."""
        opened, limit = self._open(), self._arguments.memory_limit
        width, count, _ = fixed_shape(self.manifest)

        def within(limit: int, length: int) -> int:
            """How many groups the memory limit leaves room for."""
            found = opened.footprint.rows_within(length, limit, self.replicas) // width
            if found < (count or 1):
                opened.footprint.check_run((count or 1) * width * self.replicas, length, limit)
            return found

        return plan_batches(
            lengths, token_budget=opened.token_budget, run_tokens=opened.run_tokens, max_rows=most,
            rows_within=None if limit is None else functools.partial(within, limit),
        )  # fmt: skip

    def _route(self, inputs: Any, options: Options) -> Any:
        if self.is_one(inputs, options):
            return self.answer([self.check_input(inputs, "the input")], options.started())[0]
        checked = (self.check_input(item, f"input {i}") for i, item in enumerate(inputs))
        if isinstance(inputs, list | tuple):
            running = options.started()
            parts = pieces([*checked], CHUNK, CHUNK_CHARACTERS)  # a wrong one is told before anything runs
            return [answer for items in parts for answer in self.answer(items, running)]
        return self._stream(checked, options)

    def _stream(self, checked: Iterable[Any], options: Options) -> Iterator[Any]:
        """Answer piece by piece, each with a clock of its own."""
        for items in pieces(checked, self.piece_size(options), min(STREAM_CHARACTERS, CHUNK_CHARACTERS)):
            yield from self.answer(items, options.started())

    @property
    def option_names(self) -> tuple[str, ...]:
        """The names of the options that a call takes."""
        return tuple(field.name for field in dataclasses.fields(self.options_type))

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Check the options of a call, before there is an input.

        Raises:
            UsageError: an unknown or unfit one.
        """
        self._read_options(options)

    def _check_names(self, options: Mapping[str, Any]) -> None:
        known = self.option_names
        for name in options:
            if name not in known:
                raise self.unknown_option(name, known)

    def unknown_option(self, name: str, known: Iterable[str]) -> UsageError:
        """Build the error for an option that a call does not take; ``known`` are those that it does."""
        return unknown_word(f"option of {self.task}", name, known)

    def _read_options(self, options: Mapping[str, Any]) -> Options:
        self._check_names(options)
        return self.options_type(**options)  # type: ignore[return-value]

    def _open(self) -> Parts:
        if self._opened is None:
            with self._lock:
                if self._opened is None:
                    self._opened = self._open_now()
        return self._opened

    def _open_now(self) -> Parts:
        return open_parts(self._bundle, self._arguments, self._shares.threads)

    def __getstate__(self) -> Arguments:
        return self._arguments

    def __setstate__(self, arguments: Arguments) -> None:
        self.__init__(**vars(arguments))  # type: ignore[misc]

    def __repr__(self) -> str:
        arguments = self._arguments
        return f"{type(self).__name__}({arguments.bundle!r}, {arguments.precision}, {arguments.device})"
