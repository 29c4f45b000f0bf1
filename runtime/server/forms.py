"""What OpenAI's clients read of a generation: two forms, for chat and for plain completions, whole and in chunks."""

from __future__ import annotations

import abc
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Final

from pinnace.runtime.generation.row import Token
from pinnace.runtime.server.work import Call

_REASONS: Final = {"eos": "stop", "stop_string": "stop", "length": "length", "time": "length"}
_UNFINISHED: Final = "\ufffd"


class Form(abc.ABC):
    """Makes the JSON of one answer.

    Args:
        model: the model's name.
        text_of: the text of one token id.
    """

    prefix: ClassVar[str]
    whole_object: ClassVar[str]
    chunk_object: ClassVar[str]

    def __init__(self, model: str, text_of: Callable[[int], str]) -> None:
        self._facts = {"id": self.prefix + secrets.token_hex(12), "created": int(time.time()), "model": model}
        self._text_of = text_of

    def whole(self, rows: Mapping[int, Sequence[Token]], call: Call) -> dict[str, Any]:
        """The whole answer.

        Args:
            rows: the tokens of each choice.
            call: has the counts.
        """
        choices = [self._choice(index, tokens) for index, tokens in sorted(rows.items())]
        return {"object": self.whole_object, **self._facts, "choices": choices, "usage": usage(call)}

    def chunk(self, *choices: Any, **more: Any) -> dict[str, Any]:
        """One chunk of a stream."""
        return {"object": self.chunk_object, **self._facts, "choices": list(choices), **more}

    def opening(self, _index: int) -> dict[str, Any] | None:
        """What the first chunk of a choice says before its text; None for nothing."""
        return None

    @abc.abstractmethod
    def piece(self, index: int, token: Token) -> dict[str, Any]:
        """What one token adds to a choice."""

    @abc.abstractmethod
    def _choice(self, index: int, tokens: Sequence[Token]) -> dict[str, Any]:
        """One choice, whole."""

    def _shown(self, tokens: Sequence[Token]) -> list[Token]:
        """The tokens that have log-probabilities; that which only ends the text is not a part of it."""
        return [token for token in tokens if token.logprob is not None and token.reason != "eos"]

    def _pairs(self, token: Token) -> list[tuple[str, float]]:
        return [(self._text_of(id_), logprob) for id_, logprob in token.top_logprobs]


class ChatForm(Form):
    """Choices are messages."""

    prefix = "chatcmpl-"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def opening(self, index: int) -> dict[str, Any]:
        """Who speaks."""
        delta = {"role": "assistant", "content": ""}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def piece(self, index: int, token: Token) -> dict[str, Any]:
        """Text that is added to the message."""
        delta = {"content": token.text} if token.text or token.reason is None else {}
        return {"index": index, "delta": delta, "logprobs": self._logprobs([token]), "finish_reason": reason(token)}

    def _choice(self, index: int, tokens: Sequence[Token]) -> dict[str, Any]:
        message = {"role": "assistant", "content": text(tokens), "refusal": None}
        return {
            "index": index, "message": message, "logprobs": self._logprobs(tokens), "finish_reason": reason(tokens[-1]),
        }  # fmt: skip

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if not any(token.logprob is not None for token in tokens):
            return None
        content = [
            {
                **_entry(self._text_of(token.id or 0), token.logprob or 0.0),
                "top_logprobs": [_entry(*pair) for pair in self._pairs(token)],
            }
            for token in self._shown(tokens)
        ]
        return {"content": content, "refusal": None}


class TextForm(Form):
    """Choices are texts."""

    prefix = "cmpl-"
    whole_object = chunk_object = "text_completion"

    def __init__(self, model: str, text_of: Callable[[int], str]) -> None:
        super().__init__(model, text_of)
        self._offsets: dict[int, int] = {}

    def piece(self, index: int, token: Token) -> dict[str, Any]:
        """Text that is added."""
        return self._choice(index, [token])

    def _choice(self, index: int, tokens: Sequence[Token]) -> dict[str, Any]:
        return {
            "index": index, "text": text(tokens), "logprobs": self._logprobs(index, tokens),
            "finish_reason": reason(tokens[-1]),
        }  # fmt: skip

    def _logprobs(self, index: int, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if not any(token.logprob is not None for token in tokens):
            return None
        shown = self._shown(tokens)
        texts = [self._text_of(token.id or 0) for token in shown]
        offsets = []
        for piece in texts:
            offsets.append(self._offsets.get(index, 0))
            self._offsets[index] = offsets[-1] + len(piece)
        return {
            "tokens": texts, "token_logprobs": [token.logprob for token in shown],
            "top_logprobs": [dict(self._pairs(token)) for token in shown], "text_offset": offsets,
        }  # fmt: skip


def usage(call: Call) -> dict[str, int]:
    """The counts of a generation."""
    total = call.tokens_in + call.tokens_out
    return {"prompt_tokens": call.tokens_in, "completion_tokens": call.tokens_out, "total_tokens": total}


def text(tokens: Sequence[Token]) -> str:
    """The text of a row's tokens."""
    return "".join(token.text for token in tokens)


def reason(token: Token) -> str | None:
    """Why a row ended, in OpenAI's words; None where it goes on."""
    return None if token.reason is None else _REASONS.get(token.reason, "stop")


def _entry(piece: str, logprob: float) -> dict[str, Any]:
    # A token that is a part of a character has no text of its own, and its bytes are not known here.
    return {"token": piece, "logprob": logprob, "bytes": None if _UNFINISHED in piece else list(piece.encode())}
