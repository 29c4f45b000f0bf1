"""Scores of the next token, changed by the options: penalties, bans, biases and filters, in transformers' order.

Every processor is a function ``(ids, scores) -> scores``: ``ids`` one int64 array per row, prompt first and without
padding, so that a row's result never depends on its batch mates; ``scores (rows, V)`` float32. The scores given are
never written to.

Source: ``LogitsProcessor`` and its kin in transformers 5 (``generation/logits_process.py``), whose results these equal;
presence and frequency penalties as in OpenAI's API: from the tokens generated so far, the prompt not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from pinnace.errors import InputError
from pinnace.runtime.generation.config import GenerationConfig
from pinnace.runtime.generation.logits_filters import min_p, temperature, top_k, top_p, typical_p

Ids: TypeAlias = Sequence[NDArray[np.int64]]
Scores: TypeAlias = NDArray[np.float32]
Processor: TypeAlias = Callable[[Ids, Scores], Scores]

_NEVER = np.float32(-np.inf)


def processors(
    config: GenerationConfig, prompt_lengths: Sequence[int], vocabulary: int, limits: Sequence[int] | None = None
) -> Processor:
    """Make the function that applies all options of ``config`` to the scores of a step.

    Args:
        config: the options.
        prompt_lengths: tokens of each row's prompt; its rows are those of the calls.
        vocabulary: how many scores a row has.
        limits: most tokens of each row, its prompt included; None where the options alone limit them.

    Returns:
        ``(ids per row, scores (rows, V)) -> scores (rows, V)``; where no option applies, the same array.

    Raises:
        InputError: an option names a token outside the vocabulary.
    """
    chain = [*_rules(config, prompt_lengths, vocabulary, limits), *(_filters(config) if config.do_sample else ())]

    def apply(ids: Ids, scores: Scores) -> Scores:
        for processor in chain:
            scores = processor(ids, scores)
        return scores

    return apply


def _rules(
    config: GenerationConfig, prompt_lengths: Sequence[int], vocabulary: int, limits: Sequence[int] | None
) -> list[Processor]:
    prompts = np.asarray(prompt_lengths, dtype=np.int64)
    ends = config.eos_token_id
    chain: list[Processor] = []
    biases = [*config.sequence_bias, *(((token,), bias) for token, bias in config.logit_bias)]
    if biases:
        chain.append(sequence_bias(biases, vocabulary))
    if config.repetition_penalty != 1:
        chain.append(repetition_penalty(config.repetition_penalty))
    if config.presence_penalty or config.frequency_penalty:
        chain.append(occurrence_penalty(config.presence_penalty, config.frequency_penalty, prompts))
    if config.no_repeat_ngram_size:
        chain.append(no_repeat_ngrams(config.no_repeat_ngram_size))
    if bad := [words for words in config.bad_words_ids if len(words) > 1 or words[0] not in ends]:
        chain.append(sequence_bias([(words, -np.inf) for words in bad], vocabulary))
    if config.min_new_tokens and ends:  # over min_length, as in transformers
        chain.append(forbid_until(ends, prompts + config.min_new_tokens))
    elif config.min_length and ends:
        chain.append(forbid_until(ends, np.full_like(prompts, config.min_length)))
    if config.forced_bos_token_id is not None:
        chain.append(force_at((config.forced_bos_token_id,), np.ones_like(prompts), vocabulary))
    if config.forced_eos_token_id:
        most = limits or [config.length_limit(int(length)) for length in prompts]
        chain.append(force_at(config.forced_eos_token_id, np.asarray(most) - 1, vocabulary))
    if config.suppress_tokens:
        chain.append(forbid(config.suppress_tokens))
    if config.begin_suppress_tokens:
        begins = prompts + ((prompts == 1) & (config.forced_bos_token_id is not None))
        chain.append(forbid_at(config.begin_suppress_tokens, begins))
    return chain


def _filters(config: GenerationConfig) -> list[Processor]:
    # A beam needs one token more than there are ends, or it could not go on.
    keep = max(2, len(config.eos_token_id) + 1) if config.num_beams > 1 else 1
    chain: list[Callable[[Scores], Scores]] = []
    if config.temperature != 1:
        chain.append(temperature(config.temperature))
    if config.top_k:
        chain.append(top_k(config.top_k, keep))
    if config.top_p < 1:
        chain.append(top_p(config.top_p, keep))
    if config.min_p is not None:
        chain.append(min_p(config.min_p, keep))
    if config.typical_p < 1:
        chain.append(typical_p(config.typical_p, keep))
    return [_of_scores(each) for each in chain]


def _of_scores(change: Callable[[Scores], Scores]) -> Processor:
    return lambda _ids, scores: change(scores)


def sequence_bias(biases: Sequence[tuple[Sequence[int], float]], vocabulary: int) -> Processor:
    """Add a bias to the last token of a sequence where a row ends with the tokens before it.

    A single token's bias applies always; where a sequence is given twice, its last bias counts.

    Raises:
        InputError: a token outside the vocabulary.
    """
    table = {tuple(sequence): bias for sequence, bias in biases}
    for token in (token for sequence in table for token in sequence):
        _check(token, vocabulary)
    single = np.zeros(vocabulary, dtype=np.float32)
    longer = []
    for sequence, bias in table.items():
        if len(sequence) == 1:
            single[sequence[0]] = bias
        else:
            longer.append((np.asarray(sequence[:-1], dtype=np.int64), sequence[-1], np.float32(bias)))

    def apply(ids: Ids, scores: Scores) -> Scores:
        added = np.tile(single, (len(scores), 1))
        for start, last, bias in longer:
            for row, tokens in enumerate(ids):
                if len(tokens) >= len(start) and np.array_equal(tokens[-len(start) :], start):
                    added[row, last] += bias
        return scores + added

    return apply


def repetition_penalty(penalty: float) -> Processor:
    """Divide positive and multiply negative scores of the tokens that a row already has, its prompt included."""
    factor = np.float32(penalty)

    def apply(ids: Ids, scores: Scores) -> Scores:
        scores = scores.copy()
        for row, tokens in zip(scores, ids, strict=True):
            seen = tokens[tokens < row.size]
            old = row[seen]
            row[seen] = np.where(old < 0, old * factor, old / factor)
        return scores

    return apply


def occurrence_penalty(presence: float, frequency: float, prompts: NDArray[np.int64]) -> Processor:
    """Subtract ``presence`` once from each token generated so far, and ``frequency`` once for each time it was."""

    def apply(ids: Ids, scores: Scores) -> Scores:
        scores = scores.copy()
        for row, tokens, prompt in zip(scores, ids, prompts, strict=True):
            new = tokens[prompt:]
            seen, counts = np.unique(new[new < row.size], return_counts=True)
            row[seen] -= counts.astype(np.float32) * np.float32(frequency) + np.float32(presence)
        return scores

    return apply


def no_repeat_ngrams(size: int) -> Processor:
    """Forbid tokens that would complete a sequence of ``size`` tokens that the row already has."""

    def apply(ids: Ids, scores: Scores) -> Scores:
        scores = scores.copy()
        for row, tokens in zip(scores, ids, strict=True):
            if len(tokens) < size:
                continue
            start = tokens[len(tokens) + 1 - size :]
            windows = np.lib.stride_tricks.sliding_window_view(tokens, size)
            banned = windows[(windows[:, :-1] == start).all(axis=1), -1]
            row[banned[banned < row.size]] = _NEVER
        return scores

    return apply


def forbid(tokens: Sequence[int]) -> Processor:
    """Forbid tokens everywhere."""

    def apply(_ids: Ids, scores: Scores) -> Scores:
        scores = scores.copy()
        scores[:, _within(tokens, scores)] = _NEVER
        return scores

    return apply


def forbid_until(tokens: Sequence[int], lengths: NDArray[np.int64]) -> Processor:
    """Forbid tokens while a row is shorter than its length in ``lengths (rows,)``."""
    return _where(tokens, lambda have: have < lengths)


def forbid_at(tokens: Sequence[int], lengths: NDArray[np.int64]) -> Processor:
    """Forbid tokens when a row has exactly its length in ``lengths (rows,)``."""
    return _where(tokens, lambda have: have == lengths)


def force_at(tokens: Sequence[int], lengths: NDArray[np.int64], vocabulary: int) -> Processor:
    """Allow nothing but ``tokens`` when a row has exactly its length in ``lengths (rows,)``.

    Raises:
        InputError: a token outside the vocabulary.
    """
    for token in tokens:
        _check(token, vocabulary)
    only = np.full(vocabulary, _NEVER)
    only[list(tokens)] = 0

    def apply(ids: Ids, scores: Scores) -> Scores:
        now = _lengths(ids) == lengths
        return np.where(now[:, None], only, scores) if now.any() else scores

    return apply


def _where(tokens: Sequence[int], rows: Callable[[NDArray[np.int64]], NDArray[np.bool_]]) -> Processor:
    def apply(ids: Ids, scores: Scores) -> Scores:
        now = rows(_lengths(ids))
        if not now.any():
            return scores
        scores = scores.copy()
        scores[np.ix_(np.flatnonzero(now), _within(tokens, scores))] = _NEVER
        return scores

    return apply


def _lengths(ids: Ids) -> NDArray[np.int64]:
    return np.asarray([len(tokens) for tokens in ids], dtype=np.int64)


def _within(tokens: Sequence[int], scores: Scores) -> NDArray[np.int64]:
    """The tokens that have a score: an embedding may have more rows than the output."""
    return np.asarray([token for token in tokens if token < scores.shape[1]], dtype=np.int64)


def _check(token: int, vocabulary: int) -> None:
    if token >= vocabulary:
        raise InputError(f"an option names token {token}, expected ids from 0 to {vocabulary - 1}: the model's own.")
