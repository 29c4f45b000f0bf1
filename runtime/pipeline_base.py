"""What all pipelines share: opening by path, one input or many, call options, batches by length."""

from __future__ import annotations

import abc
import dataclasses
import itertools
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, Generic, TypeAlias, TypeVar

import numpy as np

from pinnace.errors import DeadlineExceeded, InputError, UsageError, unknown_word
from pinnace.runtime.batching import default_token_budget, pad_rows, plan_batches
from pinnace.runtime.bundle import Bundle
from pinnace.runtime.pipeline_checks import Pair, check_count, check_seconds
from pinnace.runtime.providers import providers_for
from pinnace.runtime.scores import Array
from pinnace.runtime.session import Session
from pinnace.runtime.tokenizer import BatchEncoding, Tokenizer, load_tokenizer
from pinnace.spec import Manifest

# Inputs that are tokenized and sorted together; a stream is answered in pieces of this many.
CHUNK: Final = 1024
# Most bytes that one batch's outputs may take: logits over a vocabulary are far larger than the activations.
OUTPUT_BYTES: Final = 64 << 20

Outputs: TypeAlias = Mapping[str, Array]


@dataclasses.dataclass(frozen=True)
class CallOptions:
    """Options that every pipeline takes when it is called.

    Attributes:
        batch_size: most rows of one batch; None leaves it to the token budget.
        timeout: most seconds for a call, or for each piece of a stream; None waits for ever.
    """

    batch_size: int | None = None
    timeout: float | None = None

    def __post_init__(self) -> None:
        check_count("batch_size", self.batch_size)
        check_seconds("timeout", self.timeout)


Options = TypeVar("Options", bound=CallOptions)


@dataclasses.dataclass(frozen=True)
class _Opened:
    """What is opened at first use."""

    session: Session
    tokenizer: Tokenizer
    token_budget: int
    longest: int


class Pipeline(abc.ABC, Generic[Options]):
    """Text in, the task's answers out.

    One input gives one result, a list a list, and any other iterable an iterator that reads its source in pieces.
    A pipeline may be used by many threads at once. It pickles as its arguments and opens its session at first use,
    so process pools can carry it.

    Args:
        bundle: folder of a bundle, or an opened bundle.
        precision: the variant to run; None takes the bundle's default.
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
        threads: threads of one run; None takes what the machine grants this process.
        batch_tokens: most tokens in a batch, padding counted; None takes what fits the processor's cache.
        verify: check the bundle's files against their hashes.

    Raises:
        BundleError: no bundle, or a damaged one.
        UsageError: the bundle is for another task, or has no such precision.
        MachineError: this machine or this onnxruntime cannot provide the device.
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
    ) -> None:
        check_count("threads", threads)
        check_count("batch_tokens", batch_tokens)
        providers_for(device)
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle, verify=verify)
        if opened.manifest.task not in self.bundle_tasks:
            raise UsageError(
                f"the bundle {opened.path.name} is for {opened.manifest.task} ({opened.manifest.head}), "
                f"and {self.task} needs one for {' or '.join(self.bundle_tasks)}.\n"
                f"  Use pinnace.pipeline({opened.manifest.task!r}, ...), or export a checkpoint with --task {self.task}"
            )
        self._arguments: dict[str, Any] = {
            "bundle": str(opened.path),
            "precision": opened.precision(precision),
            "device": device,
            "threads": threads,
            "batch_tokens": batch_tokens,
            "verify": verify,
        }
        self._bundle = opened
        self._opened: _Opened | None = None
        self._lock = threading.Lock()

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
        return Path(self._arguments["bundle"])

    @property
    def session(self) -> Session:
        """The session, opened at first use."""
        return self._open().session

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, opened at first use."""
        return self._open().tokenizer

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

    def encode(self, texts: Any, pairs: Any = None, **arguments: Any) -> BatchEncoding:
        """Tokenize without padding, cut to the longest row unless the arguments say otherwise."""
        arguments = {"truncation": True, "max_length": self.longest, **arguments}
        return self.tokenizer(
            texts, pairs, padding=False, return_attention_mask=False, return_token_type_ids=False, **arguments
        )

    def encode_pairs(self, pairs: Sequence[Pair], **arguments: Any) -> list[Any]:
        """Tokenize texts and pairs of texts, mixed, as `encode` does; one row for each."""
        rows: list[Any] = [None] * len(pairs)
        for with_partner in (False, True):
            places = [i for i, pair in enumerate(pairs) if (pair[1] is not None) == with_partner]
            if places:
                partners = [pairs[i][1] for i in places] if with_partner else None
                found = self.encode([pairs[i][0] for i in places], partners, **arguments).encodings
                for place, row in zip(places, found or [], strict=True):
                    rows[place] = row
        return rows

    def batches(self, encodings: Sequence[Any], options: Options) -> Iterator[tuple[list[int], Outputs]]:
        """Run rows in batches of like length.

        Args:
            encodings: tokenized rows.
            options: the call's options.

        Yields:
            Places of the batch's rows in ``encodings``, and the outputs of exactly these rows, padded at the right.

        Raises:
            InputError: a row longer than the model takes.
            DeadlineExceeded: the call's timeout has passed.
            NumericalError: an output with NaN or infinity.
        """
        opened = self._open()
        lengths = [len(encoding) for encoding in encodings]
        if lengths and max(lengths) > opened.longest:
            raise InputError(
                f"an input has {max(lengths)} tokens, expected at most {opened.longest}; leave truncation on, or cut it"
            )
        width, rows = _fixed_shape(self.manifest)
        until = None if options.timeout is None else time.monotonic() + options.timeout
        heaviest = [max(lengths[i : i + width]) for i in range(0, len(lengths), width)]
        most = min((n for n in (options.batch_size, rows) if n is not None), default=None)
        for units in plan_batches(heaviest, token_budget=opened.token_budget, max_rows=most):
            places = [unit * width + i for unit in units for i in range(width)]
            feeds = self._feeds([encodings[i] for i in places], width, rows)
            left = None if until is None else until - time.monotonic()
            if left is not None and left <= 0:
                raise DeadlineExceeded(f"the call was stopped after its timeout of {options.timeout:g} s; allow more")
            outputs = opened.session.run(feeds, outputs=self.output_names, timeout=left)
            yield places, {name: values[: len(units)] for name, values in outputs.items()}

    def _feeds(self, encodings: list[Any], width: int, rows: int | None) -> dict[str, Array]:
        """Build the graph's inputs, padded to the longest row or to the graph's fixed shape."""
        specs = {spec.name: spec.shape for spec in self.manifest.inputs}
        # A row without any token (an empty text and no special ones) becomes one token of padding.
        padding = self.tokenizer.pad_token_id or 0
        ids = pad_rows([encoding.ids or [padding] for encoding in encodings], padding)
        feeds = {"input_ids": ids}
        if "attention_mask" in specs:
            feeds["attention_mask"] = pad_rows([encoding.attention_mask or [1] for encoding in encodings], 0)
        if "token_type_ids" in specs:
            feeds["token_type_ids"] = pad_rows([encoding.type_ids or [0] for encoding in encodings], 0)
        if "position_ids" in specs:
            feeds["position_ids"] = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
        shape = specs["input_ids"]
        extra_rows = 0 if rows is None else rows * width - len(encodings)
        extra_tokens = shape[-1] - ids.shape[1] if isinstance(shape[-1], int) else 0
        if extra_rows or extra_tokens:
            # Rows are repeated rather than blank: a row without any token would attend to nothing.
            feeds = {
                name: np.pad(np.pad(values, ((0, extra_rows), (0, 0)), mode="edge"), ((0, 0), (0, extra_tokens)))
                for name, values in feeds.items()
            }
        if len(shape) == 3:
            feeds = {name: values.reshape(-1, width, values.shape[-1]) for name, values in feeds.items()}
        return feeds

    def _route(self, inputs: Any, options: Options) -> Any:
        if self.is_one(inputs, options):
            return self.answer([self.check_input(inputs, "the input")], options)[0]
        results = self._stream(inputs, options)
        return list(results) if isinstance(inputs, list | tuple) else results

    def _stream(self, inputs: Iterable[Any], options: Options) -> Iterator[Any]:
        source = enumerate(inputs)
        while items := [self.check_input(item, f"input {i}") for i, item in itertools.islice(source, CHUNK)]:
            yield from self.answer(items, options)

    def _read_options(self, options: Mapping[str, Any]) -> Options:
        known = [field.name for field in dataclasses.fields(self.options_type)]
        for name in options:
            if name not in known:
                raise unknown_word(f"option of {self.task}", name, known)
        return self.options_type(**options)  # type: ignore[return-value]

    def _open(self) -> _Opened:
        if self._opened is None:
            with self._lock:
                if self._opened is None:
                    self._opened = self._open_now()
        return self._opened

    def _open_now(self) -> _Opened:
        arguments, manifest = self._arguments, self.manifest
        session = Session(
            self._bundle, arguments["precision"], device=arguments["device"], threads=arguments["threads"]
        )
        tokenizer = load_tokenizer(self.path)
        fixed = next(spec.shape[-1] for spec in manifest.inputs if spec.name == "input_ids")
        longest = min(manifest.limits.sequence, tokenizer.model_max_length or manifest.limits.sequence)
        longest = min(longest, fixed) if isinstance(fixed, int) else longest
        budget = arguments["batch_tokens"] or default_token_budget(int(self._bundle.config().get("hidden_size", 768)))
        numbers = [s.shape[-1] for s in manifest.outputs if len(s.shape) == 3 and isinstance(s.shape[-1], int)]
        budget = min(budget, max(1, OUTPUT_BYTES // (4 * max(numbers, default=1))))
        return _Opened(session, tokenizer, budget, longest)

    def __getstate__(self) -> dict[str, Any]:
        return self._arguments

    def __setstate__(self, arguments: dict[str, Any]) -> None:
        self.__init__(**arguments)  # type: ignore[misc]

    def __repr__(self) -> str:
        arguments = self._arguments
        return f"{type(self).__name__}({arguments['bundle']!r}, {arguments['precision']}, {arguments['device']})"


def _fixed_shape(manifest: Manifest) -> tuple[int, int | None]:
    """Rows that belong together (the choices of a fixed-shape graph), and the rows of its batch if fixed."""
    shape = next(spec.shape for spec in manifest.inputs if spec.name == "input_ids")
    width = shape[1] if len(shape) == 3 and isinstance(shape[1], int) else 1
    return width, shape[0] if isinstance(shape[0], int) else None
