"""Beam search run on a decoder: the beams of one prompt are the rows of a batch, reordered before each step."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np

from pinnace.arrays import Array
from pinnace.runtime.engine.cancellation import RunLimit
from pinnace.runtime.generation.beam import BeamSearch
from pinnace.runtime.generation.config import GenerationConfig
from pinnace.runtime.generation.decoder import Batch, Decoder, Stopped
from pinnace.runtime.generation.logits import processors
from pinnace.runtime.generation.logits_filters import log_softmax
from pinnace.runtime.generation.prefix import Prefix
from pinnace.runtime.generation.sampling import check_scores
from pinnace.runtime.generation.stopping import StopStrings
from pinnace.runtime.generation.streaming import RowDecoder, RowText


def generate_beams(
    decoder: Decoder,
    prompt: Array,
    most: int,
    config: GenerationConfig,
    limit: RunLimit,
    prefix: Prefix | None = None,
    decode: RowDecoder | None = None,
) -> list[tuple[Array, str]]:
    """Search the best continuations of one prompt.

    Args:
        decoder: the model.
        prompt: its ids [tokens].
        most: most new tokens.
        config: ``num_beams`` and all other options.
        limit: what may stop it; what was found until then is returned.
        prefix: keys and values of a beginning of the prompt.
        decode: ids to text, for stop strings.

    Returns:
        The ``num_return_sequences`` best, best first: new tokens, and why each ended.

    Raises:
        NumericalError: the model gave NaN or infinity, or the options forbid every token.
    """
    beams = BeamSearch(config, 1, [most])
    count = config.num_beams
    process = processors(config, [len(prompt)] * count, decoder.vocabulary, [len(prompt) + most] * count)
    texts = None if decode is None or not config.stop_strings else BeamTexts(config.stop_strings, decode, prompt)
    stopped = None
    try:
        batch, logits = _begin(decoder, prompt, most, limit, prefix)
        batch.cache.keep([0] * count)
        logits = np.repeat(logits, count, axis=0)
        while True:
            check_scores(logits)
            ids = [np.concatenate([prompt, new]) for new in beams.sequences]
            tokens, parents = beams.step(process(ids, log_softmax(logits)), None if texts is None else texts.ended)
            if beams.finished:
                break
            if not np.array_equal(parents, np.arange(len(parents))):
                batch.cache.keep(parents.tolist())
            logits = batch.step(tokens, limit)
    except Stopped:
        stopped = limit.reason()
        if stopped is None:
            raise
    found = [(one.tokens, _reason(one.tokens, config, texts)) for one in beams.results()[0]]
    if stopped is not None:
        # The beams that were still going stand in for what the search did not come to finish.
        found += [(new.copy(), stopped) for new in beams.sequences]
    return found[: config.num_return_sequences]


def _begin(decoder: Decoder, prompt: Array, most: int, limit: RunLimit, prefix: Prefix | None) -> tuple[Batch, Array]:
    if prefix is None:
        return decoder.prompt([prompt], limit, len(prompt) + most)
    batch, shared = decoder.batch(0, len(prompt) + most), prefix.shared(prompt, decoder)
    batch.join(prefix.state(shared))
    return batch, batch.extend(prompt[shared:], limit)[-1:]


class BeamTexts:
    """The texts of the beams of one prompt, watched for stop strings as the text of a single row is.

    Each beam's text goes on from that of the beam it continues, so that every token is decoded once.

    Args:
        strings: what ends a beam.
        decode: ids to text.
        prompt: the tokens before the first [tokens].
    """

    def __init__(self, strings: Sequence[str], decode: RowDecoder, prompt: Array) -> None:
        self._special = decode.stops(strings)
        self._start = (RowText(decode, prompt.tolist()), StopStrings(strings))
        # By their new tokens: the beams of the step before, and of this one.
        self._before: dict[bytes, tuple[RowText, StopStrings]] = {}
        self._now: dict[bytes, tuple[RowText, StopStrings]] = {}
        self._length = 0

    def ended(self, _prompt: int, tokens: Array) -> bool:
        """Whether new tokens [tokens] end with a stop string, or with a special token that is one."""
        if len(tokens) > self._length:
            self._before, self._now, self._length = self._now, {}, len(tokens)
        text, strings = self._begun(tokens[:-1])
        strings.feed(text.push(int(tokens[-1])))
        self._now[tokens.tobytes()] = text, strings
        return strings.matched is not None or int(tokens[-1]) in self._special

    def _begun(self, tokens: Array) -> tuple[RowText, StopStrings]:
        """Text and watch of a beam before its newest token, free to go on."""
        known = self._before.get(tokens.tobytes())
        text, strings = known or self._start
        text, strings = text.fork(), copy.copy(strings)
        for token in () if known else tokens.tolist():  # a beam that has ended, and stands where none other could go on
            strings.feed(text.push(token))
        return text, strings


def _reason(tokens: Array, config: GenerationConfig, texts: BeamTexts | None) -> str:
    if int(tokens[-1]) in config.eos_token_id:
        return "eos"
    return "stop_string" if texts is not None and texts.ended(0, tokens) else "length"
