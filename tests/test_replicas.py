"""Many inputs: batches on replicas, pieces of bounded size, windows of many documents in one batch, many callers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pinnace.errors import MachineError, UsageError
from pinnace.runtime.machine import workers
from pinnace.runtime.pipelines import base as pipeline_base
from pinnace.runtime.pipelines.table import pipeline
from tests.conftest import OpenPipeline, same

TEXTS = ["plant " * (1 + i * 37 % 60) for i in range(80)]


@pytest.mark.parametrize("replicas", [2, 3, "auto"])
def test_replicas_give_the_same_in_order(open_pipeline: OpenPipeline, replicas: Any) -> None:
    alone = open_pipeline("text-classification", "tiny-classify")(TEXTS, top_k=None)
    pipe = open_pipeline("text-classification", "tiny-classify", batch_tokens=64, replicas=replicas)
    assert same(pipe(TEXTS, top_k=None), alone, 1e-5)
    assert same(list(pipe(iter(TEXTS), top_k=None)), alone, 1e-5)


def test_replicas_run_at_once_and_no_more(bundle_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = pipeline("classify", bundle_of("tiny-classify"), threads=2, replicas=2, batch_tokens=64)
    assert (pipe.replicas, pipe.session.threads) == (2, 1)
    lock, now, most = threading.Lock(), [0], [0]
    run = pipe.session.run

    def slow(*arguments: Any, **options: Any) -> Any:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.01)
        with lock:
            now[0] -= 1
        return run(*arguments, **options)

    monkeypatch.setattr(pipe.session, "run", slow)
    assert len(pipe(TEXTS)) == len(TEXTS)
    assert most[0] == 2


def test_a_failing_batch_ends_the_others(bundle_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = pipeline("classify", bundle_of("tiny-classify"), threads=2, replicas=2, batch_tokens=64)
    calls = []

    def broken(*_: Any, **__: Any) -> Any:
        calls.append(1)
        raise MachineError("no")

    monkeypatch.setattr(pipe.session, "run", broken)
    with pytest.raises(MachineError, match="no"):
        pipe(TEXTS)
    assert len(calls) <= 4
    assert list(workers.run_in_order(str, range(9), 3)) == list(map(str, range(9)))


def test_replicas_where_they_make_no_sense(bundle_of: Callable[[str], Path]) -> None:
    assert pipeline("generate", bundle_of("tiny-generate"), replicas=4).replicas == 1
    for wrong in (0, "many", True, None):
        with pytest.raises(UsageError, match="replicas is"):
            pipeline("classify", bundle_of("tiny-classify"), replicas=wrong)  # type: ignore[arg-type]


def test_pieces_are_bounded_in_characters(open_pipeline: OpenPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = open_pipeline("question-answering", "bert-glossary-qa")
    items = [{"question": "what?", "context": "a plant " * 8}] * 10
    want = pipe(items)
    monkeypatch.setattr(pipeline_base, "CHUNK_CHARACTERS", 200)
    sizes: list[int] = []
    answer: Callable[..., list[Any]] = type(pipe).answer

    def spy(self: Any, some: list[Any], options: Any) -> list[Any]:
        sizes.append(len(some))
        return answer(self, some, options)

    monkeypatch.setattr(type(pipe), "answer", spy)
    assert same(pipe(items), want)
    assert sizes == [3, 3, 3, 1]


def test_eight_threads_get_their_own_answers(bundle_of: Callable[[str], Path]) -> None:
    pipe = pipeline("classify", bundle_of("tiny-classify"), threads=2, replicas=2, batch_tokens=64)
    shares = [TEXTS[i::8] for i in range(8)]
    want = [pipe(share, top_k=None) for share in shares]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            assert same(list(pool.map(lambda share: pipe(share, top_k=None), shares)), want, 1e-5)


def test_long_documents_are_classified_in_shared_windows(
    open_pipeline: OpenPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = open_pipeline("text-classification", "tiny-classify", batch_tokens=64 * 8)
    long, short = "a red plant of light " * 40, "a red city"
    rows, run = [], pipe.session.run

    def spy(feeds: dict[str, Any], **options: Any) -> Any:
        rows.append(feeds["input_ids"].shape[0])
        return run(feeds, **options)

    monkeypatch.setattr(pipe.session, "run", spy)
    found = pipe([long, long, short], stride=16, max_length=64, top_k=None, function_to_apply="none")
    assert max(rows) == 8 and len(rows) == -(-sum(rows) // 8)  # windows of both texts in one batch
    monkeypatch.undo()
    windows = pipe.encode([long], max_length=64, stride=16, return_overflowing_tokens=True).encodings
    logits, weights = np.zeros(len(found[0])), [len(window) for window in windows]
    for places, outputs in pipe.batches(windows, pipe.options_type()):
        for place, row in zip(places, outputs["logits"], strict=True):
            logits += row * weights[place]
    want = dict(zip(pipe.manifest.labels, logits / sum(weights), strict=True))
    assert len(windows) > 3
    for answer in found[:2]:
        assert {one["label"]: pytest.approx(one["score"], abs=1e-5) for one in answer} == want
    assert same(found[2], pipe(short, top_k=None, function_to_apply="none"), 1e-5)
    with pytest.raises(UsageError, match="got a pair"):
        pipe({"text": "a", "text_pair": "b"}, stride=4)
    with pytest.raises(UsageError, match="stride is 64"):
        pipe("a", stride=64, max_length=64)
