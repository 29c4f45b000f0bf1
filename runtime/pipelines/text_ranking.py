"""Text ranking: how well each of several documents answers a query."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from pinnace.errors import InputError, UsageError
from pinnace.runtime.arguments import check_count, check_fields, check_text, check_word
from pinnace.runtime.pipelines.base import CallOptions
from pinnace.runtime.pipelines.scores import Array
from pinnace.runtime.pipelines.text_classification import FUNCTIONS, ClassifierPipeline


@dataclasses.dataclass(frozen=True)
class RankingOptions(CallOptions):
    """Options of text ranking.

    Attributes:
        top_k: how many documents, best first; None gives all.
        function_to_apply: ``"sigmoid"``, ``"softmax"`` or ``"none"`` on the logits; None takes sigmoid for one label
            and softmax for two, where the second label means "relevant".
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
            UsageError: an unknown or unfit option, or a model with more than two labels.
        """
        inputs = query if inputs is None else inputs
        if documents is not None:
            inputs = {"query": inputs, "documents": documents}
        return super().__call__(inputs, **options)

    def check_input(self, item: Any, place: str) -> Any:
        """Accept ``{"query", "documents"}``."""
        if not isinstance(item, Mapping) and isinstance(item, str):
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
        function = (options.function_to_apply or ("sigmoid" if labels == 1 else "softmax")).lower()
        return np.asarray(FUNCTIONS[function](logits)[:, -1])
