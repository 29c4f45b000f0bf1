"""Encoders' requests at work together: answered as alone, their tokens counted, and stopped each by its own call."""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pinnace.errors import DeadlineExceeded, InputError
from pinnace.runtime.pipelines.table import pipeline
from pinnace.runtime.server.views import encoder_view
from pinnace.runtime.server.work import Call
from tests.conftest import DATA, same
from tests.serving import PATIENCE, served


class Gate:
    """Holds a session's first run until it is opened, and counts the rows of each."""

    def __init__(self, pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[int] = []
        self.reached, self.opened = threading.Event(), threading.Event()
        run = type(pipe.session).run

        def watched(session: Any, feeds: Any, **limits: Any) -> Any:
            self.rows.append(len(feeds["input_ids"]))
            self.reached.set()
            assert self.opened.wait(PATIENCE)
            return run(session, feeds, **limits)

        monkeypatch.setattr(type(pipe.session), "run", watched)
        pipe.shared_runs.at_once = 1


def test_what_waits_is_answered_together_and_as_alone(
    bundle_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = pipeline("fill-mask", bundle_of("tiny-mlm"), threads=1)
    texts = [f"the {'plant ' * i}[MASK]" for i in range(6)]
    want = [pipe(text) for text in texts]
    two = pipe(texts[0], top_k=2)
    gate = Gate(pipe, monkeypatch)
    calls = [Call() for _ in range(7)]

    def waits(rows: int) -> None:
        while pipe.shared_runs.waiting < rows:
            time.sleep(0.005)

    with ThreadPoolExecutor(7) as pool:

        def ask(number: int, given: str | list[str], **options: Any) -> Any:
            return pool.submit(encoder_view(pipe, calls[number]), given, **options)

        first = ask(0, texts[0])
        assert gate.reached.wait(PATIENCE)
        rest = [ask(1, texts[1]), ask(2, texts[2:4]), ask(3, texts[0], top_k=2), ask(4, texts[4])]
        waits(5)
        gone = ask(5, texts[5])
        waits(6)
        assert pipe.shared_runs.running == 1
        calls[5].cancel()
        with pytest.raises(DeadlineExceeded, match="cancelled"):
            gone.result(PATIENCE)
        with pytest.raises(InputError, match=r"\[MASK\]") as alone:
            ask(6, "no place").result(PATIENCE)
        with pytest.raises(InputError) as said:
            pipe("no place")
        assert str(alone.value) == str(said.value)
        gate.opened.set()
        for asked, wanted in zip([first, *rest], [want[0], want[1], want[2:4], two, want[4]], strict=True):
            assert same(asked.result(PATIENCE), wanted)
    assert gate.rows == [1, 5]
    sizes = [len(pipe.encode(text).input_ids) for text in texts]
    assert [call.tokens_in for call in calls[:5]] == [sizes[0], sizes[1], sizes[2] + sizes[3], sizes[0], sizes[4]]
    assert (pipe.shared_runs.waiting, pipe.shared_runs.running) == (0, 0)


def test_a_request_that_leaves_does_not_take_others_along(
    bundle_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = pipeline("embed", bundle_of("tiny-embed"), threads=1)
    want = pipe("good")
    gate = Gate(pipe, monkeypatch)
    calls = [Call() for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(encoder_view(pipe, calls[0]), "first")]
        assert gate.reached.wait(PATIENCE)
        for count in (1, 2):
            asked.append(pool.submit(encoder_view(pipe, calls[count]), "good"))
            while pipe.shared_runs.waiting < count:
                time.sleep(0.005)
        calls[0].cancel()
        gate.opened.set()
        with pytest.raises(DeadlineExceeded):
            asked[0].result(PATIENCE)
        calls[1].cancel()
        with contextlib.suppress(DeadlineExceeded):  # unless it was faster
            asked[1].result(PATIENCE)
        assert same(asked[2].result(PATIENCE), want)


def test_a_request_keeps_its_options_and_their_clock(bundle_of: Callable[[str], Path]) -> None:
    pipe = pipeline("embed", bundle_of("tiny-embed"), threads=1)
    text = "good and bad " * 20
    for options in ({"tokenize_kwargs": {"max_length": 8}}, {"max_length": 8}):
        assert same(encoder_view(pipe, Call())(text, **options), pipe(text, max_length=8))
    assert not same(pipe(text), pipe(text, max_length=8))
    with pytest.raises(DeadlineExceeded, match="timeout"):
        encoder_view(pipe, Call())([text] * 2000, timeout=0.001)


def test_embeddings_have_the_default_prompt_of_the_folder(bundle_of: Callable[[str], Path], tmp_path: Path) -> None:
    import pinnace.export

    source = shutil.copytree(DATA / "tiny-embed", tmp_path / "source")
    prompts = {"prompts": {"query": "the word "}, "default_prompt_name": "query"}
    (source / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    pinnace.export.export(str(source), task="embed", output=tmp_path / "bundle", validate=False)
    plain = pipeline("embed", bundle_of("tiny-embed"), threads=1)
    with served({"embed": tmp_path / "bundle"}) as made:
        (vector,) = made.client.good("/v1/embeddings", input="red")["data"]
        other = made.client.good("/v1/pipelines/embed", inputs="red", parameters={"prompt_name": "document"})
    assert same(vector["embedding"], plain("the word red"), 1e-6)
    assert same(other, plain("red"), 1e-6)
