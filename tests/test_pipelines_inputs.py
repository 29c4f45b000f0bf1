"""What a pipeline takes: one or many, lazily or not; and what it says when it cannot."""

from __future__ import annotations

import dataclasses
import itertools
import json
import pickle
import re
import threading
import types
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pinnace.errors import BundleError, DeadlineExceeded, InputError, UsageError
from pinnace.runtime.pipelines import base as pipeline_base
from pinnace.runtime.pipelines import call_options
from pinnace.runtime.pipelines.table import PIPELINES, pipeline
from pinnace.spec import TASK_ALIASES
from tests.conftest import DATA, TASKS, OpenPipeline, same

CHOICES = {"prompt": "A plant", "choices": ["has leaves", "is a city"]}
PAIR = {"text": "A plant", "text_pair": "has leaves"}
# Task, checkpoint, a good input, options without which the task has no answer.
EVERY: list[tuple[str, str, Any, dict[str, Any]]] = [
    ("feature-extraction", "tiny-embed", "a plant", {}),
    ("fill-mask", "tiny-mlm", "a [MASK] plant", {}),
    ("question-answering", "bert-glossary-qa", {"question": "what?", "context": "a plant"}, {}),
    ("token-classification", "bert-glossary-ner", "a plant", {}),
    ("text-classification", "tiny-classify", "a plant", {}),
    ("text-ranking", "tiny-rerank", {"query": "plant", "documents": ["a plant", "a city"]}, {}),
    ("zero-shot-classification", "tiny-nli", "a plant", {"candidate_labels": ["plant", "city"]}),
    ("multiple-choice", "tiny-choice", CHOICES, {}),
    ("next-sentence-prediction", "tiny-nsp", PAIR, {}),
    ("pretraining", "tiny-pretraining", PAIR, {}),
    ("text-generation", "tiny-generate", "a plant", {}),
]
every_task = pytest.mark.parametrize(("task", "name", "item", "options"), EVERY, ids=[row[0] for row in EVERY])


def test_every_pipeline_is_tested_here_and_is_a_task() -> None:
    assert {row[0] for row in EVERY} == set(PIPELINES)
    assert set(PIPELINES) <= set(TASK_ALIASES)


@every_task
def test_one_gives_one_and_many_give_many(
    open_pipeline: OpenPipeline, task: str, name: str, item: Any, options: dict[str, Any]
) -> None:
    pipe = open_pipeline(task, name)
    one = pipe(item, **options)
    item_result = one[0] if task == "text-classification" else one
    assert pipe([], **options) == []
    assert same(pipe([item, item], **options), [item_result, item_result])
    assert same(pipe((item,), **options), [item_result])
    stream = pipe((item for _ in range(3)), **options)
    assert isinstance(stream, Iterator)
    assert same(list(stream), [item_result] * 3)
    json.dumps(one, allow_nan=False)


@every_task
def test_wrong_inputs_are_named(
    open_pipeline: OpenPipeline, task: str, name: str, item: Any, options: dict[str, Any]
) -> None:
    pipe = open_pipeline(task, name)
    for wrong in (7, None, b"bytes", 1.5):
        with pytest.raises(InputError, match=r"expected"):
            pipe(wrong, **options)
        with pytest.raises(InputError, match=r"input 1\b.*expected"):
            pipe([item, wrong], **options)


@every_task
def test_unknown_options_name_the_nearest(
    open_pipeline: OpenPipeline, task: str, name: str, item: Any, options: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match="Did you mean 'batch_size'"):
        open_pipeline(task, name)(item, **options, batchsize=4)


@every_task
def test_a_pipeline_pickles_by_path(
    open_pipeline: OpenPipeline, task: str, name: str, item: Any, options: dict[str, Any]
) -> None:
    pipe = open_pipeline(task, name)
    expected = pipe(item, **options)
    data = pickle.dumps(pipe)
    assert len(data) < 1000
    assert same(pickle.loads(data)(item, **options), expected)  # noqa: S301


@every_task
def test_odd_texts_are_texts(
    open_pipeline: OpenPipeline, task: str, name: str, item: Any, options: dict[str, Any]
) -> None:
    texts = ["", "\u0000", "\U0001f600" * 3, "plant " * 3000, "x" * 2**20, "\u200b\u202e\ufffe"]

    def put(text: str, into: Any) -> Any:
        if isinstance(into, dict):
            return {key: put(text, value) for key, value in into.items()}
        if isinstance(into, list):
            return [text for _ in into]
        return f"[MASK] {text}" if task == "fill-mask" else text

    if task == "fill-mask":
        options = {"tokenizer_kwargs": {"truncation": True}}
    if task == "text-generation":
        options = {"handle_long_generation": "hole"}
    # Zero-shot classification refuses the empty text, as transformers does.
    fit = texts[task == "zero-shot-classification" : 4] + texts[5:]
    results = open_pipeline(task, name)([put(text, item) for text in fit], **options)
    assert len(results) == len(fit)
    json.dumps(results, allow_nan=False)
    if task in ("text-classification", "token-classification"):
        assert len(open_pipeline(task, name)([texts[4]])) == 1


def test_a_lone_surrogate_is_refused_by_name(open_pipeline: OpenPipeline) -> None:
    with pytest.raises(InputError, match="surrogate"):
        open_pipeline("text-classification", "tiny-classify")("a \ud800 b")


def test_an_empty_text_has_no_label_of_the_callers_choice(open_pipeline: OpenPipeline) -> None:
    pipe = open_pipeline("zero-shot-classification", "tiny-nli")
    for wrong, place in (("", "the input"), (["a plant", ""], "input 1")):
        with pytest.raises(InputError, match=f"{place} is an empty text"):
            pipe(wrong, candidate_labels=["plant"])


def test_streams_are_read_in_pieces(open_pipeline: OpenPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline_base, "CHUNK", 4)
    taken = []

    def texts() -> Iterator[str]:
        for i in itertools.count():
            taken.append(i)
            yield f"a plant {i}"

    stream = open_pipeline("text-classification", "tiny-classify")(texts())
    assert taken == []
    first = list(itertools.islice(stream, 6))
    assert taken == list(range(8))
    assert same(first, open_pipeline("text-classification", "tiny-classify")([f"a plant {i}" for i in range(6)]))


def test_a_streams_pieces_are_smaller_than_a_lists(
    open_pipeline: OpenPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = open_pipeline("text-classification", "tiny-classify")
    sizes: list[int] = []
    answer = pipe.answer

    def watched(items: list[Any], options: Any) -> Any:
        sizes.append(len(items))
        return answer(items, options)

    monkeypatch.setattr(pipe, "answer", watched)
    assert len(pipe(["a plant"] * 1100)) == 1100
    assert len(list(pipe(iter(["a plant"] * 1100)))) == 1100
    assert sizes == [1024, 76, 512, 512, 76]
    sizes.clear()
    long = "plant " * 10_000
    list(pipe(iter([long] * 6)))
    assert sizes == [5, 1]
    judge = open_pipeline("zero-shot-classification", "tiny-nli")
    assert judge.piece_size(judge._read_options({"candidate_labels": ["a", "b", "c"]})) == 170
    monkeypatch.setattr(type(pipe), "replicas", 24)
    assert pipe.piece_size(pipe._read_options({})) == 768


def test_an_empty_partner_is_none(open_pipeline: OpenPipeline) -> None:
    pipe = open_pipeline("text-classification", "tiny-classify")
    alone = pipe({"text": "a plant"}, top_k=None)
    assert same(pipe({"text": "a plant", "text_pair": ""}, top_k=None), alone)
    assert not same(pipe({"text": "a plant", "text_pair": "a"}, top_k=None), alone)


@pytest.mark.parametrize("wrong", ["no", "false", 0, 1, []])
def test_flags_are_true_or_false(open_pipeline: OpenPipeline, wrong: Any) -> None:
    checked = set()
    for task, name, item, needed in EVERY:
        pipe = open_pipeline(task, name)
        flags = [f.name for f in dataclasses.fields(pipe.options_type) if f.type in ("bool", "bool | None")]
        for flag in flags:
            with pytest.raises(UsageError, match=f"^{flag} is {re.escape(repr(wrong))}; expected True or False"):
                pipe(item, **needed, **{flag: wrong})
        checked |= {*flags}
    # No annotation escapes by its form.
    assert checked == {
        "add_special_tokens", "align_to_words", "clean_up_tokenization_spaces", "continue_final_message",
        "handle_impossible_answer", "is_split_into_words", "multi_label", "normalize", "return_all_scores",
        "return_full_text", "return_tensors",
    }  # fmt: skip
    assert open_pipeline("text-classification", "tiny-classify")("a", return_all_scores=np.bool_(True))


def test_a_wrong_input_in_a_list_is_told_before_anything_runs(
    open_pipeline: OpenPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = open_pipeline("text-classification", "tiny-classify")
    monkeypatch.setattr(pipeline_base, "CHUNK", 1)
    monkeypatch.setattr(pipe, "answer", lambda *_: pytest.fail("it ran"))
    with pytest.raises(InputError, match="input 2 is int"):
        pipe(["a", "b", 3])


def test_a_wrong_input_late_in_a_stream_names_its_place(
    open_pipeline: OpenPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline_base, "CHUNK", 2)
    stream = open_pipeline("text-classification", "tiny-classify")(iter(["a", "b", "c", 4]))
    assert len(list(itertools.islice(stream, 3))) == 3
    with pytest.raises(InputError, match="input 3 is int"):
        next(stream)


def test_order_is_kept_and_batches_fit_the_budget(open_pipeline: OpenPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["plant " * (1 + i * 37 % 60) for i in range(50)]
    alone = [open_pipeline("text-classification", "tiny-classify")(text, top_k=None) for text in texts]
    pipe = open_pipeline("text-classification", "tiny-classify", batch_tokens=256)
    shapes = []
    run = pipe.session.run

    def spy(feeds: dict[str, Any], **arguments: Any) -> Any:
        shapes.append(feeds["input_ids"].shape)
        return run(feeds, **arguments)

    monkeypatch.setattr(pipe.session, "run", spy)
    assert same(pipe(texts, top_k=None), alone, 1e-5)
    assert sum(rows for rows, _ in shapes) == 50
    assert len(shapes) < 20
    assert all(rows * tokens <= 256 for rows, tokens in shapes)
    shapes.clear()
    assert same(pipe(texts, top_k=None, batch_size=2), alone, 1e-5)
    assert max(rows for rows, _ in shapes) == 2


def test_windows_of_many_contexts_share_batches(open_pipeline: OpenPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = open_pipeline("question-answering", "bert-glossary-qa", batch_tokens=64 * 16)
    rows = json.loads((DATA / "qa_dev_long.json").read_text("utf-8"))[:3]
    shapes = []
    run = pipe.session.run

    def spy(feeds: dict[str, Any], **arguments: Any) -> Any:
        shapes.append(feeds["input_ids"].shape)
        return run(feeds, **arguments)

    monkeypatch.setattr(pipe.session, "run", spy)
    pipe([{"question": row["question"], "context": row["context"]} for row in rows], max_seq_len=64, doc_stride=16)
    windows = [shape[0] for shape in shapes]
    assert max(windows) == 16
    assert len(windows) == -(-sum(windows) // 16)


def test_many_threads_share_a_pipeline(open_pipeline: OpenPipeline) -> None:
    pipe = open_pipeline("text-classification", "tiny-classify", batch_tokens=64)
    texts = ["plant " * (1 + i % 9) for i in range(40)]
    expected = open_pipeline("text-classification", "tiny-classify")(texts, top_k=None)
    barrier = threading.Barrier(4)

    def ask(_: int) -> Any:
        barrier.wait()
        return pipe(texts, top_k=None)

    with ThreadPoolExecutor(4) as pool:
        assert all(same(result, expected) for result in pool.map(ask, range(4)))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_pool_of_processes_carries_a_pipeline(open_pipeline: OpenPipeline, method: str) -> None:
    pipe = open_pipeline("text-classification", "tiny-classify")
    texts = ["a plant", "a red city of light"]
    expected = [pipe(text) for text in texts]
    with ProcessPoolExecutor(1, mp_context=get_context(method)) as pool:
        assert same(list(pool.map(pipe, texts)), expected)


def test_the_bundle_of_another_task_is_refused(bundle_of: Any) -> None:
    with pytest.raises(UsageError, match=r"is for question-answering .*token-classification needs"):
        pipeline("ner", bundle_of("bert-glossary-qa"))


def test_unknown_words(bundle_of: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Did you mean 'question-answering'"):
        pipeline("question-answer", bundle_of("bert-glossary-qa"))
    with pytest.raises(UsageError, match="precision"):
        pipeline("qa", bundle_of("bert-glossary-qa"), precision="int3")
    with pytest.raises(UsageError, match="Did you mean 'cuda'"):
        pipeline("qa", bundle_of("bert-glossary-qa"), device="cud")
    with pytest.raises(UsageError, match="batch_tokens is 0"):
        pipeline("qa", bundle_of("bert-glossary-qa"), batch_tokens=0)
    with pytest.raises(BundleError):
        pipeline("qa", tmp_path / "nothing")


def test_a_timeout_stops_a_call(open_pipeline: OpenPipeline) -> None:
    pipe = open_pipeline("question-answering", "bert-glossary-qa")
    item = {"question": "what is it?", "context": "a plant with leaves " * 4000}
    with pytest.raises(DeadlineExceeded):
        pipe(item, timeout=0.05)
    assert pipe(question="what is it?", context="a plant", timeout=30)["answer"]
    with pytest.raises(UsageError, match="timeout is 0"):
        pipe(item, timeout=0)


def test_a_timeout_counts_for_all_batches(open_pipeline: OpenPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = open_pipeline("text-classification", "tiny-classify", batch_tokens=16)
    clock = itertools.count()
    monkeypatch.setattr(call_options, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    with pytest.raises(DeadlineExceeded, match="its timeout of 5 s"):
        pipe(["a plant"] * 40, timeout=5)


def test_two_inputs_by_position_are_refused(open_pipeline: OpenPipeline) -> None:
    with pytest.raises(InputError, match="got 2 inputs by position"):
        open_pipeline("feature-extraction", "tiny-embed")("a plant", "a city")


def test_too_long_without_truncation_is_refused(open_pipeline: OpenPipeline) -> None:
    with pytest.raises(InputError, match="128"):
        open_pipeline("text-classification", "tiny-classify")("plant " * 200, truncation=False)
    vector = open_pipeline("feature-extraction", "tiny-embed")("plant " * 200, pooling=None, return_tensors="np")
    assert vector.shape == (1, 128, 16)
    assert vector.dtype == np.float32


def test_a_fixed_shape_graph_gives_the_same(open_pipeline: OpenPipeline, tmp_path: Path) -> None:
    import pinnace.export

    shapes = {"tiny-classify": {"batch": 4, "sequence": 32}, "tiny-choice": {"batch": 2, "choices": 3, "sequence": 32}}
    for name, static in shapes.items():
        pinnace.export.export(str(DATA / name), task=TASKS[name], output=tmp_path / name, static=static, validate=False)
    texts = ["a plant", "red " * 9, "", "light", "the city of people", "leaves"]
    fixed = pipeline("text-classification", tmp_path / "tiny-classify", threads=1)
    assert same(fixed(texts), open_pipeline("text-classification", "tiny-classify")(texts), 1e-5)
    assert same(fixed(texts[0]), open_pipeline("text-classification", "tiny-classify")(texts[0]), 1e-5)
    assert fixed.longest == 32
    assert len(fixed("plant " * 99)) == 1
    questions = [{"prompt": text, "choices": ["a plant", "red " * i, "light"]} for i, text in enumerate(texts)]
    chooser = pipeline("multiple-choice", tmp_path / "tiny-choice", threads=1)
    assert same(chooser(questions), open_pipeline("multiple-choice", "tiny-choice")(questions), 1e-5)
    with pytest.raises(InputError, match="has 2 texts, expected the 3 of this fixed-shape graph"):
        chooser("a plant", ["red", "light"])
