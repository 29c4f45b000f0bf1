"""Ask ``pinnace serve`` with the client of OpenAI, unchanged, and check what it makes of the answers.

It runs in an environment of its own, without Pinnace (docs/interop.md has the lines)::

    python tests/interop_openai.py --pinnace-python PYTHON DECODER EMBEDDER

The bundles are exports of ``tests/data/apertus-glossary`` and of a checkpoint that pools, as ``tests/data/tiny-embed``.
Exit code 1: an answer is not as it must be.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import openai

KEY: Final = "open sesame"
RIVER: Final = " a person who is a member of a group."
TALK: Final[list[Any]] = [{"role": "user", "content": "river"}]
ENDLESS: Final = {"2": -1000}
"""The end token does not come."""


@contextlib.contextmanager
def served(python: Path, decoder: Path, embedder: Path) -> Iterator[str]:
    """Serve the bundles, two requests at a time, for the length of the block."""
    command = [str(python), "-m", "pinnace", "serve", f"lm={decoder}", f"embed={embedder}"]
    command += ["--port", "0", "--max-concurrent", "2", "--threads", "1", "--json", "-q"]
    environment = {**os.environ, "PINNACE_API_KEY": KEY}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
        try:
            line = child.stdout.readline() if child.stdout else ""
            if not line:
                raise SystemExit("the service did not start")
            yield json.loads(line)["address"] + "/v1"
        finally:
            child.terminate()


def chat(client: openai.OpenAI) -> None:
    """A message, whole."""
    found = client.chat.completions.create(model="lm", messages=TALK)
    (choice,) = found.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", RIVER, "stop")
    assert found.usage is not None
    assert (found.usage.prompt_tokens, found.usage.completion_tokens, found.usage.total_tokens) == (4, 11, 15)


def chat_stream(client: openai.OpenAI) -> None:
    """A message in chunks; the counts behind it where they are asked for."""
    chunks = list(client.chat.completions.create(model="lm", messages=TALK, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == RIVER
    assert (chunks[0].choices[0].delta.role, chunks[-1].choices[0].finish_reason) == ("assistant", "stop")
    *chunks, last = client.chat.completions.create(
        model="lm", messages=TALK, stream=True, stream_options={"include_usage": True}
    )
    assert last.usage is not None and (last.choices, last.usage.total_tokens) == ([], 15)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == RIVER
    assert all(chunk.usage is None for chunk in chunks)


def chat_reader(client: openai.OpenAI) -> None:
    """A message that the client's own reader of streams puts together."""
    with client.chat.completions.stream(model="lm", messages=TALK) as stream:
        kinds = {event.type for event in stream}
        assert stream.get_final_completion().choices[0].message.content == RIVER
    assert {"chunk", "content.delta", "content.done"} <= kinds


def chat_logprobs(client: openai.OpenAI) -> None:
    """Log-probabilities of a message, whole and in chunks."""
    asked: dict[str, Any] = {"model": "lm", "messages": TALK, "logprobs": True, "top_logprobs": 3}
    (choice,) = client.chat.completions.create(**asked).choices
    assert choice.logprobs is not None and choice.logprobs.content
    whole = choice.logprobs.content
    assert "".join(entry.token for entry in whole) == RIVER
    assert all(len(entry.top_logprobs) == 3 and entry.top_logprobs[0].token == entry.token for entry in whole)
    found = [chunk.choices[0].logprobs for chunk in client.chat.completions.create(**asked, stream=True)]
    streamed = [entry for one in found if one is not None for entry in one.content or []]
    assert [entry.token for entry in streamed] == [entry.token for entry in whole]
    assert all(abs(one.logprob - other.logprob) < 1e-3 for one, other in zip(streamed, whole, strict=True))


def chat_samples(client: openai.OpenAI) -> None:
    """Several samples with a seed, and the same ones again; a text that ends the message."""
    asked: dict[str, Any] = {"n": 3, "temperature": 0.9, "top_p": 0.9, "seed": 4, "max_completion_tokens": 12}
    first, again = (client.chat.completions.create(model="lm", messages=TALK, **asked).choices for _ in range(2))
    said = [choice.message.content for choice in first]
    assert [choice.index for choice in first] == [0, 1, 2] and len({*said}) > 1
    assert said == [choice.message.content for choice in again]
    (choice,) = client.chat.completions.create(model="lm", messages=TALK, stop=[" member"], temperature=0).choices
    assert (choice.message.content, choice.finish_reason) == (" a person who is a", "stop")


def completions(client: openai.OpenAI) -> None:
    """Texts behind one prompt and behind two, whole and in chunks."""
    one = client.completions.create(model="lm", prompt="river (noun):", max_tokens=20, logprobs=2).choices[0]
    two = client.completions.create(model="lm", prompt=["river (noun):", "boat"], max_tokens=20).choices
    chunks = client.completions.create(model="lm", prompt="river (noun):", max_tokens=20, stream=True)
    assert one.text == two[0].text == "".join(chunk.choices[0].text for chunk in chunks) != ""
    assert [choice.index for choice in two] == [0, 1] and one.logprobs is not None and one.logprobs.tokens
    assert len(one.logprobs.tokens) == len(one.logprobs.text_offset or []) == len(one.logprobs.top_logprobs or [])
    assert one.text.startswith("".join(one.logprobs.tokens[:5]))


def embeddings(client: openai.OpenAI) -> None:
    """Vectors of one text and of two: in base64, which the client asks for by itself, and as numbers."""
    texts = ["a boat", "a small ship"]
    plain = client.embeddings.create(model="embed", input=texts, encoding_format="float")
    coded = client.embeddings.create(model="embed", input=texts)
    alone = client.embeddings.create(model="embed", input=texts[0])
    assert plain.usage.prompt_tokens > 0 and len(plain.data) == 2 and len(plain.data[0].embedding) > 1
    for vectors in (coded, alone):
        for one, other in zip(vectors.data, plain.data, strict=False):
            assert max(abs(a - b) for a, b in zip(one.embedding, other.embedding, strict=True)) < 1e-6


def models(client: openai.OpenAI) -> None:
    """The list of models, and one of them."""
    assert [model.id for model in client.models.list()] == ["lm", "embed"]
    assert client.models.retrieve("embed").id == "embed"


def errors(client: openai.OpenAI) -> None:
    """The client's own kinds of errors, which name the parameter that is wrong."""
    tools: list[Any] = [{"type": "function", "function": {"name": "f"}}]
    wanted: list[tuple[type[openai.APIStatusError], str | None, Callable[[], Any]]] = [
        (openai.NotFoundError, "model", lambda: client.chat.completions.create(model="nobody", messages=TALK)),
        (openai.NotFoundError, "model", lambda: client.models.retrieve("nobody")),
        (openai.BadRequestError, "top_p", lambda: client.completions.create(model="lm", prompt="a", top_p=7)),
        (openai.BadRequestError, "tools", lambda: client.chat.completions.create(
            model="lm", messages=TALK, tools=tools)),
        (openai.AuthenticationError, None, client.with_options(api_key="no").models.list),
    ]  # fmt: skip
    for kind, param, ask in wanted:
        try:
            ask()
        except kind as error:
            assert error.param == param and error.message
        else:
            raise AssertionError(f"no {kind.__name__}")


def crowd(client: openai.OpenAI) -> None:
    """More requests than are taken: an error, or a later answer where the client may ask again by itself."""
    long: dict[str, Any] = {"model": "lm", "prompt": "a", "max_tokens": 1900, "logit_bias": ENDLESS}
    streams = [client.completions.create(**long, stream=True) for _ in range(2)]
    try:
        client.completions.create(model="lm", prompt="a", max_tokens=1)
    except openai.RateLimitError as error:
        assert error.type == "rate_limit_error"
    else:
        raise AssertionError("no RateLimitError")
    patient = client.with_options(max_retries=8)
    with ThreadPoolExecutor(1) as pool:
        later = pool.submit(patient.completions.create, model="lm", prompt="a", max_tokens=1)
        for stream in streams:
            stream.close()
        assert len(later.result().choices) == 1


CHECKS: Final = (
    chat, chat_stream, chat_reader, chat_logprobs, chat_samples, completions, embeddings, models, errors, crowd,
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("decoder", type=Path)
    parser.add_argument("embedder", type=Path)
    parser.add_argument("--pinnace-python", type=Path, required=True, help="a Python with Pinnace, which serves")
    arguments = parser.parse_args()
    print(f"openai {openai.__version__}")
    failed = 0
    with served(arguments.pinnace_python, arguments.decoder, arguments.embedder) as address:
        client = openai.OpenAI(base_url=address, api_key=KEY, max_retries=0)
        for check in CHECKS:
            try:
                check(client)
            except (AssertionError, openai.OpenAIError):
                traceback.print_exc()
                failed += 1
            else:
                print(f"{check.__name__}: {check.__doc__}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
