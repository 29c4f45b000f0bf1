"""One text with many others: what a small request becomes is made slice by slice, and the answers stay the same."""

from __future__ import annotations

from typing import Any, TypeAlias

import pytest

from pinnace.errors import DeadlineExceeded
from pinnace.runtime.engine.cancellation import Cancellation
from pinnace.runtime.pipelines import token_rows
from tests.conftest import OpenPipeline

LONG = "a plant has leaves " * 40
MANY = ["red " * (1 + i % 7) for i in range(30)]
PADDED = "{}" + " " * 500
Case: TypeAlias = tuple[str, str, Any, dict[str, Any]]
# Task, checkpoint, and an input that holds one long text and many short ones.
MULTIPLIED: list[Case] = [
    ("text-ranking", "tiny-rerank", {"query": LONG, "documents": MANY}, {}),
    ("multiple-choice", "tiny-choice", {"prompt": LONG, "choices": MANY}, {}),
    ("zero-shot-classification", "tiny-nli", LONG, {"candidate_labels": MANY}),
    ("zero-shot-classification", "tiny-nli", "red", {"candidate_labels": MANY, "hypothesis_template": PADDED}),
]  # fmt: skip
every_task = pytest.mark.parametrize("case", MULTIPLIED)


@every_task
def test_pairs_are_tokenized_in_slices(
    open_pipeline: OpenPipeline, monkeypatch: pytest.MonkeyPatch, case: Case
) -> None:
    task, name, item, options = case
    pipe = open_pipeline(task, name)
    want, encode = pipe(item, **options), pipe.encode
    sizes: list[int] = []

    def spy(texts: list[str], partners: list[str] | None = None, **arguments: Any) -> Any:
        sizes.append(sum(map(len, texts)) + sum(map(len, partners or [])))
        return encode(texts, partners, **arguments)

    monkeypatch.setattr(token_rows, "SLICE_CHARACTERS", 2000)
    monkeypatch.setattr(pipe, "encode", spy)
    assert pipe(item, **options) == want
    assert len(sizes) > 3 and max(sizes) < 2000 + len(LONG) + 600


@every_task
def test_a_call_ends_between_slices(open_pipeline: OpenPipeline, monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    task, name, item, options = case
    pipe, switch = open_pipeline(task, name), Cancellation()
    encode = pipe.encode
    calls: list[Any] = []

    def cancelling(*texts: Any, **arguments: Any) -> Any:
        switch.cancel()
        calls.append(texts)
        return encode(*texts, **arguments)

    monkeypatch.setattr(token_rows, "SLICE_CHARACTERS", 2000)
    monkeypatch.setattr(pipe, "encode", cancelling)
    with pytest.raises(DeadlineExceeded):
        pipe(item, cancellation=switch, **options)
    assert len(calls) == 1


def test_a_row_is_what_the_tokenizer_gave(open_pipeline: OpenPipeline) -> None:
    pipe = open_pipeline("text-ranking", "tiny-rerank")
    pairs = [("a plant", "red"), (LONG, None), ("", ""), ("red", LONG), ("", None)]
    for pair, row in zip(pairs, pipe.encode_pairs(pairs), strict=True):
        want = pipe.encode([pair[0]], None if pair[1] is None else [pair[1]]).encodings[0]
        assert (len(row), *map(list, (row.ids, row.type_ids, row.attention_mask))) == (
            len(want), want.ids, want.type_ids, want.attention_mask,
        )  # fmt: skip
