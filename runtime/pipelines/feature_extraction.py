"""Feature extraction: the vectors of a text's tokens, or one vector of the whole text."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from pinnace.arrays import Array
from pinnace.errors import UsageError
from pinnace.runtime.arguments import check_count, check_return_tensors, check_text, check_word
from pinnace.runtime.pipelines.base import CallOptions, Pipeline
from pinnace.runtime.pipelines.opening import Parts
from pinnace.runtime.pipelines.sentence_settings import SentenceSettings
from pinnace.runtime.tokenization.tokenizer import Tokenizer, load_tokenizer

_MANIFEST: Final = "as the model says"


@dataclasses.dataclass(frozen=True)
class FeatureOptions(CallOptions):
    """Options of feature extraction.

    Attributes:
        pooling: ``"mean"``, ``"cls"`` or ``"max"`` makes one vector of the tokens' vectors, None keeps those; nothing
            said takes what the sentence-transformers folder says, None if the model was not one.
        normalize: scale pooled vectors to length 1; None takes what the folder says.
        return_tensors: True or ``"np"`` returns float32 arrays, which is much faster than lists of floats.
        truncation: cut texts that are too long, rather than refuse them.
        max_length: tokens to cut to; None takes the model's limit.
        tokenize_kwargs: ``truncation`` and ``max_length`` again, in one mapping.
        prompt: put before each text, such as ``"query: "``.
        prompt_name: the name of one of the prompts that the sentence-transformers folder has. Where neither is said,
            pooled texts get the folder's default prompt, if it names one; ``prompt=""`` puts nothing before them.
    """

    pooling: str | None = _MANIFEST
    normalize: bool | None = None
    return_tensors: bool | str = False
    truncation: bool | str | None = None
    max_length: int | None = None
    tokenize_kwargs: Mapping[str, Any] | None = None
    prompt: str | None = None
    prompt_name: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pooling not in (None, _MANIFEST):
            check_word("pooling", self.pooling, POOLERS)
        check_return_tensors(self.return_tensors)
        if not isinstance(self.tokenize_kwargs, Mapping | None):
            raise UsageError(f"tokenize_kwargs is {self.tokenize_kwargs!r}; expected a mapping, or None")
        given = dict(self.tokenize_kwargs or {})
        if unknown := sorted(set(given) - {"truncation", "max_length"}):
            raise UsageError(f"tokenize_kwargs has {', '.join(unknown)}; expected only truncation and max_length")
        for name, value in given.items():
            if getattr(self, name) is not None:
                raise UsageError(f"{name} is given twice, by itself and in tokenize_kwargs; expected one of them")
            object.__setattr__(self, name, value)
        check_count("max_length", self.max_length)
        for name in ("prompt", "prompt_name"):
            if not isinstance(getattr(self, name), str | None):
                raise UsageError(f"{name} is {getattr(self, name)!r}; expected a text, or None")
        if self.prompt is not None and self.prompt_name is not None:
            raise UsageError("prompt and prompt_name are both given; expected one of them")


class FeatureExtractionPipeline(Pipeline[FeatureOptions]):
    """Vectors of texts: ``[[[...]]]`` (1, tokens, hidden) for each text, or pooled, one vector for each.

    A sentence-transformers model pools, normalizes and cuts texts as its folder says, puts its default prompt before
    them, and lower-cases them where the folder asks for it. Vectors of tokens are those of the texts as they are given.

    Source: behaviour of transformers 4.57, FeatureExtractionPipeline, and of sentence-transformers 5.7, encode.
    """

    task = "feature-extraction"
    bundle_tasks = ("feature-extraction",)
    output_names = ("last_hidden_state",)
    options_type = FeatureOptions

    def check_input(self, item: Any, place: str) -> str:
        """Accept a text."""
        return check_text(item, place)

    def answer(self, items: list[str], options: FeatureOptions) -> list[Any]:
        """Return the vectors of each text."""
        said = self.manifest.pooling
        pooling, normalize = options.pooling, options.normalize
        if pooling == _MANIFEST:
            pooling = said.mode if said is not None else None
        if normalize is None:
            normalize = said is not None and said.normalize
        if pooling is not None and pooling not in POOLERS:
            raise UsageError(f"the model pools by {pooling!r}, expected {', '.join(POOLERS)}; give pooling=")
        prompt = self._prompt(options, pooled=pooling is not None)
        rows = self._rows([prompt + text for text in items], options, pooled=pooling is not None)
        skipped = 0 if said is None or said.include_prompt or not prompt else self._prompt_tokens(prompt, options)
        results: list[Any] = [None] * len(items)
        for places, outputs in self.batches(rows, options):
            hidden = outputs["last_hidden_state"]  # (B, T, D)
            lengths = np.asarray([max(1, len(rows[i])) for i in places])
            if pooling is None:
                for row, i in enumerate(places):
                    results[i] = np.array(hidden[row, : lengths[row]], np.float32)[None]
                continue
            starts = np.minimum(skipped, lengths - 1)
            vectors = POOLERS[pooling](np.asarray(hidden, np.float32), starts, lengths)
            if normalize:
                vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
            for row, i in enumerate(places):
                results[i] = vectors[row]
        return results if options.return_tensors else [result.tolist() for result in results]

    def _prompt(self, options: FeatureOptions, *, pooled: bool) -> str:
        """The text before each input."""
        if options.prompt is not None:
            return options.prompt
        return self._settings.prompt(options.prompt_name) if pooled or options.prompt_name is not None else ""

    def _rows(self, texts: list[str], options: FeatureOptions, *, pooled: bool) -> Sequence[Any]:
        """Tokenize texts; those that are pooled as sentence-transformers does."""
        length = options.max_length or (self._settings.length if pooled else None) or self.longest
        truncation = True if options.truncation is None else options.truncation
        tokenizer = self._lower_casing if pooled and self._settings.lower_case else None
        encoded = self.encode(texts, truncation=truncation, max_length=min(length, self.longest), tokenizer=tokenizer)
        return encoded.encodings or []

    def _prompt_tokens(self, prompt: str, options: FeatureOptions) -> int:
        """How many of a row's tokens are the prompt's: those of a row of its own but for the special one at its end."""
        ids = self._rows([prompt], options, pooled=True)[0].ids
        return len(ids) - (ids[-1] in self.tokenizer.all_special_ids)

    def _open_now(self) -> Parts:
        # Read here, once: a service's requests see the opened pipeline, and each would read for itself.
        if self._settings.lower_case:
            _ = self._lower_casing
        return super()._open_now()

    @functools.cached_property
    def _settings(self) -> SentenceSettings:
        """What a sentence-transformers folder says of texts, read at first use."""
        return SentenceSettings.of(self._bundle)

    @functools.cached_property
    def _lower_casing(self) -> Tokenizer:
        """The tokenizer of texts in lower case, opened at first use."""
        return load_tokenizer(self.path, lower_case=True)


def _pool_mean(hidden: Array, starts: Array, lengths: Array) -> Array:
    weights = _mask(hidden, starts, lengths)[:, None, :].astype(np.float32)  # (B, 1, T)
    return np.asarray((weights @ hidden)[:, 0] / (lengths - starts)[:, None].astype(np.float32))


def _pool_cls(hidden: Array, starts: Array, lengths: Array) -> Array:
    return np.asarray(hidden[np.arange(len(hidden)), starts])


def _pool_max(hidden: Array, starts: Array, lengths: Array) -> Array:
    return np.asarray(np.where(_mask(hidden, starts, lengths)[:, :, None], hidden, -np.inf).max(1))


def _mask(hidden: Array, starts: Array, lengths: Array) -> Array:
    places = np.arange(hidden.shape[1])
    return np.asarray((places >= starts[:, None]) & (places < lengths[:, None]))  # (B, T)


POOLERS: Final[Mapping[str, Callable[[Array, Array, Array], Array]]] = MappingProxyType(
    {"mean": _pool_mean, "cls": _pool_cls, "max": _pool_max}
)
