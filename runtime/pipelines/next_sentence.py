"""Next-sentence prediction: does the second text follow the first?"""

from __future__ import annotations

from typing import Any

from pinnace.runtime.arguments import check_text
from pinnace.runtime.pipelines.base import CallOptions, Pipeline
from pinnace.runtime.pipelines.items import check_fields
from pinnace.runtime.pipelines.scores import softmax


def check_text_pair(item: Any, place: str) -> tuple[str, str]:
    """Return the texts of ``{"text", "text_pair"}``.

    Raises:
        InputError: another form.
    """
    text, following = check_fields(item, place, ("text", "text_pair"))
    return check_text(text, f"'text' of {place}"), check_text(following, f"'text_pair' of {place}")


class NextSentencePipeline(Pipeline[CallOptions]):
    """Judge whether ``text_pair`` follows ``text``: ``{is_next, score}``, ``score`` the probability that it does."""

    task = "next-sentence-prediction"
    bundle_tasks = ("next-sentence-prediction",)
    options_type = CallOptions

    def __call__(self, inputs: Any = None, text_pair: str | None = None, *, text: Any = None, **options: Any) -> Any:
        """Judge one pair, a list of pairs, or lazily any other iterable of pairs.

        Args:
            inputs: the first text, with ``text_pair`` beside it; or ``{"text", "text_pair"}``; or many such.
            text_pair: the second text.
            text: the same as ``inputs``, by its name.
            options: see `CallOptions`.

        Raises:
            InputError: an input of another form.
            UsageError: an unknown or unfit option.
        """
        inputs = text if inputs is None else inputs
        if text_pair is not None:
            inputs = {"text": inputs, "text_pair": text_pair}
        return super().__call__(inputs, **options)

    def check_input(self, item: Any, place: str) -> tuple[str, str]:
        """Accept ``{"text", "text_pair"}``."""
        return check_text_pair(item, place)

    def answer(self, items: list[tuple[str, str]], options: CallOptions) -> list[Any]:
        """Judge each pair."""
        rows = self.encode([first for first, _ in items], [second for _, second in items]).encodings or []
        results: list[Any] = [None] * len(items)
        for places, outputs in self.batches(rows, options):
            # Label 0 means that the second text follows, label 1 that it was drawn at random.
            scores = softmax(outputs["logits"])[:, 0]
            for i, score in zip(places, scores.tolist(), strict=True):
                results[i] = {"is_next": score >= 0.5, "score": score}
        return results
