"""Feature extraction: the vectors of a text's tokens, or one vector of the whole text."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from pinnace.errors import BundleError, UsageError
from pinnace.runtime.arguments import check_count, check_return_tensors, check_text, check_word
from pinnace.runtime.pipelines.base import CallOptions, Pipeline
from pinnace.runtime.pipelines.scores import Array

_MANIFEST: Final = "as the model says"
_SETTINGS_FILE: Final = "sentence_bert_config.json"


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
    """

    pooling: str | None = _MANIFEST
    normalize: bool | None = None
    return_tensors: bool | str = False
    truncation: bool | str | None = None
    max_length: int | None = None
    tokenize_kwargs: Mapping[str, Any] | None = None

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


class FeatureExtractionPipeline(Pipeline[FeatureOptions]):
    """Vectors of texts: ``[[[...]]]`` (1, tokens, hidden) for each text, or pooled, one vector for each.

    A sentence-transformers model pools, normalizes and cuts texts as its folder says.

    Source: behaviour of transformers 4.57, FeatureExtractionPipeline, and of sentence-transformers' encode.
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
        length = options.max_length or (self._sentence_length() if pooling is not None else self.longest)
        truncation = True if options.truncation is None else options.truncation
        rows = self.encode(items, truncation=truncation, max_length=min(length, self.longest)).encodings or []
        results: list[Any] = [None] * len(items)
        for places, outputs in self.batches(rows, options):
            hidden = outputs["last_hidden_state"]  # (B, T, D)
            lengths = np.asarray([max(1, len(rows[i])) for i in places])
            if pooling is None:
                for row, i in enumerate(places):
                    results[i] = np.array(hidden[row, : lengths[row]], np.float32)[None]
                continue
            vectors = POOLERS[pooling](np.asarray(hidden, np.float32), lengths)
            if normalize:
                vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
            for row, i in enumerate(places):
                results[i] = vectors[row]
        return results if options.return_tensors else [result.tolist() for result in results]

    def _sentence_length(self) -> int:
        """Tokens to which a sentence-transformers model cuts its texts."""
        path = self.path / _SETTINGS_FILE
        if not path.exists():
            return self.longest
        try:
            length = json.loads(path.read_text(encoding="utf-8")).get("max_seq_length")
        except (OSError, ValueError, AttributeError, RecursionError) as error:
            raise BundleError(f"{path} is not a JSON object: {str(error)[:200]}") from None
        if length is not None and (type(length) is not int or length < 1):
            raise BundleError(f"{path}: max_seq_length is {length!r}, expected a whole number of at least 1, or null")
        return length or self.longest


def _pool_mean(hidden: Array, lengths: Array) -> Array:
    weights = _mask(hidden, lengths)[:, None, :].astype(np.float32)  # (B, 1, T)
    return np.asarray((weights @ hidden)[:, 0] / lengths[:, None].astype(np.float32))


def _pool_cls(hidden: Array, lengths: Array) -> Array:
    return hidden[:, 0]


def _pool_max(hidden: Array, lengths: Array) -> Array:
    return np.asarray(np.where(_mask(hidden, lengths)[:, :, None], hidden, -np.inf).max(1))


def _mask(hidden: Array, lengths: Array) -> Array:
    return np.arange(hidden.shape[1]) < lengths[:, None]  # (B, T)


POOLERS: Final[Mapping[str, Callable[[Array, Array], Array]]] = MappingProxyType(
    {"mean": _pool_mean, "cls": _pool_cls, "max": _pool_max}
)
