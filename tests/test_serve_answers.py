"""Large answers of ``pinnace serve``: written beside other requests, the same to the letter, and bounded."""

from __future__ import annotations

import json
import threading
from typing import Any

import numpy as np
import pytest

from pinnace.errors import NumericalError
from pinnace.json_text import to_json
from pinnace.runtime.server import answer
from tests.generation_bundles import decoder_of
from tests.serving import Client, Served, client, ranking, service

__all__ = ["client", "decoder_of", "ranking", "service"]

VECTORS = "/v1/pipelines/my-embed"
# Vectors of all tokens: some 300 bytes for each, so that 128 tokens of 9 texts are beyond a short answer.
MANY = {"inputs": ["plant " * 200] * 9, "parameters": {"pooling": None}}


@pytest.mark.parametrize(
    "value",
    [
        1, None, "é\u2028\"", [], {}, (), [[]], [{}], {"a": {}}, {"a": [], "b": [1, "x"]}, {1: [2], 0.5: {}},
        [1.5, [2, {"x": [3, "ü"]}], {"y": 1}], list(range(5000)), [[0.1] * 3] * 2500, np.arange(5000) / 7,
        np.zeros((2, 3, 4), np.float32), np.zeros((0, 3)), np.float32(0.1), [np.ones(2), np.int64(3)],
        {"v": np.ones(3)},
    ],
)  # fmt: skip
def test_parts_are_the_whole(value: Any) -> None:
    assert "".join(answer.json_parts(value)) == to_json(value)


@pytest.mark.parametrize("value", [float("nan"), [1.0] * 3000 + [float("inf")], {"a": [np.array([np.nan])]}])
def test_no_number_is_no_answer(value: Any) -> None:
    with pytest.raises(NumericalError):
        list(answer.json_parts(value))


def test_a_long_answer_is_not_written_by_the_thread_that_takes_requests_in(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: dict[int, int] = {}

    def spy(value: Any) -> str:
        text = to_json(value)
        thread = threading.get_ident()
        written[thread] = written.get(thread, 0) + len(text)
        return text

    monkeypatch.setattr(answer, "to_json", spy)
    status, _, body = client.request("POST", VECTORS, MANY)
    assert status == 200 and len(body) > 200_000 and np.shape(json.loads(body)) == (9, 1, 128, 16)
    assert len(written) == 2 and min(written.values()) < 70_000


def test_an_answer_that_is_too_large_is_refused(
    client: Client, service: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = client.good(VECTORS, **MANY)
    with monkeypatch.context() as patch:
        patch.setattr(answer, "MAX_ANSWER_BYTES", 100_000)
        error = client.refused(413, VECTORS, **MANY)
        assert error["code"] == "answer_too_large" and "100,000 bytes" in error["message"]
        assert client.good(VECTORS, inputs="a plant")
    assert client.good(VECTORS, **MANY) == want and not service.faults


def test_media_types_are_the_same_in_capitals(client: Client) -> None:
    for word in ("Application/JSON", "application/Problem+Json; charset=UTF-8"):
        assert client.request("POST", VECTORS, {"inputs": "a plant"}, Content_Type=word)[0] == 200
    assert client.request("POST", VECTORS, {"inputs": "a plant"}, Content_Encoding="Identity")[0] == 200
