"""``/v1/embeddings``, ``/v1/rerank``, ``/v1/pipelines/{model}``: vectors, ranked documents, any pipeline's answer."""

from __future__ import annotations

import base64
from collections.abc import Collection, Mapping
from typing import Any, Final

import numpy as np

from pinnace.errors import unknown_word
from pinnace.runtime.pipelines.feature_extraction import FeatureExtractionPipeline
from pinnace.runtime.server.exchange import Exchange
from pinnace.runtime.server.failures import Refused
from pinnace.runtime.server.parameters import read_switch
from pinnace.runtime.server.work import Call

# Options that only a caller in the same process can give, among them a program; the service's own limit; no options.
_NOT_BY_HTTP: Final = ("cancellation", "shared_prefix", "chat_template", "timeout", "inputs", "self")


async def embeddings(exchange: Exchange) -> None:
    """Give one vector for each text, in OpenAI's form."""
    body = await exchange.read()
    model = exchange.choose(body.get("model"), FeatureExtractionPipeline.task)
    _check_known(body, ("input", "model", "encoding_format", "user"), ("dimensions",), "embeddings")
    texts = [body["input"]] if isinstance(body.get("input"), str) else body.get("input")
    if not isinstance(texts, list) or not texts or not all(isinstance(one, str) for one in texts):
        raise Refused(400, "input must be a text, or a list of at least one text", param="input")
    encoding = body.get("encoding_format") or "float"
    if encoding not in ("float", "base64"):
        raise Refused(
            400, f"encoding_format is {str(encoding)[:80]!r}; expected float or base64", param="encoding_format"
        )
    if model.pipe.manifest.pooling is None:
        raise Refused(
            400, f"{model.name} gives vectors of tokens, not of texts: its checkpoint was no sentence-transformers "
            f"folder; use /v1/pipelines/{model.name} with the parameter pooling", param="model",
        )  # fmt: skip
    vectors = await exchange.result(lambda pipe, _call: pipe(texts, return_tensors=True))
    data = [
        {"object": "embedding", "index": index, "embedding": _encoded(vector, encoding)}
        for index, vector in enumerate(vectors)
    ]
    await exchange.reply({"object": "list", "data": data, "model": model.name, "usage": _usage(exchange.call)})


async def rerank(exchange: Exchange) -> None:
    """Order documents by how well they answer a query, in the form of Cohere and Jina."""
    body = await exchange.read()
    model = exchange.choose(body.get("model"), "text-ranking")
    known = ("query", "documents", "top_n", "return_documents", "model")
    _check_known(body, known, ("max_tokens_per_doc", "max_chunks_per_doc", "rank_fields"), "rerank")
    given, top = body.get("documents"), body.get("top_n")
    if not isinstance(body.get("query"), str):
        raise Refused(400, "query must be a text", param="query")
    documents = [one.get("text") if isinstance(one, dict) else one for one in given] if isinstance(given, list) else []
    if not documents or not all(isinstance(one, str) for one in documents):
        raise Refused(400, "documents must be a list of at least one text, or objects with a text", param="documents")
    if top is not None and (type(top) is not int or top < 1):
        raise Refused(400, f"top_n is {str(top)[:80]!r}; expected a whole number of at least 1", param="top_n")
    full = read_switch(body, "return_documents")
    ranked = await exchange.result(lambda pipe, _call: pipe(body["query"], documents, top_k=top))
    results = [
        {"index": one["index"], "relevance_score": one["score"]}
        | ({"document": {"text": documents[one["index"]]}} if full else {})
        for one in ranked
    ]
    await exchange.reply({"model": model.name, "results": results, "usage": _usage(exchange.call)})


async def pipelines(exchange: Exchange) -> None:
    """Give what the pipeline returns for ``inputs`` with the options ``parameters``."""
    body = await exchange.read()
    exchange.choose(exchange.request.path_params["model"])
    _check_known(body, ("inputs", "parameters"), (), "pipelines")
    parameters = body.get("parameters") or {}
    if "inputs" not in body or not isinstance(parameters, dict):
        raise Refused(400, 'expected {"inputs": ..., "parameters": {...}}, the parameters being optional')
    for name in _NOT_BY_HTTP:
        if name in parameters:
            raise Refused(400, f"{name} cannot be given here", param=name)

    def answer(pipe: Any, call: Call) -> Any:
        inputs = body["inputs"]
        if not isinstance(inputs, str | list | dict):
            pipe.check_input(inputs, "the input")  # so that no pipeline takes it for inputs that are left out
        return pipe(inputs, cancellation=call, **parameters)

    await exchange.reply(await exchange.result(answer))


def _check_known(body: Mapping[str, Any], known: Collection[str], unsupported: Collection[str], what: str) -> None:
    for name, value in body.items():
        if name in unsupported and value is not None:
            raise Refused(400, f"{name} is not supported here; leave it out", param=name, code="unsupported")
        if name not in known and name not in unsupported:
            raise Refused(400, str(unknown_word(f"parameter of {what}", name[:100], known)), param=name[:100])


def _encoded(vector: Any, encoding: str) -> Any:
    if encoding == "float":
        return vector.tolist()
    return base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode("ascii")


def _usage(call: Call) -> dict[str, int]:
    return {"prompt_tokens": call.tokens_in, "total_tokens": call.tokens_in}
