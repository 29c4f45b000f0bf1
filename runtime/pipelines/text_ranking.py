"""Text ranking: how well each of several documents answers a query."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from pinnace.arrays import Array
from pinnace.errors import InputError, UsageError
from pinnace.runtime.arguments import check_count, check_text, check_word
from pinnace.runtime.pipelines.base import CallOptions
from pinnace.runtime.pipelines.items import check_fields
from pinnace.runtime.pipelines.opening import Parts
from pinnace.runtime.pipelines.text_classification import FUNCTIONS, ClassifierPipeline

# Where sentence-transformers 5 says how it makes scores of logits, and classes that it names there.
_SETTINGS_FILE: Final = "config_sentence_transformers.json"
_ACTIVATIONS: Final[Mapping[str, str]] = MappingProxyType({"Identity": "none", "Sigmoid": "sigmoid"})


@dataclasses.dataclass(frozen=True)
class RankingOptions(CallOptions):
    """Options of text ranking.

    Attributes:
        top_k: how many documents, best first; None gives all.
        function_to_apply: ``"sigmoid"``, ``"softmax"`` or ``"none"`` on the logits; None takes, for one label, what the
            model's CrossEncoder says, else sigmoid, and softmax for two, where the second label means "relevant".
    """

    top_k: int | None = None
    function_to_apply: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("top_k", self.top_k)
        if self.function_to_apply is not None:
            check_word("function_to_apply", str(self.function_to_apply).lower(), FUNCTIONS)


class TextRankingPipeline(ClassifierPipeline[RankingOptions]):
    """Order documents by relevance to a query: ``[{index, score}]``, best first, ``index`` the document's place.

    Source: sentence-transformers' CrossEncoder.rank and text-embeddings-inference's rerank, for the meaning of scores.
    """

    task = "text-ranking"
    options_type = RankingOptions

    def __call__(self, inputs: Any = None, documents: Any = None, *, query: str | None = None, **options: Any) -> Any:
        """Rank documents for one query, or for each of many.

        Args:
            inputs: the query, with ``documents`` beside it; or ``{"query": ..., "documents": [...]}``; or many such.
            documents: list of texts.
            query: the same as ``inputs``, by its name.
            options: see `RankingOptions`.

        Raises:
            InputError: an input of another form.
            UsageError: an unknown or unfit option, a model with more than two labels, or one that makes its scores by
                another function.
        """
        inputs = query if inputs is None else inputs
        if documents is not None:
            inputs = {"query": inputs, "documents": documents}
        return super().__call__(inputs, **options)

    def check_input(self, item: Any, place: str) -> Any:
        """Accept ``{"query", "documents"}``."""
        if isinstance(item, str):
            raise InputError(f"{place} is a query without documents; call it as pipe(query, documents)")
        query, documents = check_fields(item, place, ("query", "documents"))
        if not isinstance(documents, list | tuple):
            got = type(documents).__name__
            raise InputError(f"'documents' of {place} is {got}, expected a list of texts; make one")
        texts = [check_text(text, f"document {i} of {place}") for i, text in enumerate(documents)]
        return check_text(query, f"'query' of {place}"), texts

    def answer(self, items: list[Any], options: RankingOptions) -> list[Any]:
        """Rank the documents of each query; the pairs of all queries share batches."""
        pairs = [(query, text) for query, texts in items for text in texts]
        scores = self._relevance(self.logits(pairs, options), options)
        results, start = [], 0
        for _, texts in items:
            own = scores[start : start + len(texts)]
            start += len(texts)
            order = np.argsort(-own, kind="stable")[: options.top_k]
            results.append([{"index": i, "score": s} for i, s in zip(order.tolist(), own[order].tolist(), strict=True)])
        return results

    def _relevance(self, logits: Array, options: RankingOptions) -> Array:
        labels = logits.shape[1]
        if labels > 2:
            raise UsageError(
                f"text-ranking needs a model with one label, or two of which the second means relevant; this one has "
                f"{labels}: {', '.join(self.manifest.labels)}.\n  Use pinnace.pipeline('text-classification', ...)"
            )
        function = options.function_to_apply
        if function is None:
            function = "softmax" if labels == 2 else self._default_function()
        return np.asarray(FUNCTIONS[function.lower()](logits)[:, -1])

    def _default_function(self) -> str:
        """What makes scores of the logits of one label."""
        named = (self._activation or "Sigmoid").rpartition(".")[2]
        if named not in _ACTIVATIONS:
            raise UsageError(
                f"the model makes its scores by {self._activation}, which is not known here; "
                f"give function_to_apply= one of {', '.join(FUNCTIONS)}"
            )
        return _ACTIVATIONS[named]

    def _open_now(self) -> Parts:
        _ = self._activation  # read here, once: a service's requests see the opened pipeline
        return super()._open_now()

    @functools.cached_property
    def _activation(self) -> str | None:
        """The class that a CrossEncoder applies to its logits, as its settings name it; None where they do not."""
        config = self._bundle.config()
        settings = self._bundle.read_object(_SETTINGS_FILE) if (self.path / _SETTINGS_FILE).exists() else {}
        noted = config.get("sentence_transformers")
        for facts in (settings, noted if isinstance(noted, dict) else {}):
            if facts.get("activation_fn"):
                return str(facts["activation_fn"])
        older = config.get("sbert_ce_default_activation_function")
        return str(older) if older else None
