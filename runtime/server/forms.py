"""What OpenAI's clients read of a generation: two forms, for chat and for plain completions, whole and in chunks."""

from __future__ import annotations

import abc
import itertools
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Final

from pinnace.runtime.generation.row import Token
from pinnace.runtime.server.work import Call

_REASONS: Final = {"eos": "stop", "stop_string": "stop", "length": "length", "time": "length"}
_UNFINISHED: Final = "\ufffd"
_BYTE_TOKEN: Final = re.compile("<0x[0-9A-F]{2}>")


class Form(abc.ABC):
    """Makes the JSON of one answer.

    Args:
        model: the model's name.
        text_of: the text of one token id.
        token_of: the token of an id, as the vocabulary writes it.
    """

    prefix: ClassVar[str]
    whole_object: ClassVar[str]
    chunk_object: ClassVar[str]

    def __init__(self, model: str, text_of: Callable[[int], str], token_of: Callable[[int], str]) -> None:
        self._facts = {"id": self.prefix + secrets.token_hex(12), "created": int(time.time()), "model": model}
        self._text_of, self._token_of = text_of, token_of

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
                **self._entry(token.id or 0, token.logprob or 0.0),
                "top_logprobs": [self._entry(*pair) for pair in token.top_logprobs],
            }
            for token in self._shown(tokens)
        ]
        return {"content": content, "refusal": None}

    def _entry(self, id_: int, logprob: float) -> dict[str, Any]:
        piece = self._text_of(id_)
        found = piece.encode() if _UNFINISHED not in piece else _bytes_of(self._token_of(id_), piece)
        return {"token": piece, "logprob": logprob, "bytes": None if found is None else list(found)}


class TextForm(Form):
    """Choices are texts."""

    prefix = "cmpl-"
    whole_object = chunk_object = "text_completion"

    def __init__(self, model: str, text_of: Callable[[int], str], token_of: Callable[[int], str]) -> None:
        super().__init__(model, text_of, token_of)
        # By choice: where its next token begins, and how much of its text was given.
        self._offsets: dict[int, int] = {}
        self._given: dict[int, int] = {}

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
        given = self._given[index] = self._given.get(index, 0) + len(text(tokens))
        offsets = []
        for token in shown:
            offsets.append(self._offsets.get(index, 0))
            self._offsets[index] = offsets[-1] + token.characters
        if tokens[-1].reason is not None:  # a stop string may have cut the text before these tokens
            offsets = [min(offset, given) for offset in offsets]
        return {
            "tokens": [self._text_of(token.id or 0) for token in shown],
            "token_logprobs": [token.logprob for token in shown],
            "top_logprobs": [self._likeliest(token) for token in shown], "text_offset": offsets,
        }  # fmt: skip

    def _likeliest(self, token: Token) -> dict[str, float]:
        """By text: of several tokens that have the same one, such as parts of characters, the likeliest counts."""
        found: dict[str, float] = {}
        for id_, logprob in token.top_logprobs:
            found.setdefault(self._text_of(id_), logprob)
        return found


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


def _bytes_of(token: str, piece: str) -> bytes | None:
    """The bytes of a token that is a part of a character, where the token itself says them; None where it does not."""
    if _BYTE_TOKEN.fullmatch(token):
        return bytes([int(token[3:5], 16)])
    # Byte-level tokenizers write each byte as a letter.
    found = bytes(_BYTES.get(letter, 0) for letter in token)
    return found if found.decode("utf-8", "replace") == piece else None


def _letters() -> Iterator[tuple[str, int]]:
    """The letters that byte-level tokenizers have for bytes: those that print are their own, others come after them."""
    others = itertools.count(256)
    for byte in range(256):
        prints = 33 <= byte <= 126 or (161 <= byte <= 255 and byte != 173)
        yield chr(byte if prints else next(others)), byte


_BYTES: Final = dict(_letters())
