"""Parameters of OpenAI's completions: each is one of the pipeline's options, or refused by name, never passed over."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Final

from pinnace.errors import UsageError, unknown_word
from pinnace.runtime.generation.fields import FIELDS
from pinnace.runtime.server.failures import Refused

# Parameter -> option of the pipeline. Those behind the line are no part of OpenAI's API; other servers know them too.
_OPTIONS: Final = {
    "max_tokens": "max_new_tokens", "max_completion_tokens": "max_new_tokens", "temperature": "temperature",
    "top_p": "top_p", "n": "num_return_sequences", "stop": "stop_strings", "seed": "seed",
    "presence_penalty": "presence_penalty", "frequency_penalty": "frequency_penalty", "logit_bias": "logit_bias",
    # -----
    "top_k": "top_k", "min_p": "min_p", "repetition_penalty": "repetition_penalty", "min_tokens": "min_new_tokens",
}  # fmt: skip
_SAMPLING: Final = ("temperature", "top_p", "top_k", "min_p")
# These say nothing about the text.
_WITHOUT_EFFECT: Final = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")
# Parameters that are not there, with the values that ask for nothing; null never does.
_NOTHING_ASKED: Final[Mapping[str, tuple[Any, ...]]] = {
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": (),
    "verbosity": (),
    "web_search_options": (),
}


@dataclasses.dataclass(frozen=True)
class Parameters:
    """What a request asks for, beside its prompt.

    Attributes:
        options: those of the pipeline.
        logprobs: give log-probabilities, and of this many likeliest tokens too; None for none.
        stream: send the text as it comes.
        include_usage: end a stream with the counts of tokens.
    """

    options: Mapping[str, Any]
    logprobs: int | None
    stream: bool
    include_usage: bool


def read_parameters(body: Mapping[str, Any], *, chat: bool) -> Parameters:
    """Read a request for completions.

    Args:
        body: its JSON.
        chat: it continues messages, not a text.

    Raises:
        Refused: 400, naming the parameter that is unknown, wrong, or not there.
    """
    asked = {name: value for name, value in body.items() if value is not None}
    own = ("messages", "chat_template_kwargs", "top_logprobs") if chat else ("prompt",)
    known = [*own, "model", "stream", "stream_options", "logprobs", *_OPTIONS, *_WITHOUT_EFFECT]
    what = "chat completions" if chat else "completions"
    for name, value in asked.items():
        if name in _NOTHING_ASKED:
            if not any(type(value) is type(free) and value == free for free in _NOTHING_ASKED[name]):
                raise Refused(400, f"{name} is not supported here; leave it out", param=name, code="unsupported")
        elif name not in known:
            raise Refused(400, str(unknown_word(f"parameter of {what}", name[:100], known)), param=name[:100])
    stream = read_switch(asked, "stream")
    streamed = asked.get("stream_options", {})
    if not isinstance(streamed, dict) or set(streamed) - {"include_usage"} or (streamed and not stream):
        raise Refused(
            400, 'stream_options goes with "stream": true and may have include_usage alone', param="stream_options"
        )
    logprobs = _chat_logprobs(asked) if chat else _text_logprobs(asked)
    return Parameters(_options(asked), logprobs, stream, stream and read_switch(streamed, "include_usage"))


def read_switch(body: Mapping[str, Any], name: str) -> bool:
    """Read a parameter that is true or false; false where it is not there.

    Raises:
        Refused: 400, it is neither.
    """
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise Refused(400, f"{name} is {str(value)[:80]!r}; expected true or false", param=name)
    return bool(value)


def in_words_of_the_request(error: UsageError, body: Mapping[str, Any]) -> Refused:
    """Return the answer to a pipeline's complaint about an option, which the client knows by another name."""
    text, param = str(error), None
    # Chat says the number in the second of two parameters, and its first is no number.
    words = {"top_logprobs": "logprobs", "logprobs": "logprobs", **_OPTIONS}
    for name, option in words.items():
        if body.get(name) is not None and re.search(rf"\b{option}\b", text):
            text, param = re.sub(rf"\b{option}\b", name, text), param or name
    return Refused(400, text, param=param)


def _options(asked: Mapping[str, Any]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name, option in _OPTIONS.items():
        if name in asked:
            if options.get(option, asked[name]) != asked[name]:
                raise Refused(400, "max_tokens and max_completion_tokens say the same; send one", param=name)
            try:
                options[option] = FIELDS[option](name, asked[name])
            except UsageError as error:
                raise Refused(400, str(error), param=name) from None
    if options.get("temperature") == 0:  # the likeliest token each time, whatever the rest says
        options = {name: value for name, value in options.items() if name not in _SAMPLING} | {"do_sample": False}
    elif any(name in options for name in _SAMPLING):
        options["do_sample"] = True
    return options


def _text_logprobs(asked: Mapping[str, Any]) -> int | None:
    """How many likeliest tokens; the generator checks the number."""
    found: int | None = asked.get("logprobs")
    if isinstance(found, bool):
        raise Refused(400, f"logprobs is {found}; expected how many likeliest tokens to give", param="logprobs")
    return found


def _chat_logprobs(asked: Mapping[str, Any]) -> int | None:
    """How many likeliest tokens, which chat says in two parameters; the generator checks the number."""
    wanted, count = read_switch(asked, "logprobs"), asked.get("top_logprobs")
    if count is not None and not wanted:
        raise Refused(400, 'top_logprobs goes with "logprobs": true', param="top_logprobs")
    if isinstance(count, bool):
        raise Refused(400, f"top_logprobs is {count}; expected a number", param="top_logprobs")
    return (count or 0) if wanted else None
