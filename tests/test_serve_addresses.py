"""What each address of ``pinnace serve`` answers to a good request: OpenAI's forms, and every pipeline's own."""

from __future__ import annotations

import base64
import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pinnace.cli.serve import _example
from pinnace.runtime.pipelines.table import PIPELINES
from tests.conftest import OpenPipeline, same
from tests.generation_bundles import MakeBundle, decoder_of
from tests.serving import CHAT, TEXT, Client, Served, client, ranking, said_to_be_for, served, service

__all__ = ["client", "decoder_of", "ranking", "service"]

DOCUMENTS = ["a plant grows", "a city", "plant"]


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


def test_an_address_may_name_the_host(client: Client) -> None:
    assert client.get(f"{client.address}/healthz") == {"status": "alive"}
    assert client.get("HTTP://elsewhere/v1/models/org/mlm")["id"] == "org/mlm"
    assert client.good(f"{client.address}/v1/embeddings", input="a plant")
    assert client.request("GET", client.address)[0] == 404


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
    others = ("mlm", "choice", "nsp", "pretraining", "embed")
    bundles = {name: bundle_of(f"tiny-{name}") for name in others}
    bundles["classify"] = bundle_of("tiny-rerank")
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
