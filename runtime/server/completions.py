"""``/v1/chat/completions`` and ``/v1/completions``: OpenAI's requests for texts, answered whole or as a stream."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, TypeAlias

import numpy as np

from pinnace.errors import InputError, UsageError
from pinnace.json_text import to_json
from pinnace.runtime.generation.row import Token
from pinnace.runtime.server.exchange import Exchange
from pinnace.runtime.server.failures import Refused, as_refused
from pinnace.runtime.server.forms import ChatForm, Form, TextForm, usage
from pinnace.runtime.server.models import Model
from pinnace.runtime.server.parameters import Parameters, in_words_of_the_request, read_parameters
from pinnace.runtime.server.work import Call

_TASK: Final = "text-generation"
_EVENTS: Final = {"cache-control": "no-cache", "x-accel-buffering": "no"}  # proxies must pass each event on at once

# From the pipeline, rows of token ids.
Prompts: TypeAlias = Callable[[Any], list[Any]]
# A token, and which of the answer's choices it belongs to: they are counted over all prompts.
Choice: TypeAlias = tuple[int, Token]


async def chat(exchange: Exchange) -> None:
    """Answer a conversation."""
    body = await exchange.read()
    model = exchange.choose(body.get("model"), _TASK)
    asked = read_parameters(body, chat=True)
    kwargs = body.get("chat_template_kwargs") or {}
    if not isinstance(kwargs, dict):
        raise Refused(400, "chat_template_kwargs must be an object", param="chat_template_kwargs")
    messages = _messages(body.get("messages"))
    form = ChatForm(model.name, *_texts_of(model))

    def prompts(pipe: Any) -> list[Any]:
        if pipe.template is None:
            raise Refused(400, f"{model.name} has no chat template; send the text itself to /v1/completions")
        return [pipe.prompt_ids(messages, chat_template_kwargs=kwargs)]

    await _answer(exchange, body, asked, form, prompts)


async def completions(exchange: Exchange) -> None:
    """Continue texts."""
    body = await exchange.read()
    model = exchange.choose(body.get("model"), _TASK)
    asked = read_parameters(body, chat=False)
    prompts = _prompts(body.get("prompt"))
    form = TextForm(model.name, *_texts_of(model))
    await _answer(
        exchange, body, asked, form,
        lambda pipe: [pipe.prompt_ids(one) if isinstance(one, str) else one for one in prompts],
    )  # fmt: skip


async def _answer(exchange: Exchange, body: Mapping[str, Any], asked: Parameters, form: Form, prompts: Prompts) -> None:
    def tokens(pipe: Any, call: Call) -> Iterator[Choice]:
        # A bundle's own generation_config.json may ask for several too.
        several = asked.options.get("num_return_sequences", pipe.generator.config.num_return_sequences)
        options = dict(asked.options)
        if not options.get("do_sample", pipe.generator.config.do_sample):
            options.pop("seed", None)  # clients send one with every request
        try:
            config = pipe.generator.config.merged(**{**options, "num_return_sequences": None})
            if several > 1 and not config.do_sample:
                raise Refused(400, "n above 1 needs a temperature above 0: else all would be the same", param="n")
            found = pipe.generator.stream(prompts(pipe), logprobs=asked.logprobs, cancellation=call, **options)
        except UsageError as error:
            raise in_words_of_the_request(error, body) from None
        for token in found:
            if token.error is not None:
                raise token.error
            yield token.prompt * several + token.sequence, token

    if asked.stream:
        await _stream(exchange, asked, form, tokens)
        return
    rows: dict[int, list[Token]] = {}
    async with contextlib.aclosing(exchange.items(tokens)) as found:
        async for index, token in found:
            rows.setdefault(index, []).append(token)
    await exchange.reply(form.whole(rows, exchange.call))


async def _stream(
    exchange: Exchange, asked: Parameters, form: Form, tokens: Callable[[Any, Call], Iterator[Choice]]
) -> None:
    """Send chunks as they come. The first one decides the status; an error behind it ends the stream as an event."""
    counts = {"usage": None} if asked.include_usage else {}
    opened: set[int] = set()
    try:
        async with contextlib.aclosing(exchange.items(tokens)) as found:
            async for index, token in found:
                if not exchange.begun:
                    await exchange.begin(200, "text/event-stream; charset=utf-8", _EVENTS)
                if index not in opened and (opening := form.opening(index)) is not None:
                    await _event(exchange, form.chunk(opening, **counts))
                opened.add(index)
                if token.text or token.reason is not None or token.logprob is not None:
                    await _event(exchange, form.chunk(form.piece(index, token), **counts))
    except BaseException as error:
        refused = as_refused(error)
        if exchange.begun and isinstance(error, Exception):
            exchange.status = refused.status
            await _event(exchange, refused.body())
            await exchange.send(b"", more=False)
        raise
    if asked.include_usage:
        await _event(exchange, form.chunk(usage=usage(exchange.call)))
    await exchange.send(b"data: [DONE]\n\n", more=False)


async def _event(exchange: Exchange, content: Any) -> None:
    await exchange.send(f"data: {to_json(content)}\n\n".encode())


def _messages(given: Any) -> list[dict[str, Any]]:
    """Read messages: contents are texts, or lists of parts that are."""
    if not isinstance(given, list) or not given or not all(isinstance(message, dict) for message in given):
        raise Refused(400, "messages must be a list of at least one object, as {role, content}", param="messages")
    return [{**message, "content": _content(message.get("content"), i)} for i, message in enumerate(given)]


def _content(content: Any, place: int) -> str:
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    texts = [
        part["text"]
        for part in (parts if isinstance(parts, list) else [None])
        if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
    ]
    if not isinstance(parts, list) or len(texts) != len(parts):
        raise Refused(
            400, f"content of message {place} must be a text, or a list of parts of the type text", param="messages"
        )
    return "".join(texts)


def _prompts(given: Any) -> list[Any]:
    """Read one prompt or many, each a text or a list of token ids."""
    if isinstance(given, str) or (isinstance(given, list) and given and all(type(part) is int for part in given)):
        given = [given]
    if not isinstance(given, list) or not given:
        raise Refused(400, "prompt must be a text, a list of token ids, or a list of these", param="prompt")
    for place, prompt in enumerate(given):
        if not isinstance(prompt, str) and not (isinstance(prompt, list) and all(type(part) is int for part in prompt)):
            raise Refused(400, f"prompt {place} must be a text or a list of token ids", param="prompt")
    return [one if isinstance(one, str) else _row(one, place) for place, one in enumerate(given)]


def _row(ids: list[int], place: int) -> Any:
    try:
        return np.array(ids, np.int64)
    except OverflowError:
        raise InputError(f"prompt {place} has an id that is no token") from None


def _texts_of(model: Model) -> tuple[Callable[[int], str], Callable[[int], str]]:
    """The text of one token as the model's tokenizer decodes it, and as its vocabulary writes it."""
    tokenizer = model.pipe.tokenizer

    def text_of(id_: int) -> str:
        return str(tokenizer.decode([id_], False, False))

    return text_of, lambda id_: tokenizer.convert_ids_to_tokens(id_) or ""
