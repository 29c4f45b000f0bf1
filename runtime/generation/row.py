"""One row that is being generated: its tokens, its options, and what each new token means for it."""

from __future__ import annotations

import dataclasses
from typing import Final

import numpy as np

from pinnace.arrays import Array
from pinnace.errors import NumericalError
from pinnace.runtime.generation.config import GenerationConfig
from pinnace.runtime.generation.logits import processors
from pinnace.runtime.generation.logits_filters import log_softmax
from pinnace.runtime.generation.sampling import check_scores, generator, greedy, sample
from pinnace.runtime.generation.stopping import Deadline, RowStop, StopStrings
from pinnace.runtime.generation.streaming import RowDecoder, RowText

MAX_LOGPROBS: Final = 100


@dataclasses.dataclass(frozen=True)
class Token:
    """What a stream yields: one new token, or the end of a row without one.

    Attributes:
        prompt: number of the prompt.
        sequence: number of the row among those of its prompt.
        id: the token; None where a row was ended from outside.
        text: text that became whole with it; empty without a tokenizer.
        logprob: natural logarithm of the model's probability of the token, before any option changed it.
        top_logprobs: the likeliest tokens and their logarithms, where asked for.
        reason: why the row ended: ``eos``, ``stop_string``, ``length``, ``time``, ``cancelled`` or ``error``; None
            before its end.
        error: what went wrong in this row, and in no other one, where the reason is ``error``.
        characters: how many its own text has; those of ``text`` may be others, while a stop string may be beginning.
    """

    prompt: int
    sequence: int
    id: int | None
    text: str = ""
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()
    reason: str | None = None
    error: NumericalError | None = None
    characters: int = 0


class Row:
    """A prompt and what was generated from it.

    Args:
        prompt: its ids [tokens].
        config: the options.
        limit: most new tokens.
        vocabulary: how many scores a step gives.
        place: number of the prompt, and of the row among its prompt's rows.
        decode: ids to text; None for a row without text, in which no stop string is found.
        logprobs: give log-probabilities, and of this many likeliest tokens too.
        deadline: the request's time limit.

    Raises:
        InputError: an option names a token outside the vocabulary.
    """

    def __init__(
        self,
        prompt: Array,
        config: GenerationConfig,
        limit: int,
        vocabulary: int,
        place: tuple[int, int] = (0, 0),
        decode: RowDecoder | None = None,
        logprobs: int | None = None,
        deadline: Deadline | None = None,
    ) -> None:
        self.prompt = prompt
        self.config = config
        self.place = place
        self.limit = limit
        self.reason: str | None = None
        self.length = len(prompt)
        self._ids: Array = np.zeros(len(prompt) + limit, np.int64)
        self._ids[: self.length] = prompt
        self._process = processors(config, [self.length], vocabulary, [self.length + limit])
        self._source = generator(config.seed, place[1]) if config.do_sample else None
        self._strings = StopStrings(config.stop_strings)
        special = () if decode is None else decode.stops(config.stop_strings)
        self._stop = RowStop(config.eos_token_id, limit, self._strings, deadline or Deadline(None), special)
        self._text = None if decode is None else RowText(decode, prompt.tolist())
        self._logprobs = logprobs

    @property
    def ids(self) -> Array:
        """Prompt and new tokens so far, a view."""
        return self._ids[: self.length]

    @property
    def last(self) -> int:
        """The newest token."""
        return int(self._ids[self.length - 1])

    def take(self, logits: Array) -> Token:
        """Choose the next token, or end the row where there is none to choose: no other row is touched by that.

        Args:
            logits: scores of this row's next token [V].
        """
        try:
            return self._take(logits)
        except NumericalError as error:
            return dataclasses.replace(self.end("error"), error=error)

    def _take(self, logits: Array) -> Token:
        token = self._choose(logits)
        self._ids[self.length] = token
        self.length += 1
        piece = "" if self._text is None else self._text.push(token)
        text = self._strings.feed(piece)
        self.reason = self._stop.check(token, self.length - len(self.prompt))
        if self.reason is not None:
            text += self._rest()
        logprob, top = self._probabilities(logits, token) if self._logprobs is not None else (None, ())
        return Token(*self.place, token, text, logprob, top, self.reason, characters=len(piece))

    def _choose(self, logits: Array) -> int:
        given = logits[None]
        scores = self._process([self.ids], given)
        if self._source is None and scores is given:
            # No option applies: the model's scores are looked at once, not three times, and the largest tells of NaN.
            token = int(logits.argmax())
            check_scores(logits[token : token + 1])
            return token
        check_scores(logits)
        return int(greedy(scores)[0] if self._source is None else sample(scores, [self._source])[0])

    def end(self, reason: str) -> Token:
        """End the row from outside, with what it has."""
        self.reason = reason
        return Token(*self.place, None, self._rest(), reason=reason)

    def _rest(self) -> str:
        if self._text is None:
            return ""
        return self._strings.feed(self._text.flush()) + self._strings.flush()

    def _probabilities(self, logits: Array, token: int) -> tuple[float, tuple[tuple[int, float], ...]]:
        logs = log_softmax(logits[None])[0]
        count = min(self._logprobs or 0, len(logs))
        best = np.argpartition(-logs, count - 1)[:count] if count else np.empty(0, np.int64)
        best = best[np.lexsort((best, -logs[best]))]
        return float(logs[token]), tuple((int(i), float(logs[i])) for i in best)
