"""From the start and end logits of a context's windows to answers in the text."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeAlias

import numpy as np

from pinnace.arrays import Array
from pinnace.runtime.pipelines.scores import softmax

Answer: TypeAlias = dict[str, Any]

# Far below any logit, so that what is masked has probability 0, and finite, so that a row of it alone is no NaN.
_MASKED = np.float32(-10000.0)


@dataclasses.dataclass(frozen=True)
class Spans:
    """The best spans of one window, best first: tokens ``start..end`` (both included), and the no-answer score."""

    start: list[int]
    end: list[int]
    score: list[float]
    null_score: float


def best_spans(start: Array, end: Array, context: Array, *, top: int, max_answer_len: int) -> list[Spans]:
    """Find the best spans of each window of a batch.

    Args:
        start: float32 ``[windows, tokens]``, logits of an answer's first token.
        end: float32 ``[windows, tokens]``, logits of its last.
        context: bool ``[windows, tokens]``, the tokens that an answer may use.
        top: most spans of a window.
        max_answer_len: most tokens of a span.

    Source: behaviour of transformers 4.57; the no-answer token, which is the first, takes part in the probabilities.
    """
    windows, tokens = context.shape
    start, end = _probabilities(start, context), _probabilities(end, context)
    null = start[:, 0] * end[:, 0]
    start, end = np.where(context, start, 0), np.where(context, end, 0)
    width = min(max_answer_len, tokens)
    # Only the band of pairs with start <= end < start + width: all pairs would be tokens / width times as many.
    ahead = np.pad(end, ((0, 0), (0, width - 1)))
    band = start[:, :, None] * np.lib.stride_tricks.sliding_window_view(ahead, width, axis=1)  # (W, T, width)
    usable = np.pad(context, ((0, 0), (0, width - 1)))
    usable = context[:, :, None] & np.lib.stride_tricks.sliding_window_view(usable, width, axis=1)
    flat = np.where(usable, band, -1).reshape(windows, -1)
    top = min(top, flat.shape[1])
    best = np.argpartition(-flat, top - 1, axis=1)[:, :top]
    best.sort(axis=1)
    order = np.argsort(-np.take_along_axis(flat, best, 1), axis=1, kind="stable")
    best = np.take_along_axis(best, order, 1)
    scores = np.take_along_axis(flat, best, 1)
    found = []
    for places, values, nothing in zip(best, scores, null.tolist(), strict=True):
        places, values = places[values >= 0], values[values >= 0]
        first = places // width
        found.append(Spans(first.tolist(), (first + places % width).tolist(), values.tolist(), nothing))
    return found


def _probabilities(logits: Array, context: Array) -> Array:
    counted = context.copy()
    counted[:, 0] = True
    return softmax(np.where(counted, logits, _MASKED))


def context_tokens(encoding: Any) -> tuple[int, int]:
    """Return where the second text's tokens begin and end in a row; equal when it has none."""
    owners = encoding.sequence_ids
    count = owners.count(1)
    start = owners.index(1) if count else 0
    return start, start + count


def collect_answers(
    context: str, windows: list[tuple[Any, Spans]], *, top_k: int, align_to_words: bool, impossible: bool
) -> list[Answer]:
    """Join the spans of a context's windows to answers, best first.

    Equal texts (case aside) are one answer with the sum of their scores, at the first place found.

    Args:
        context: the whole context.
        windows: each window's ``tokenizers.Encoding`` and spans, in order.
        top_k: most answers.
        align_to_words: widen a span to whole words.
        impossible: let "no answer" compete, as an empty text at 0 with the windows' lowest no-answer score.
    """
    answers: dict[str, Answer] = {}
    for encoding, spans in windows:
        for first, last, score in zip(spans.start, spans.end, spans.score, strict=True):
            start, end = _characters(encoding, first, last, align_to_words)
            text = context[start:end]
            known = answers.setdefault(text.lower(), {"score": 0.0, "start": start, "end": end, "answer": text})
            known["score"] += score
    found = list(answers.values())
    if impossible:
        lowest = min(spans.null_score for _, spans in windows)
        found.append({"score": lowest, "start": 0, "end": 0, "answer": ""})
    return sorted(found, key=lambda answer: float(answer["score"]), reverse=True)[:top_k]


def _characters(encoding: Any, first: int, last: int, align_to_words: bool) -> tuple[int, int]:
    if align_to_words:
        words = encoding.token_to_word(first), encoding.token_to_word(last)
        if None not in words:
            return encoding.word_to_chars(words[0], 1)[0], encoding.word_to_chars(words[1], 1)[1]
    offsets = encoding.offsets
    return offsets[first][0], offsets[last][1]
