"""Limits and faults of ``pinnace serve``: time, places, endless runs, numbers that are none; then all is well again."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pinnace.errors import BundleError, MachineError
from pinnace.runtime.generation.slots import Slots
from tests.generation_bundles import MakeBundle, decoder_of
from tests.serving import ON, PATIENCE, TEXT, Start, served, start, with_words
from tests.test_generation_limits import endless_bundle, poisoned
from tests.test_session import endless
from tests.tiny_bundle import make_bundle

__all__ = ["decoder_of", "endless_bundle", "start"]

WORDS = ["a", "b", "loop"]
VECTORS = "/v1/pipelines/slow"


@pytest.fixture
def runaway(endless_bundle: Path, tmp_path: Path) -> dict[str, Path]:
    """A decoder and an encoder that never answer ``loop``."""
    encoder = make_bundle(tmp_path / "slow", change_graph=endless, golden=False)
    return {"lm": with_words(endless_bundle, WORDS), "slow": with_words(encoder, WORDS)}


def test_a_stream_whose_time_is_over_ends_with_an_error(
    decoder_of: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Slots.step

    def slow(self: Slots) -> Iterator[Any]:
        time.sleep(0.02)
        return step(self)

    with served({"lm": decoder_of("apertus-ort")}, timeout=2.0) as made:
        monkeypatch.setattr(Slots, "step", slow)
        events = made.client.events(TEXT, prompt="a", max_tokens=1900, **ON)
        assert events[-1]["error"]["code"] == "timeout" and len(events) > 1  # and no [DONE]
        assert made.client.refused(504, TEXT, prompt="a", max_tokens=1900, **ON)["code"] == "timeout"
        made.client.wait(lambda: made.client.metric("pinnace_running_rows") == 0)
        assert made.client.good(TEXT, prompt="a", max_tokens=1)


def test_endless_runs_are_stopped_and_the_next_request_is_answered(runaway: dict[str, Path]) -> None:
    with served(runaway, timeout=2.0) as made:
        client = made.client
        loop = {"model": "lm", "prompt": [2], "max_tokens": 4}
        asked: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
            (TEXT, loop, {**loop, "prompt": [0]}),
            ("/v1/pipelines/slow", {"inputs": "loop"}, {"inputs": "a a"}),
        ]
        for path, bad, good in asked:
            want = client.good(path, **good)
            assert client.refused(504, path, **bad)["message"].startswith("the request was stopped after 2 s")
            with client.begin(path, **bad):
                client.wait(lambda: client.metric("pinnace_running_rows") == 1)
            client.wait(lambda: client.metric("pinnace_requests_in_flight") == 0)
            got = client.good(path, **good)
            assert got.get("choices") == want.get("choices") if isinstance(got, dict) else got == want


def test_more_requests_than_may_be_are_sent_away(runaway: dict[str, Path]) -> None:
    with served(runaway, max_concurrent=2) as made:
        client = made.client
        with client.begin(VECTORS, inputs="loop"), client.begin(VECTORS, inputs="loop"):
            client.wait(lambda: client.metric("pinnace_requests_in_flight", model="slow") == 2)
            status, headers, answer = client.request("POST", VECTORS, {"inputs": "a"})
            assert (status, headers["retry-after"]) == (429, "1")
            assert json.loads(answer)["error"]["type"] == "rate_limit_error"
            assert client.good(TEXT, model="lm", prompt=[0], max_tokens=1)  # another model has its own queue
        client.wait(lambda: client.metric("pinnace_requests_in_flight", model="slow") == 0)
        assert client.good(VECTORS, inputs="a")


def test_the_end_does_not_wait_for_what_does_not_end(start: Start, runaway: dict[str, Path]) -> None:
    child, client = start(*map(str, runaway.values()), "--grace", "300ms")
    answers: list[Any] = []
    asking = threading.Thread(target=lambda: answers.append(client.post(VECTORS, inputs="loop")))
    asking.start()
    client.wait(lambda: client.metric("pinnace_running_rows") == 1)
    child.send_signal(signal.SIGTERM)
    asking.join(PATIENCE)
    assert answers[0][0] == 503 and answers[0][1]["error"]["code"] == "ending"
    child.communicate(timeout=PATIENCE)
    assert child.returncode == 0


def test_a_model_without_numbers_fails_the_request_alone(tmp_path: Path) -> None:
    with served({"lm": with_words(poisoned(tmp_path / "b", at=2), WORDS)}) as made:
        client = made.client
        want = client.good(TEXT, prompt=[[0]], max_tokens=4)["choices"]
        error = client.refused(500, TEXT, prompt=[[0], [2]], max_tokens=4)
        assert (error["code"], error["type"]) == ("numerical_error", "server_error")
        assert str(tmp_path) not in error["message"]
        assert client.metric("pinnace_numerical_errors_total", model="lm") == 1
        *_, last = client.events(TEXT, prompt=[[0], [2]], max_tokens=4)
        assert last["error"]["code"] == "numerical_error"
        assert client.refused(500, "/v1/pipelines/lm", inputs="loop")["code"] == "numerical_error"
        assert client.metric("pinnace_numerical_errors_total", model="lm") == 3 == len(made.faults)
        assert client.good(TEXT, prompt=[[0]], max_tokens=4)["choices"] == want


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (MachineError("no memory"), 503, "machine"),
        (BundleError("/secret"), 500, "internal_error"),
        (KeyError("secret"), 500, "internal_error"),
    ],
)
def test_what_goes_wrong_inside(
    decoder_of: MakeBundle, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int, code: str
) -> None:
    def fail(self: Slots) -> Iterator[Any]:
        raise error

    with served({"lm": decoder_of("apertus-ort")}) as made:
        with monkeypatch.context() as patch:
            patch.setattr(Slots, "step", fail)
            got = made.client.refused(status, TEXT, prompt="a", max_tokens=4)
        assert got["code"] == code and "secret" not in got["message"]
        assert len(made.faults) == (status == 500)
        assert made.client.good(TEXT, prompt="a", max_tokens=4)
