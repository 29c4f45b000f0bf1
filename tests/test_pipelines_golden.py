"""Every pipeline gives what transformers 4.57 gave: keys, labels, texts and places exactly, scores to 1e-4."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from tests.conftest import DATA, OpenPipeline, golden, same

FILES = {
    "fill_mask": "fill-mask",
    "text_classification": "text-classification",
    "zero_shot": "zero-shot-classification",
    "token_classification": "token-classification",
    "question_answering": "question-answering",
    "feature_extraction": "feature-extraction",
}
CASES = [
    pytest.param(task, case, id=f"{name}-{i}")
    for name, task in FILES.items()
    for i, case in enumerate(golden(name))
    if case["model"] != "minilm"
]


@pytest.mark.filterwarnings("ignore:the target 'zebra'")
@pytest.mark.parametrize(("task", "case"), CASES)
def test_recorded_case(open_pipeline: OpenPipeline, task: str, case: dict[str, Any]) -> None:
    pipe = open_pipeline(task, case["model"])
    assert same(pipe(case["inputs"], **case["options"]), case["result"])


@pytest.mark.parametrize("task", ["text-classification", "question-answering", "token-classification"])
def test_a_list_gives_what_its_items_give_alone(open_pipeline: OpenPipeline, task: str) -> None:
    cases = golden(task.replace("-", "_"))
    name = cases[0]["model"]
    chosen = [c for c in cases if c["model"] == name and not c["options"] and not isinstance(c["inputs"], list)][:20]
    results = open_pipeline(task, name)([case["inputs"] for case in chosen])
    for result, case in zip(results, chosen, strict=True):
        assert same(result, case["result"]) or same([result], case["result"])


def answers_of(open_pipeline: OpenPipeline, name: str, rows: slice) -> tuple[list[Any], list[Any]]:
    questions = json.loads((DATA / f"{name}.json").read_text("utf-8"))[rows]
    expected = json.loads((DATA / f"{name}.transformers-4.57.json").read_text("utf-8"))[rows]
    pipe = open_pipeline("question-answering", "bert-glossary-qa")
    got = pipe(
        question=[row["question"] for row in questions],
        context=[row["context"] for row in questions],
        handle_impossible_answer=True,
        max_answer_len=40,
    )
    return got, expected


@pytest.mark.parametrize("name", ["qa_dev", "qa_dev_long"])
def test_questions_of_the_set(open_pipeline: OpenPipeline, name: str) -> None:
    got, expected = answers_of(open_pipeline, name, slice(0, 15))
    assert [i for i, pair in enumerate(zip(got, expected, strict=True)) if not same(*pair)] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qa_dev", "qa_dev_long"])
def test_many_questions_of_the_set(open_pipeline: OpenPipeline, name: str) -> None:
    got, expected = answers_of(open_pipeline, name, slice(15, None, 1 if name == "qa_dev" else 3))
    assert [i for i, pair in enumerate(zip(got, expected, strict=True)) if not same(*pair)] == []


@pytest.mark.parametrize("strategy", ["none", "simple", "first", "average", "max"])
def test_entities_of_the_set(open_pipeline: OpenPipeline, strategy: str) -> None:
    texts = [row["text"] for row in json.loads((DATA / "ner_dev.json").read_text("utf-8"))]
    expected = json.loads((DATA / "ner_dev.transformers-4.57.json").read_text("utf-8"))[strategy]
    got = open_pipeline("token-classification", "bert-glossary-ner")(texts[:60], aggregation_strategy=strategy)
    assert [i for i, pair in enumerate(zip(got, expected[:60], strict=True)) if not same(*pair)] == []


def softmax(logits: list[float]) -> Any:
    powers = np.exp(np.asarray(logits) - max(logits))
    return powers / powers.sum()


def test_heads_without_a_pipeline_there(open_pipeline: OpenPipeline) -> None:
    cases = golden("heads")
    for case in cases:
        if case["model"] == "tiny-choice":
            result = open_pipeline("multiple-choice", "tiny-choice")(**case["inputs"])
            scores = softmax(case["result"])
            assert list(result) == ["choice", "score", "scores"]
            assert result["choice"] == scores.argmax()
            assert result["score"] == max(result["scores"])
            assert np.allclose(result["scores"], scores, atol=1e-4)
        elif case["model"] == "tiny-nsp":
            result = open_pipeline("next-sentence-prediction", "tiny-nsp")(**case["inputs"])
            score = softmax(case["result"])[0]
            assert result["is_next"] is bool(score > 0.5)
            assert abs(result["score"] - score) < 1e-4
        else:
            result = open_pipeline("pretraining", "tiny-pretraining")(case["inputs"])
            assert same(result, case["result"])
    assert {case["model"] for case in cases} == {"tiny-choice", "tiny-nsp", "tiny-pretraining"}
