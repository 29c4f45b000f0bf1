"""Limits and faults of ``pinnace serve``: time, places, endless runs, numbers that are none; then all is well again."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pinnace.errors import BundleError, MachineError
from pinnace.json_text import to_json
from pinnace.runtime.generation.slots import Slots
from pinnace.runtime.server import answer
from tests.generation_bundles import MakeBundle, decoder_of
from tests.serving import ON, PATIENCE, TEXT, Start, served, start, with_words
from tests.test_generation_limits import endless_bundle, poisoned
from tests.test_session import endless
from tests.tiny_bundle import make_bundle

__all__ = ["decoder_of", "endless_bundle", "start"]

WORDS = ["a", "b", "loop"]
VECTORS = "/v1/pipelines/slow"
# Some 350 kB of vectors, 1152 of them.
LARGE = {"inputs": ["plant " * 200] * 9, "parameters": {"pooling": None}}


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


@pytest.mark.parametrize(("grace", "asked"), [(0.2, 1), (PATIENCE, 2)])
def test_a_request_that_is_still_read_ends_with_the_service(
    bundle_of: Callable[[str], Path], grace: float, asked: int
) -> None:
    with served({"embed": bundle_of("tiny-embed")}, grace=grace) as made:
        connection = http.client.HTTPConnection(*made.client.place, timeout=PATIENCE)
        connection.putrequest("POST", "/v1/embeddings")
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", "50")
        connection.endheaders(b"{")
        made.client.wait(lambda: len(made.serving.service.exchanges) == 1)
        for _ in range(asked):
            made.serving.end()
        response = connection.getresponse()
        assert response.status == 503 and json.loads(response.read())["error"]["code"] == "ending"


def test_an_answer_that_takes_too_long_to_write_is_late(
    bundle_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []

    def slow(value: Any) -> str:
        written.append(value)
        time.sleep(0.02 if len(written) > 400 else 0)  # the first are written with nobody else at work
        return to_json(value)

    with served({"embed": bundle_of("tiny-embed")}, timeout=5.0) as made:
        with monkeypatch.context() as patch:
            patch.setattr(answer, "to_json", slow)
            assert made.client.refused(504, "/v1/pipelines/embed", **LARGE)["code"] == "timeout"
        assert made.client.good("/v1/pipelines/embed", **LARGE)
    assert 400 < len(written) < 1000  # what nobody waits for is not written to its end


@pytest.mark.parametrize(
    ("path", "body"),
    [(TEXT, {"prompt": "a", "max_tokens": 1500, "logprobs": 5, "stream": True, **ON}), ("/v1/pipelines/embed", LARGE)],
)
def test_an_answer_that_is_not_read_ends_in_time_and_keeps_its_place_until_then(
    decoder_of: MakeBundle, bundle_of: Callable[[str], Path], path: str, body: dict[str, Any]
) -> None:
    with served({"lm": decoder_of("apertus-ort"), "embed": bundle_of("tiny-embed")}, timeout=5.0) as made:
        client = made.client
        made.serving._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # connections have it from here
        with client.begin(path, **body) as idle:
            begun = idle.recv(1)
            assert begun and client.metric("pinnace_requests_in_flight") == 1
            client.wait(lambda: any(record["method"] == "POST" for record in made.records))
            assert next(record["status"] for record in made.records if record["method"] == "POST") == 504
            client.wait(lambda: client.metric("pinnace_requests_in_flight") == 0)
            while part := idle.recv(1 << 16):  # the connection is closed
                begun += part
            assert begun.startswith(b"HTTP/1.1 200 ") and b"timeout" not in begun and b"[DONE]" not in begun


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
