"""What ``pinnace serve`` refuses, and that the answer names what is wrong: requests, bodies, addresses, keys."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pinnace.runtime.chat import process as chat_process
from tests.generation_bundles import decoder_of
from tests.serving import CHAT, PATIENCE, TEXT, Client, Served, client, ranking, served, service

__all__ = ["client", "decoder_of", "ranking", "service"]

TALK = [{"role": "user", "content": "x"}]


BAD: list[tuple[int, str, dict[str, Any], str | None, str]] = [
    (404, TEXT, {"model": "glossary-ml", "prompt": "x"}, "model", "Did you mean 'glossary-lm'"),
    (404, "/v1/pipelines/nobody", {"inputs": "x"}, "model", "known: "),
    (400, TEXT, {"model": "glossary-qa", "prompt": "x"}, "model", "/v1/pipelines/glossary-qa"),
    (400, TEXT, {"model": 5, "prompt": "x"}, "model", "expected one of: glossary-lm"),
    (400, TEXT, {}, "prompt", "prompt must be"),
    (400, TEXT, {"prompt": [1, "a"]}, "prompt", "prompt 0"),
    (400, TEXT, {"prompt": [2**70]}, None, "no token"),
    (400, TEXT, {"prompt": [10**6]}, None, "the id 1000000"),
    (400, TEXT, {"prompt": "x", "max_tokens": 2**63}, "max_tokens", "max_tokens: got"),
    (400, TEXT, {"prompt": "x", "max_tokens": 10**6}, "max_tokens", "max_tokens=1,000,000"),
    (400, TEXT, {"prompt": "x", "max_tokens": 0}, "max_tokens", "max_tokens: got '0'"),
    (400, TEXT, {"prompt": "x", "max_tokens": 1, "max_completion_tokens": 2}, "max_completion_tokens", "send one"),
    (400, TEXT, {"prompt": "x", "n": 2}, "n", "temperature above 0"),
    (400, TEXT, {"prompt": ["x"] * 100, "n": 2, "temperature": 1}, None, "at most 128"),
    (400, TEXT, {"prompt": "x", "max_toks": 2}, "max_toks", "Did you mean 'max_tokens'"),
    (400, TEXT, {"prompt": "x", "echo": True}, "echo", "not supported"),
    (400, TEXT, {"prompt": "x", "best_of": True}, "best_of", "not supported"),
    (400, TEXT, {"prompt": "x", "temperature": 1e-9}, "temperature", "temperature"),
    (400, TEXT, {"prompt": "x", "temperature": "hot"}, "temperature", "'hot'"),
    (400, TEXT, {"prompt": "x", "min_p": 10**400}, "min_p", "a number from -1e+30 to 1e+30"),
    (400, TEXT, {"prompt": "x", "temperature": 0, "top_p": "all"}, "top_p", "'all'"),
    (400, TEXT, {"prompt": "x", "stop": [""]}, "stop", "stop"),
    (400, TEXT, {"prompt": "x", "stream": 1}, "stream", "true or false"),
    (400, TEXT, {"prompt": "x", "stream_options": {"include_usage": True}}, "stream_options", "stream_options"),
    (400, TEXT, {"prompt": "x", "logprobs": True}, "logprobs", "logprobs"),
    (400, TEXT, {"prompt": "x", "logprobs": 1000}, "logprobs", "at most 100"),
    (400, TEXT, {"prompt": "x", "logit_bias": {"999999": 1}}, None, "token 999999"),
    (400, TEXT, {"prompt": "x", "logit_bias": {"a": 1}}, "logit_bias", "logit_bias"),
    (400, CHAT, {"messages": []}, "messages", "at least one"),
    (400, CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages", "of the type text"),
    (400, CHAT, {"messages": [{"content": "x"}]}, None, "role"),
    (400, CHAT, {"messages": TALK, "tools": [{}]}, "tools", "not supported"),
    (400, CHAT, {"messages": TALK, "top_logprobs": 2}, "top_logprobs", "top_logprobs"),
    (400, CHAT, {"messages": TALK, "chat_template_kwargs": {"tools": 1}}, None, "'tools'"),
    (400, "/v1/embeddings", {"input": []}, "input", "at least one"),
    (400, "/v1/embeddings", {"input": [[1, 2]]}, "input", "input must be"),
    (400, "/v1/embeddings", {"input": "x", "dimensions": 2}, "dimensions", "not supported"),
    (400, "/v1/embeddings", {"input": "x", "encoding_format": "int8"}, "encoding_format", "base64"),
    (400, "/v1/rerank", {"query": "x", "documents": []}, "documents", "at least one"),
    (400, "/v1/rerank", {"query": "x", "documents": ["x"], "top_n": 0}, "top_n", "top_n"),
    (400, "/v1/rerank", {"documents": ["x"]}, "query", "query"),
    (400, "/v1/pipelines/glossary-qa", {"parameters": {}}, None, "inputs"),
    (400, "/v1/pipelines/glossary-qa", {"inputs": 5}, None, "the input"),
    (400, "/v1/pipelines/glossary-qa", {"inputs": None}, None, "the input"),
    (400, "/v1/pipelines/glossary-qa", {"inputs": [], "parameters": {"top": 1}}, None, "unknown option"),
    (400, "/v1/pipelines/glossary-qa", {"inputs": [], "parameters": {"self": 1}}, "self", "cannot be given"),
    (400, "/v1/pipelines/glossary-lm", {"inputs": [{"role": "assistant", "content": [1]}]}, None, "content of"),
    (400, "/v1/pipelines/glossary-lm", {"inputs": "x", "parameters": {"chat_template": ""}}, "chat_template", "cannot"),
    (400, "/v1/pipelines/glossary-lm", {"inputs": "x", "parameters": {"timeout": 1}}, "timeout", "cannot be given"),
    (400, "/v1/pipelines/glossary-qa", {"inputs": [], "parameters": {"top_k": [7] * 9999}}, None, "at least 1"),
    (400, "/v1/pipelines/org/mlm", {"inputs": "no mask"}, None, "[MASK]"),
]  # fmt: skip


@pytest.mark.parametrize(("status", "path", "body", "param", "text"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_what_is_wrong_is_named(
    client: Client, service: Served, status: int, path: str, body: dict[str, Any], param: str | None, text: str
) -> None:
    error = client.refused(status, path, **body)
    assert text in error["message"] and error["type"] == "invalid_request_error"
    assert error["param"] == param and len(error["message"]) < 2100
    assert not service.faults


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        (b"{", 400, "not JSON"),
        (b"[1]", 400, "a JSON list"),
        (b'{"prompt": NaN}', 400, "NaN"),
        (b'{"prompt": 1e999}', 400, "too large"),
        (b'{"prompt": "\\ud800"}', 400, "surrogate"),
        (b'{"prompt": "\xff"}', 400, "UTF-8"),
        (b"[" * 50_000, 400, "nested too deeply"),
        (b'{"prompt": "a", "metadata": ' + b'[{"x": ' * 50 + b"1" + b"}]" * 50 + b"}", 400, "nested too deeply"),
        (b'{"prompt": ' + b"1" * 5000 + b"}", 400, "not JSON"),
        (b" " * 100_001, 413, "100,000 bytes"),
    ],
)
def test_bodies_that_are_no_json(client: Client, body: bytes, status: int, text: str) -> None:
    got, _, answer = client.request("POST", TEXT, body)
    assert got == status and text in json.loads(answer)["error"]["message"]


def test_a_conversation_that_is_too_long_for_the_template(
    client: Client, service: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe: Any = service.serving.service.models["glossary-lm"].pipe
    template = pipe.template
    with monkeypatch.context() as patch:
        patch.setattr(chat_process, "FUEL", 1000)
        template.close()
        message = client.refused(400, CHAT, messages=TALK * 1000)["message"]
        assert "the chat template fails, it takes more than" in message and not service.faults
    template.close()
    assert client.good(CHAT, messages=TALK, max_tokens=1)


def test_half_a_surrogate_pair_is_refused_and_a_whole_one_is_not(client: Client) -> None:
    status, _, _ = client.request("POST", TEXT, b'{"prompt": "\\ud83d\\ude00", "max_tokens": 1}')
    assert status == 200


def test_what_is_nested_less_deeply_is_answered(client: Client) -> None:
    inside: Any = 1
    for _ in range(90):
        inside = [inside]
    talk = [{"role": "user", "content": "x", "more": [inside] * 50}]
    parameters = {"max_new_tokens": 1}
    (record,) = client.good("/v1/pipelines/glossary-lm", inputs=talk, parameters=parameters)
    assert record["generated_text"][0] == talk[0]


def test_a_large_body_is_refused_before_it_is_read(client: Client) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    for more in (b"Content-Length: 99999999999\r\n\r\n", b"Content-Length: 99999999999999999999\r\n\r\n"):
        with socket.create_connection(client.place, PATIENCE) as connection:
            connection.sendall(head + more)
            assert connection.recv(100).startswith(b"HTTP/1.1 413 ")
    status, _, answer = client.request("POST", TEXT, b"x", Content_Type="text/plain")
    assert status == 415 and b"application/json" in answer
    assert client.request("POST", TEXT, b"x", Content_Encoding="gzip")[0] == 415


def test_addresses_and_methods_that_are_not_there(client: Client) -> None:
    status, _, answer = client.request("GET", "/v1/nothing")
    assert status == 404 and "/v1/rerank" in json.loads(answer)["error"]["message"]
    status, headers, _ = client.request("GET", CHAT)
    assert (status, headers["allow"]) == (405, "POST")
    assert client.request("DELETE", "/v1/models/glossary-lm")[1]["allow"] == "GET, HEAD"
    assert client.request("HEAD", "/v1/models")[::2] == (200, b"")
    for path in ("/v1/models/", "/v1/models/a%0Ab", "/%2e%2e/%00", "//"):
        status, headers, answer = client.request("GET", path)
        assert (status, headers["content-type"]) == (404, "application/json"), path
        assert json.loads(answer)["error"]["type"] == "invalid_request_error"


def test_a_key_is_asked_for(bundle_of: Callable[[str], Path]) -> None:
    with served({"embed": bundle_of("tiny-embed")}, api_key="open sesame") as made:
        client = made.client
        assert client.get("/healthz") and client.get("/readyz")
        for headers in ({}, {"Authorization": "Bearer no"}, {"Authorization": "Basic open sesame"}):
            status, got, answer = client.request("GET", "/v1/models", **headers)
            assert (status, got["www-authenticate"]) == (401, "Bearer")
            assert json.loads(answer)["error"]["type"] == "authentication_error"
            assert client.request("POST", "/v1/embeddings", {"input": "x"}, **headers)[0] == 401
        good = {"Authorization": "Bearer open sesame"}
        assert client.request("POST", "/v1/embeddings", {"input": "x"}, **good)[0] == 200
        assert "sesame" not in repr(made.serving.service.settings)
