"""Beam search run on a decoder: the beams of one prompt are the rows of a batch, reordered before each step."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pinnace.runtime.engine.cancellation import RunLimit
from pinnace.runtime.engine.inputs import Array
from pinnace.runtime.generation.beam import BeamSearch
from pinnace.runtime.generation.config import GenerationConfig
from pinnace.runtime.generation.decoder import Batch, Decoder, Stopped
from pinnace.runtime.generation.logits import processors
from pinnace.runtime.generation.prefix import Prefix
from pinnace.runtime.generation.sampling import check_scores, log_softmax
from pinnace.runtime.generation.stopping import StopStrings
from pinnace.runtime.generation.streaming import RowDecoder


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
    ended = _watch(config, decode)
    stopped = None
    try:
        batch, logits = _begin(decoder, prompt, most, limit, prefix)
        batch.cache.keep([0] * count)
        logits = np.repeat(logits, count, axis=0)
        while True:
            check_scores(logits)
            ids = [np.concatenate([prompt, new]) for new in beams.sequences]
            tokens, parents = beams.step(process(ids, log_softmax(logits)), ended)
            if beams.finished:
                break
            if not np.array_equal(parents, np.arange(len(parents))):
                batch.cache.keep(parents.tolist())
            logits = batch.step(tokens, limit)
    except Stopped:
        stopped = limit.reason()
        if stopped is None:
            raise
    found = [(one.tokens, _reason(one.tokens, most, config, ended)) for one in beams.results()[0]]
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


def _watch(config: GenerationConfig, decode: RowDecoder | None) -> Callable[[int, Array], bool] | None:
    if not config.stop_strings or decode is None:
        return None
    special = decode.stops(config.stop_strings)

    def ended(_prompt: int, tokens: Array) -> bool:
        strings = StopStrings(config.stop_strings)
        strings.feed(decode(tokens.tolist()))
        return strings.matched is not None or int(tokens[-1]) in special

    return ended


def _reason(tokens: Array, most: int, config: GenerationConfig, ended: Callable[[int, Array], bool] | None) -> str:
    if int(tokens[-1]) in config.eos_token_id:
        return "eos"
    if ended is not None and ended(0, tokens):
        return "stop_string"
    return "length" if len(tokens) >= most else "time"
