"""Question answering: the stretch of a context that answers a question."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Final, TypeAlias

import numpy as np

from pinnace.errors import InputError, UsageError
from pinnace.runtime.arguments import check_count, check_text
from pinnace.runtime.pipelines.base import CallOptions, Pipeline
from pinnace.runtime.pipelines.items import check_fields
from pinnace.runtime.pipelines.qa_windows import Answer, Spans, best_spans, collect_answers, context_tokens

Question: TypeAlias = tuple[str, str]

DEFAULT_LENGTH: Final = 384
DEFAULT_STRIDE: Final = 128
DEFAULT_QUESTION: Final = 64
# Tokens of the windows that are held at once, each some 400 bytes; neighbours that share much make many of a few.
MAX_WINDOW_TOKENS: Final = 1 << 20
# A context whose windows repeat each token no more often than this may be as long as any text.
MAX_REPEATS: Final = 4


@dataclasses.dataclass(frozen=True)
class AnswerOptions(CallOptions):
    """Options of question answering; lengths in tokens.

    Attributes:
        top_k: how many answers; with more than 1, the result is a list.
        doc_stride: what neighbouring windows share; None takes half of ``max_seq_len``, at most 128.
        max_answer_len: most tokens of an answer.
        max_seq_len: length of a window, question and special tokens included; None takes 384, or the model's limit.
        max_question_len: a longer question is cut at a word's end; None cuts to 64, and only where
            the whole question would leave too little room for the context.
        handle_impossible_answer: let "no answer" (an empty text) compete.
        align_to_words: widen an answer to whole words.
    """

    top_k: int = 1
    doc_stride: int | None = None
    max_answer_len: int = 15
    max_seq_len: int | None = None
    max_question_len: int | None = None
    handle_impossible_answer: bool = False
    align_to_words: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("top_k", "max_answer_len"):
            if getattr(self, name) is None:
                raise UsageError(f"{name} is None; expected a whole number of at least 1")
        for name in ("top_k", "max_answer_len", "max_seq_len", "max_question_len"):
            check_count(name, getattr(self, name))
        check_count("doc_stride", self.doc_stride, 0)


class QuestionAnsweringPipeline(Pipeline[AnswerOptions]):
    """Find answers in contexts of any length: ``{score, start, end, answer}``, a list of these when ``top_k > 1``.

    ``start`` and ``end`` count characters: ``context[start:end] == answer``. A long context is read in windows.

    Source: behaviour of transformers 4.57, QuestionAnsweringPipeline; but the question always comes first. There it
    comes second where the tokenizer pads on the left, and the spans are then wrong.
    """

    task = "question-answering"
    bundle_tasks = ("question-answering",)
    output_names = ("start_logits", "end_logits")
    options_type = AnswerOptions

    def __call__(
        self, inputs: Any = None, positional_context: Any = None, /, *, question: Any = None, context: Any = None,
        **options: Any,
    ) -> Any:  # fmt: skip
        """Answer one question, a list of them, or lazily any other iterable of them.

        Args:
            inputs: ``{"question": ..., "context": ...}`` or many of these; or a question, with its context after it.
            positional_context: the context, when ``inputs`` is the question.
            question: a question or a list of them, with ``context``.
            context: one context for all questions, or a list of as many.
            options: see `AnswerOptions`.

        Raises:
            InputError: an input of another form, or questions and contexts that differ in number.
            UsageError: an unknown or unfit option.
        """
        if positional_context is not None:
            inputs, question, context = None, inputs, positional_context
        if inputs is None:
            inputs = _join(question, context)
        elif question is not None or context is not None:
            raise InputError("the input is given twice, by position and by name; give question= and context= only")
        return super().__call__(inputs, **options)

    def check_input(self, item: Any, place: str) -> Question:
        """Accept ``{"question", "context"}``."""
        question, context = check_fields(item, place, ("question", "context"))
        return check_text(question, f"'question' of {place}"), check_text(context, f"'context' of {place}")

    def answer(self, items: list[Question], options: AnswerOptions) -> list[Any]:
        """Answer each question; the windows of all contexts share batches, as far as they can be held at once."""
        length = min(options.max_seq_len or DEFAULT_LENGTH, self.longest)
        stride = min(length // 2, DEFAULT_STRIDE) if options.doc_stride is None else options.doc_stride
        questions = self._cut_questions(items, length, stride, options)
        shown = [(question, context) for question, (_, context) in zip(questions, items, strict=True)]
        answers: list[Any] = []
        for part in self._portions(shown, length, stride):
            options.seconds_left()
            answers += self._answer_at_once(part, length, stride, options)
        return answers

    def _answer_at_once(self, items: list[Question], length: int, stride: int, options: AnswerOptions) -> list[Any]:
        encoded = self.encode(
            [question for question, _ in items],
            [context for _, context in items],
            truncation="only_second",
            max_length=length,
            stride=stride,
            return_overflowing_tokens=True,
        )
        rows = encoded.encodings or []
        # Aligning to words makes one answer of several spans, so more spans are wanted than answers.
        top = options.top_k * 2 + 10 if options.align_to_words else options.top_k
        found: list[Spans | None] = [None] * len(rows)
        for places, outputs in self.batches(rows, options):
            start, end = outputs["start_logits"], outputs["end_logits"]  # (W, T)
            limits = np.asarray([context_tokens(rows[i]) for i in places])  # (W, 2)
            column = np.arange(start.shape[1])
            context = (column >= limits[:, :1]) & (column < limits[:, 1:])  # (W, T)
            spans = best_spans(start, end, context, top=top, max_answer_len=options.max_answer_len)
            for i, best in zip(places, spans, strict=True):
                found[i] = best
        windows: list[list[tuple[Any, Any]]] = [[] for _ in items]
        for owner, row, window in zip(encoded["overflow_to_sample_mapping"], rows, found, strict=True):
            windows[owner].append((row, window))
        return [self._result(context, own, options) for (_, context), own in zip(items, windows, strict=True)]

    def _result(self, context: str, windows: list[tuple[Any, Spans]], options: AnswerOptions) -> Answer | list[Answer]:
        answers = collect_answers(
            context, windows, top_k=options.top_k, align_to_words=options.align_to_words,
            impossible=options.handle_impossible_answer,
        )  # fmt: skip
        if options.top_k > 1:
            return answers
        # A context without any token has no span; an empty answer with score 0 says so.
        return answers[0] if answers else {"score": 0.0, "start": 0, "end": 0, "answer": ""}

    def _cut_questions(self, items: list[Question], length: int, stride: int, options: AnswerOptions) -> list[str]:
        """Shorten the questions that are too long: more tokens than asked for, or too little room for the context.

        Raises:
            UsageError: no question could be short enough for this stride and length.
        """
        framed = self.tokenizer.num_special_tokens_to_add(pair=True)
        room = length - framed - stride - 1  # for a question, where its context needs windows
        if room < 1:
            raise UsageError(
                f"doc_stride is {stride} with max_seq_len {length}; expected a stride below {max(0, stride + room)}, "
                "which leaves room for a question and new tokens in each window"
            )
        questions = [question for question, _ in items]
        most = min(room, options.max_question_len or room)
        # A character is at most four bytes, and no tokenizer makes more tokens of it.
        for i in [i for i, question in enumerate(questions) if 4 * len(question) > most]:
            row = self._bare(questions[i])
            if options.max_question_len and len(row) > most:
                questions[i] = _cut_at_word(questions[i], row, most)
            elif len(row) > room and len(row) + len(self._bare(items[i][1])) + framed > length:
                questions[i] = _cut_at_word(questions[i], row, min(room, DEFAULT_QUESTION))
        return questions

    def _portions(self, items: list[Question], length: int, stride: int) -> Iterator[list[Question]]:
        """Cut into lists whose windows can be held at once.

        Raises:
            UsageError: those of one context cannot, since they share too much.
        """
        portion: list[Question] = []
        held = 0
        for question, context in items:
            tokens = self._window_tokens(question, context, length, stride)
            if portion and held + tokens > MAX_WINDOW_TOKENS:
                yield portion
                portion, held = [], 0
            portion.append((question, context))
            held += tokens
        if portion:
            yield portion

    def _window_tokens(self, question: str, context: str, length: int, stride: int) -> int:
        """Return how many tokens a context's windows have at most: by its characters, or counted where they are many.

        Raises:
            UsageError: more than may be.
        """
        room = length - self.tokenizer.num_special_tokens_to_add(pair=True) - stride
        # Few characters are more than one token; where it matters, tokens are counted.
        tokens = length * (1 + len(context) // max(1, room - len(question)))
        if tokens > MAX_WINDOW_TOKENS:
            count = len(self._bare(context))
            tokens = length * (1 + count // max(1, room - len(self._bare(question))))
            if tokens > max(MAX_WINDOW_TOKENS, MAX_REPEATS * count):
                raise UsageError(
                    f"doc_stride is {stride} with max_seq_len {length}, whose windows make {tokens:,} tokens of a "
                    f"context of {count:,}; expected at most {MAX_WINDOW_TOKENS:,}. Lower doc_stride, or give less"
                )
        return tokens

    def _bare(self, text: str) -> Any:
        """Tokenize one text whole, without special tokens."""
        return self.encode([text], truncation=False, add_special_tokens=False)[0]


def _cut_at_word(question: str, row: Any, most: int) -> str:
    """Keep whole words of at most ``most`` tokens; a first word that is longer is cut inside."""
    words = row.word_ids
    stop = most
    while stop and words[stop] == words[stop - 1]:
        stop -= 1
    return question[: row.offsets[(stop or most) - 1][1]]


def _join(question: Any, context: Any) -> Any:
    """Make inputs of the ``question`` and ``context`` that a call names."""
    if question is None or context is None:
        missing = "question" if question is None else "context"
        raise InputError(f"{missing} is missing, expected both; call it as pipe(question=..., context=...)")
    if not isinstance(question, list | tuple):
        if isinstance(context, list | tuple):
            raise InputError("context is a list and question is not; expected a list of as many questions")
        return {"question": question, "context": context}
    contexts = context if isinstance(context, list | tuple) else [context] * len(question)
    if len(contexts) != len(question):
        raise InputError(f"there are {len(question)} questions and {len(contexts)} contexts; expected equal numbers")
    return [{"question": q, "context": c} for q, c in zip(question, contexts, strict=True)]
