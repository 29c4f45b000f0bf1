"""``pinnace serve``: what every address answers, who is refused and how, and the process from its start to its end."""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pinnace.cli import main
from pinnace.cli_serve import _example
from pinnace.errors import UsageError
from pinnace.runtime.pipelines import PIPELINES
from pinnace.runtime.server.models import read_names
from tests.conftest import OpenPipeline, same
from tests.generation_bundles import MakeBundle, decoder_of
from tests.serving import PATIENCE, Client, Served, served

__all__ = ["decoder_of"]

DOCUMENTS = ["a plant grows", "a city", "plant"]
TALK = [{"role": "user", "content": "x"}]
CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"


@pytest.fixture(scope="module")
def ranking(bundle_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a classifier, said to be for ranking."""
    folder = shutil.copytree(bundle_of("tiny-rerank"), tmp_path_factory.mktemp("ranking") / "rank")
    return said_to_be_for(folder, "text-ranking")


def said_to_be_for(folder: Path, task: str) -> Path:
    """Change a bundle's task to another that its head serves."""
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "task": task}))
    return folder


@pytest.fixture(scope="module")
def service(decoder_of: MakeBundle, bundle_of: Callable[[str], Path], ranking: Path) -> Iterator[Served]:
    bundles = {
        "glossary-lm": decoder_of("apertus-ort"), "my-embed": bundle_of("tiny-embed"), "my-rank": ranking,
        "glossary-qa": bundle_of("bert-glossary-qa"), "org/mlm": bundle_of("tiny-mlm"),
    }  # fmt: skip
    with served(bundles, max_request_bytes=100_000) as made:
        yield made


@pytest.fixture
def client(service: Served) -> Client:
    return service.client


def test_health_and_models(client: Client) -> None:
    assert client.get("/healthz") == {"status": "alive"}
    assert client.get("/readyz") == {"status": "ready"}
    listed = client.get("/v1/models")
    assert listed["object"] == "list" and {one["id"] for one in listed["data"]} == {
        "glossary-lm",
        "my-embed",
        "my-rank",
        "glossary-qa",
        "org/mlm",
    }
    one = client.get("/v1/models/org/mlm")
    assert one == listed["data"][-1] and one["object"] == "model" and one["task"] == "fill-mask"
    assert isinstance(one["created"], int) and one["owned_by"] == "pinnace"


def test_completions_have_openais_shape(client: Client, open_pipeline: OpenPipeline) -> None:
    answer = client.good(TEXT, model="glossary-lm", prompt="river (noun):", max_tokens=40)
    assert answer.pop("id").startswith("cmpl-") and isinstance(answer.pop("created"), int)
    text = " a person who is a member of a person. Also called dught."
    assert answer == {
        "object": "text_completion", "model": "glossary-lm",
        "choices": [{"index": 0, "text": text, "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 18, "total_tokens": 23},
    }  # fmt: skip
    stopped = client.good(
        TEXT, model="glossary-lm", prompt="river (noun):", max_tokens=40, stop=[".", "zzz"], user="me"
    )
    assert stopped["choices"][0] == {**answer["choices"][0], "text": " a person who is a member of a person"}
    short = client.good(TEXT, prompt="river (noun):", max_completion_tokens=2, seed=None)  # the only model for it
    assert (short["choices"][0]["text"], short["choices"][0]["finish_reason"]) == (" a person", "length")


def test_prompts_are_texts_or_ids_one_or_many(client: Client, service: Served) -> None:
    ids = service.serving.service.models["glossary-lm"].pipe.tokenizer.encode("river (noun):")
    one = client.good(TEXT, prompt=ids, max_tokens=5)["choices"]
    both = client.good(TEXT, prompt=["river (noun):", "glass (noun):"], max_tokens=5)
    assert one[0]["text"] == both["choices"][0]["text"]
    assert [choice["index"] for choice in both["choices"]] == [0, 1]
    assert client.good(TEXT, prompt=[ids, ids], max_tokens=5)["choices"][1]["text"] == one[0]["text"]
    assert both["usage"]["completion_tokens"] == 10


def test_chat_has_openais_shape(client: Client) -> None:
    said: dict[str, Any] = {"model": "glossary-lm", "messages": [{"role": "user", "content": "river"}]}
    answer = client.good(CHAT, **said, logprobs=True, top_logprobs=2)
    assert answer.pop("id").startswith("chatcmpl-") and isinstance(answer.pop("created"), int)
    entries = answer["choices"][0].pop("logprobs")["content"]
    message = {"role": "assistant", "content": " a person who is a member of a group.", "refusal": None}
    assert answer == {
        "object": "chat.completion", "model": "glossary-lm",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 4, "completion_tokens": 11, "total_tokens": 15},
    }  # fmt: skip
    assert "".join(entry["token"] for entry in entries) == message["content"]
    assert all(bytes(entry["bytes"]).decode() == entry["token"] for entry in entries)
    assert all(entry["top_logprobs"][0]["logprob"] == entry["logprob"] for entry in entries)  # greedy
    assert [len(entry["top_logprobs"]) for entry in entries] == [2] * 10
    parts = [{"type": "text", "text": "ri"}, {"type": "text", "text": "ver"}]
    assert client.good(CHAT, messages=[{"role": "user", "content": parts}])["choices"][0]["message"] == message


def test_logprobs_of_completions(client: Client) -> None:
    (choice,) = client.good(TEXT, prompt="river (noun):", max_tokens=4, logprobs=1)["choices"]
    found = choice["logprobs"]
    assert "".join(found["tokens"]) == choice["text"] and len(found["token_logprobs"]) == 4
    assert found["text_offset"] == [0, *np.cumsum([len(piece) for piece in found["tokens"]])[:-1].tolist()]
    assert [list(top.values()) for top in found["top_logprobs"]] == [[value] for value in found["token_logprobs"]]


def test_streams_joined_are_the_whole(client: Client) -> None:
    said: dict[str, Any] = {"messages": [{"role": "user", "content": "river"}], "max_tokens": 6}
    whole = client.good(CHAT, **said)
    *chunks, last, done = client.events(CHAT, **said, stream_options={"include_usage": True})
    assert done == "[DONE]" and (last["choices"], last["usage"]) == ([], whole["usage"])
    assert all(chunk["object"] == "chat.completion.chunk" and chunk["usage"] is None for chunk in chunks)
    assert len({chunk["id"] for chunk in [*chunks, last]}) == 1
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("content", "") for delta in deltas) == whole["choices"][0]["message"]["content"]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
    asked: dict[str, Any] = {"prompt": ["river (noun):", "a"], "max_tokens": 6, "n": 2, "temperature": 0.8, "seed": 3}
    texts = ["", "", "", ""]
    for event in client.events(TEXT, **asked, logprobs=0)[:-1]:
        (choice,) = event["choices"]
        texts[choice["index"]] += choice["text"]
    assert texts == [choice["text"] for choice in client.good(TEXT, **asked)["choices"]]


def test_embeddings(client: Client, open_pipeline: OpenPipeline) -> None:
    want = open_pipeline("embed", "tiny-embed")(["good", "a bad day"])
    answer = client.good("/v1/embeddings", model="my-embed", input=["good", "a bad day"])
    assert [sorted(one) for one in answer["data"]] == [["embedding", "index", "object"]] * 2
    assert same([one["embedding"] for one in answer["data"]], want, 1e-6)
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] > 4 and answer["model"] == "my-embed"
    (one,) = client.good("/v1/embeddings", input="good", encoding_format="base64")["data"]
    assert np.allclose(np.frombuffer(base64.b64decode(one["embedding"]), "<f4"), want[0], atol=1e-6)


def test_rerank(client: Client, open_pipeline: OpenPipeline) -> None:
    want = open_pipeline("rerank", "tiny-rerank")("plant", DOCUMENTS)
    answer = client.good("/v1/rerank", model="my-rank", query="plant", documents=DOCUMENTS)
    assert same(answer["results"], [{"index": one["index"], "relevance_score": one["score"]} for one in want], 1e-6)
    documents = [{"text": text} for text in DOCUMENTS]
    top = client.good("/v1/rerank", query="plant", documents=documents, top_n=1, return_documents=True)["results"]
    assert top == [{**answer["results"][0], "document": documents[want[0]["index"]]}]


def test_pipelines_give_what_the_pipeline_gives(client: Client, open_pipeline: OpenPipeline) -> None:
    asked = {"question": "What is a pier?", "context": "The word pier means a platform."}
    qa = open_pipeline("qa", "bert-glossary-qa")
    for inputs, parameters in ((asked, {}), ([asked] * 2, {"top_k": 2}), ([asked], {}), ([], {})):
        got = client.good("/v1/pipelines/glossary-qa", inputs=inputs, parameters=parameters) if inputs else []
        assert same(got, qa(inputs, **parameters), 1e-5)
    mlm = open_pipeline("fill-mask", "tiny-mlm")
    assert same(
        client.good("/v1/pipelines/org/mlm", inputs="a [MASK]", parameters={"top_k": 1}), mlm("a [MASK]", top_k=1)
    )
    for parameters in ({"max_new_tokens": 5}, {"max_new_tokens": 5, "num_beams": 2}):
        (record,) = client.good("/v1/pipelines/glossary-lm", inputs="river (noun):", parameters=parameters)
        assert record["generated_text"].startswith("river (noun): a person")
    talk = client.good("/v1/pipelines/glossary-lm", inputs=[{"role": "user", "content": "river"}])
    assert talk[0]["generated_text"][-1] == {"role": "assistant", "content": " a person who is a member of a group."}


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
    (400, TEXT, {"prompt": "x", "temperature": 0, "top_p": "all"}, "top_p", "'all'"),
    (400, TEXT, {"prompt": "x", "stop": [""]}, "stop", "stop"),
    (400, TEXT, {"prompt": "x", "stream": 1}, "stream", "true or false"),
    (400, TEXT, {"prompt": "x", "stream_options": {"include_usage": True}}, "stream_options", "stream_options"),
    (400, TEXT, {"prompt": "x", "logprobs": True}, "logprobs", "logprobs"),
    (400, TEXT, {"prompt": "x", "logprobs": 1000}, None, "at most 100"),
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
    (400, "/v1/pipelines/glossary-lm", {"inputs": "x", "parameters": {"timeout": 1}}, "timeout", "cannot be given"),
    (400, "/v1/pipelines/org/mlm", {"inputs": "no mask"}, None, "[MASK]"),
]  # fmt: skip


@pytest.mark.parametrize(("status", "path", "body", "param", "text"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_what_is_wrong_is_named(
    client: Client, service: Served, status: int, path: str, body: dict[str, Any], param: str | None, text: str
) -> None:
    error = client.refused(status, path, **body)
    assert text in error["message"] and error["type"] == "invalid_request_error"
    assert error["param"] == param
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
        (b'{"prompt": ' + b"1" * 5000 + b"}", 400, "not JSON"),
        (b" " * 100_001, 413, "100,000 bytes"),
    ],
)
def test_bodies_that_are_no_json(client: Client, body: bytes, status: int, text: str) -> None:
    got, _, answer = client.request("POST", TEXT, body)
    assert got == status and text in json.loads(answer)["error"]["message"]


def test_half_a_surrogate_pair_is_refused_and_a_whole_one_is_not(client: Client) -> None:
    status, _, _ = client.request("POST", TEXT, b'{"prompt": "\\ud83d\\ude00", "max_tokens": 1}')
    assert status == 200


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
    assert client.request("DELETE", "/v1/models/glossary-lm")[0] == 405


def test_requests_are_counted_and_logged(client: Client, service: Served) -> None:
    labels = {"route": "/v1/rerank", "model": "my-rank", "status": "200"}
    before = client.metric("pinnace_requests_total", **labels)
    seconds = client.metric("pinnace_request_seconds_count", route="/v1/rerank", model="my-rank")
    client.good("/v1/rerank", query="plant", documents=DOCUMENTS)
    assert client.metric("pinnace_requests_total", **labels) == before + 1
    assert client.metric("pinnace_request_seconds_count", route="/v1/rerank", model="my-rank") == seconds + 1
    assert client.metric("pinnace_tokens_in_total", model="my-rank") > 0
    client.good(TEXT, prompt="a", max_tokens=3)
    assert client.metric("pinnace_tokens_out_total", model="glossary-lm") >= 3
    record = next(one for one in reversed(service.records) if one["route"] == TEXT)
    assert (record["method"], record["status"], record["tokens_out"]) == ("POST", 200, 3)
    assert client.metric("pinnace_requests_in_flight") == client.metric("pinnace_queue_depth") == 0


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


def test_the_requests_of_the_page_are_answered(client: Client) -> None:
    page = (Path(__file__).parent.parent / "docs" / "serve.md").read_text("utf-8")
    asked = re.findall(r"curl (?:-N )?[\w.:]+(/v1/\S+) .*?-d '(\{.*?\})'$", page.replace("\\\n", ""), re.MULTILINE)
    assert len(asked) == 5
    for path, body in asked:
        status, _, answer = client.request("POST", path, json.loads(body))
        assert status == 200, (path, answer)


def test_the_command_that_is_named_next_is_answered_for_every_task(
    bundle_of: Callable[[str], Path], ranking: Path, decoder_of: MakeBundle, tmp_path: Path
) -> None:
    others = ("mlm", "choice", "classify", "nsp", "pretraining", "embed")
    bundles = {name: bundle_of(f"tiny-{name}") for name in others}
    bundles |= {name: bundle_of(f"bert-glossary-{name}") for name in ("qa", "ner")}
    bundles |= {"rank": ranking, "lm": decoder_of("apertus-ort"), "zero": tmp_path / "zero"}
    shutil.copytree(bundle_of("tiny-nli"), tmp_path / "zero")
    said_to_be_for(tmp_path / "zero", "zero-shot-classification")
    with served(bundles) as made:
        models = made.serving.service.models
        assert {model.task for model in models.values()} == {*PIPELINES}
        for model in models.values():
            words = shlex.split(_example(made.client.address, model, with_key=False))
            path, body = words[1].removeprefix(made.client.address), json.loads(words[-1])
            status, _, answer = made.client.request("POST", path, body)
            assert status == 200, (model.task, answer)


def test_names_of_models(tmp_path: Path) -> None:
    (tmp_path / "my-model").mkdir()
    (tmp_path / "a=b").mkdir()
    assert read_names([str(tmp_path / "my-model"), f"org/x={tmp_path}"]) == {
        "my-model": str(tmp_path / "my-model"), "org/x": str(tmp_path),
    }  # fmt: skip
    with pytest.raises(UsageError, match="two models"):
        read_names(["x=a", "x=b"])
    for word in (str(tmp_path / "a=b"), "a b", "/"):
        with pytest.raises(UsageError, match="no name for a model"):
            read_names([word])


Start = Callable[..., tuple["subprocess.Popen[str]", Client]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start the command in a process of its own, and wait until it serves."""
    children: list[subprocess.Popen[str]] = []

    def begun(*words: str) -> tuple[subprocess.Popen[str], Client]:
        command = [sys.executable, "-m", "pinnace", "serve", *words, "--port", "0", "--threads", "1"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PINNACE_")}
        child = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        children.append(child)
        assert child.stderr is not None
        for line in child.stderr:
            if line.startswith("next: curl "):  # the last line before the first request's
                return child, Client(line.split()[2].partition("/v1/")[0])
        raise AssertionError(f"it ended with {child.wait()}")

    yield begun
    for child in children:
        child.kill()
        child.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_service_in_order(start: Start, decoder_of: MakeBundle, number: signal.Signals) -> None:
    child, client = start(f"lm={decoder_of('apertus-ort')}")
    with client.begin(TEXT, prompt="river (noun):", max_tokens=200, logit_bias={"2": -1000}, stream=True) as stream:
        begun = b""
        while b"data: " not in begun:
            begun += stream.recv(1 << 16)
        child.send_signal(number)
        while part := stream.recv(1 << 16):  # what is under way is finished
            begun += part
        assert b"data: [DONE]" in begun and begun.count(b"data: ") > 150
    out, err = child.communicate(timeout=PATIENCE)
    assert (child.returncode, out) == (0, "")
    assert f"POST {TEXT} lm 200 " in err and "Traceback" not in err


def test_a_bundle_that_cannot_be_opened_ends_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", f"x={tmp_path}", "--port", "0"]) == 3
    assert "manifest.json" in capsys.readouterr().err


def test_a_port_that_is_taken(bundle_of: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    with served({"embed": bundle_of("tiny-embed")}) as made:
        assert main(["serve", str(bundle_of("tiny-embed")), "--port", str(made.client.place[1])]) == 5
    assert "Give another --host or --port" in capsys.readouterr().err
    assert main(["serve", "x", "--host", "no such host"]) == 5


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve", "x"]) == 4
    assert "pip install 'pinnace[serve]'" in capsys.readouterr().err


def test_other_commands_import_no_server() -> None:
    code = (
        "import sys, pinnace.cli as c; c.main(['--help']); print({'starlette', 'uvicorn', 'asyncio'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout.splitlines()[-1] == "set()"
