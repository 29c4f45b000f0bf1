"""Question answering beyond the recorded cases: spans against brute force, limits, forms of input."""

from __future__ import annotations

from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from pinnace.errors import InputError, UsageError
from pinnace.runtime.pipelines import question_answering
from pinnace.runtime.pipelines.qa_windows import best_spans
from tests.conftest import OpenPipeline, same

CONTEXT = "In this text, a tall plant is called a tree. The word bulkhead means a partition of a ship."
QUESTION = "What is bulkhead?"


@pytest.fixture
def pipe(open_pipeline: OpenPipeline) -> Any:
    return open_pipeline("question-answering", "bert-glossary-qa")


@hypothesis.given(
    seed=st.integers(0, 10**6), tokens=st.integers(1, 12), top=st.integers(1, 20), longest=st.integers(1, 15)
)
@hypothesis.settings(max_examples=60)
def test_best_spans_are_those_of_brute_force(seed: int, tokens: int, top: int, longest: int) -> None:
    generator = np.random.default_rng(seed)
    start, end = generator.normal(size=(2, 3, tokens)).astype(np.float32) * 3
    context = generator.random((3, tokens)) < 0.7
    context[:, 0] = False
    found = best_spans(start, end, context, top=top, max_answer_len=longest)
    for row in range(3):
        counted = context[row].copy()
        counted[0] = True
        powers = [np.where(counted, np.exp(logits[row].astype(float)), 0) for logits in (start, end)]
        first, last = (p / p.sum() for p in powers)
        every = sorted(
            (
                (first[s] * last[e], s, e)
                for s in range(tokens)
                for e in range(s, min(s + longest, tokens))
                if context[row, s] and context[row, e]
            ),
            reverse=True,
        )[:top]
        assert [(s, e) for _, s, e in every] == list(zip(found[row].start, found[row].end, strict=True))
        assert np.allclose([score for score, _, _ in every], found[row].score, rtol=1e-4)
        assert np.isclose(found[row].null_score, first[0] * last[0], rtol=1e-4)


def test_all_forms_of_a_question_agree(pipe: Any) -> None:
    one = pipe(question=QUESTION, context=CONTEXT)
    assert CONTEXT[one["start"] : one["end"]] == one["answer"] != ""
    row = {"question": QUESTION, "context": CONTEXT}
    for same_thing in (pipe(row), pipe(QUESTION, CONTEXT), pipe(row, top_k=1)):
        assert same(same_thing, one)
    for many in (
        pipe([row, row]),
        pipe(question=[QUESTION, QUESTION], context=CONTEXT),
        pipe(question=[QUESTION, QUESTION], context=[CONTEXT, CONTEXT]),
    ):
        assert same(many, [one, one])
    three = pipe(row, top_k=3)
    assert len(three) == 3
    assert same(three[0], one)
    assert three[0]["score"] >= three[1]["score"] >= three[2]["score"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"question": QUESTION}, "context is missing"),
        ({"context": CONTEXT}, "question is missing"),
        ({"question": [QUESTION], "context": [CONTEXT, CONTEXT]}, "1 questions and 2 contexts"),
        ({"question": QUESTION, "context": [CONTEXT]}, "context is a list and question is not"),
        ({"question": QUESTION, "context": None}, "context is missing"),
        ({"question": 3, "context": CONTEXT}, "'question' of the input is int"),
        ({"question": [QUESTION, 4], "context": CONTEXT}, "'question' of input 1 is int"),
    ],
)
def test_wrong_questions_are_named(pipe: Any, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        pipe(**arguments)


def test_an_input_given_twice_or_with_other_keys(pipe: Any) -> None:
    with pytest.raises(InputError, match="twice"):
        pipe({"question": QUESTION, "context": CONTEXT}, question=QUESTION)
    with pytest.raises(InputError, match="'text'"):
        pipe({"question": QUESTION, "text": CONTEXT})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"top_k": 0}, "top_k is 0"),
        ({"top_k": None}, "top_k is None"),
        ({"max_answer_len": 0}, "max_answer_len is 0"),
        ({"max_seq_len": -3}, "max_seq_len is -3"),
        ({"doc_stride": 64, "max_seq_len": 64}, "doc_stride is 64 with max_seq_len 64"),
        ({"max_answer_length": 3}, "Did you mean 'max_answer_len'"),
    ],
)
def test_unfit_options(pipe: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        pipe(question=QUESTION, context=CONTEXT, **options)


def test_a_context_without_words_has_an_empty_answer(pipe: Any) -> None:
    nothing = {"score": 0.0, "start": 0, "end": 0, "answer": ""}
    assert pipe(question=QUESTION, context="") == nothing
    assert pipe(question=QUESTION, context=" \n\u200b") == nothing
    assert pipe(question=QUESTION, context="", top_k=2) == []
    impossible = pipe(question=QUESTION, context="", handle_impossible_answer=True)
    assert impossible["answer"] == ""
    assert impossible["score"] > 0


def test_a_long_question_is_cut_only_where_it_must_be(pipe: Any) -> None:
    question = "bulkhead " * 6 + "What is the word that means a partition of the ship of the people " * 20
    one = pipe(question=question, context=CONTEXT * 30)
    assert (CONTEXT * 30)[one["start"] : one["end"]] == one["answer"]
    shown: list[str] = pipe._cut_questions([(question, CONTEXT * 30)], 384, 128, pipe._read_options({}))
    assert question.startswith(shown[0])
    assert 50 < len(pipe._bare(shown[0])) <= 64
    # One that leaves room, or whose context is short, stays whole.
    whole = "bulkhead " * 60
    assert pipe._cut_questions([(whole, CONTEXT)], 384, 128, pipe._read_options({})) == [whole]
    asked = pipe._read_options({"max_question_len": 10})
    assert pipe._cut_questions([("plant " * 20, CONTEXT)], 384, 128, asked) == [("plant " * 10).strip()]


def test_a_question_is_cut_at_a_word(pipe: Any) -> None:
    question = "the counterrevolutionaries of undersea megaplankton"
    row = pipe._bare(question)
    sizes = [row.word_ids.count(word) for word in sorted(set(row.word_ids))]
    assert sizes[0] == 1
    assert sizes[1] > 2
    cut = pipe._cut_questions([(question, CONTEXT)], 384, 128, pipe._read_options({"max_question_len": 3}))
    assert cut == ["the"]
    cut = pipe._cut_questions([(question[4:], CONTEXT)], 384, 128, pipe._read_options({"max_question_len": 2}))
    assert question[4:].startswith(cut[0])
    assert 0 < len(cut[0]) < len("counterrevolutionaries")


def test_an_answer_across_windows_is_found_in_a_huge_context(pipe: Any) -> None:
    filler = "It was late. The people of the city have light. "
    context = filler * 100 + CONTEXT + filler * 100
    result = pipe(question=QUESTION, context=context)
    assert result["answer"] == "a partition of a ship"
    assert context[result["start"] : result["end"]] == result["answer"]


def test_windows_that_share_too_much_are_refused_before_they_are_made(
    pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"question": "light", "context": "light " * 4000}
    shared = pipe._read_options({"doc_stride": 379})
    monkeypatch.setattr(pipe, "batches", lambda *_: pytest.fail("windows were made"))
    with pytest.raises(UsageError, match=r"doc_stride is 379 .* context of 4,000; expected at most 1,048,576"):
        pipe.answer([(row["question"], row["context"])], shared)


def test_contexts_are_read_in_portions(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"question": QUESTION, "context": CONTEXT * n} for n in (1, 30, 1, 20, 40, 1)]
    want = pipe(rows, doc_stride=200)
    portions = []
    at_once = pipe._answer_at_once

    def spy(items: list[Any], *arguments: Any) -> Any:
        portions.append(len(items))
        return at_once(items, *arguments)

    monkeypatch.setattr(question_answering, "MAX_WINDOW_TOKENS", 10_000)
    monkeypatch.setattr(question_answering, "MAX_REPEATS", 100)
    monkeypatch.setattr(pipe, "_answer_at_once", spy)
    assert same(pipe(rows, doc_stride=200), want)
    assert sum(portions) == len(rows) and len(portions) > 2
