"""Beam search as bookkeeping: which sequences go on, which are finished, and when nothing better can come.

The caller runs the model; this takes its log-probabilities and says which token each row gets and from which row it
takes its past. Rows are ordered by prompt, then group, then beam: prompt ``b`` has rows ``b * num_beams`` and on.

    beams = BeamSearch(config, prompts=2, limits=[20, 20])
    while not beams.finished:
        # log_probs (2 * num_beams, V): log_softmax of the model's scores, then the processors
        tokens, parents = beams.step(log_probs)
        # reorder the cache's rows by `parents`, then feed `tokens`
    best = beams.results()

Results equal transformers' (``_beam_search`` in transformers 5). Groups are diverse beam search (Vijayakumar et al.,
1610.02424): each group is a beam search of its own, whose scores are lowered for tokens that the groups before it chose
at the same step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pinnace.runtime.generation.config import GenerationConfig
from pinnace.runtime.generation.sampling import check_best, generator, sample_without_replacement

Ended: TypeAlias = Callable[[int, NDArray[np.int64]], bool]
"""(number of the prompt, its candidate's new tokens) -> whether the candidate ends here, as with a stop string."""

# Far below any sum of log-probabilities, and finite, so that it can be added and divided.
_OUT: Final = np.float32(-1e9)


@dataclass(frozen=True)
class Hypothesis:
    """One finished sequence.

    Attributes:
        tokens: the new tokens, an end token included where there is one.
        score: its log-probability divided by ``length ** length_penalty``.
    """

    tokens: NDArray[np.int64]
    score: float


class BeamSearch:
    """Beam search over several prompts at once; each prompt's result is what it would be alone.

    Args:
        config: ``num_beams`` and what belongs to it.
        prompts: how many prompts.
        limits: most new tokens of each prompt.
    """

    def __init__(self, config: GenerationConfig, prompts: int, limits: Sequence[int]) -> None:
        self._config = config
        self._prompts = prompts
        width = config.num_beams // config.num_beam_groups
        self._groups = [_Group(config, prompts, width, limits) for _ in range(config.num_beam_groups)]

    @property
    def done(self) -> NDArray[np.bool_]:
        """For each prompt, whether nothing more can change its result ``(prompts,)``."""
        return np.asarray(np.all([group.done for group in self._groups], axis=0))

    @property
    def finished(self) -> bool:
        """Whether all prompts are done."""
        return bool(self.done.all())

    @property
    def sequences(self) -> NDArray[np.int64]:
        """New tokens of every row so far ``(prompts * num_beams, steps)``; rows of what is done go on with padding."""
        parts = np.concatenate([group.tokens for group in self._groups], axis=1)
        return parts.reshape(self._prompts * self._config.num_beams, -1)

    def step(
        self, log_probs: NDArray[np.float32], stopped: Ended | None = None, last: bool = False
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Choose the next token of every row.

        Args:
            log_probs: ``(prompts * num_beams, V)``, after the processors.
            stopped: says of candidates whether they end for a reason other than an end token or the length.
            last: take this step for the last one, as when the time is over.

        Returns:
            The rows' next tokens, and for each row the row whose past it continues, both ``(prompts * num_beams,)``.

        Raises:
            NumericalError: a log-probability is NaN or infinite, or the options forbid every token.
        """
        groups, width = len(self._groups), self._groups[0].width
        scores = log_probs.reshape(self._prompts, groups, width, -1)
        prompt = np.arange(self._prompts)
        tokens = np.empty((self._prompts, groups, width), dtype=np.int64)
        parents = np.empty_like(tokens)
        chosen = np.zeros((self._prompts, scores.shape[-1] if groups > 1 else 0), dtype=np.float32)
        for index, group in enumerate(self._groups):
            own = scores[:, index]
            if index:
                own = own - np.float32(self._config.diversity_penalty) * chosen[:, None, :]
            going = ~group.done
            tokens[:, index], parent = group.step(own, stopped, last)
            parents[:, index] = parent + (prompt[:, None] * groups + index) * width
            for b in np.flatnonzero(going & (groups > 1)):
                np.add.at(chosen[b], tokens[b, index], 1)
        return tokens.ravel(), parents.ravel()

    def results(self) -> list[list[Hypothesis]]:
        """Return the ``num_return_sequences`` best sequences of each prompt, best first.

        There are fewer only where the options and the vocabulary allow no more.
        """
        return [
            sorted((one for group in self._groups for one in group.best[b]), key=lambda one: -one.score)[
                : self._config.num_return_sequences
            ]
            for b in range(self._prompts)
        ]


class _Group:
    """One beam search for each prompt, ``width`` beams wide."""

    def __init__(self, config: GenerationConfig, prompts: int, width: int, limits: Sequence[int]) -> None:
        self.width = width
        self.tokens = np.empty((prompts, width, 0), dtype=np.int64)
        self.done = np.zeros(prompts, dtype=np.bool_)
        self.best: list[list[Hypothesis]] = [[] for _ in range(prompts)]
        # All beams start as the same sequence: only the first may be continued.
        self._scores = np.full((prompts, width), _OUT, dtype=np.float32)
        self._scores[:, 0] = 0
        self._limits = np.asarray(limits)
        self._ends = np.asarray(config.eos_token_id, dtype=np.int64)
        self._candidates = max(2, 1 + self._ends.size) * width
        self._early = config.early_stopping
        self._penalty = config.length_penalty
        self._pad = max(config.pad_token_id or 0, 0)
        self._sources = [generator(config.seed) for _ in range(prompts)] if config.do_sample else None

    def step(
        self, log_probs: NDArray[np.float32], stopped: Ended | None, last: bool
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Choose each beam's token and the beam of the same group that it continues, both ``(prompts, width)``."""
        tokens = np.full(self._scores.shape, self._pad, dtype=np.int64)
        parents = np.tile(np.arange(self.width), (len(tokens), 1))
        for b in np.flatnonzero(~self.done):
            tokens[b], parents[b] = self._advance(int(b), log_probs[b], stopped, last)
        moved = np.take_along_axis(self.tokens, parents[:, :, None], axis=1)
        self.tokens = np.concatenate([moved, tokens[:, :, None]], axis=2)
        return tokens, parents

    def _advance(
        self, b: int, log_probs: NDArray[np.float32], stopped: Ended | None, last: bool
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        total = (log_probs + self._scores[b][:, None]).ravel()
        places = self._choose(b, total)
        scores = total[places]
        parents, tokens = np.divmod(places, log_probs.shape[1])
        length = self.tokens.shape[2] + 1
        ended = np.isin(tokens, self._ends) | last | (length >= self._limits[b])
        if stopped is not None:
            for index in np.flatnonzero(~ended):
                ended[index] = stopped(b, self._candidate(b, parents[index], tokens[index]))
        for index in np.flatnonzero(ended[: self.width]):
            # Only what is among the best beams may finish; the other candidates are there to go on.
            if scores[index] > _OUT / 2:
                score = float(scores[index] / np.float32(length**self._penalty))
                self._finish(b, score, parents[index], tokens[index])
        going = scores + ended * _OUT
        order = np.argsort(-going, kind="stable")[: self.width]
        self._scores[b] = going[order]
        self.done[b] = bool(ended.all()) or self._settled(b, length)
        return tokens[order], parents[order]

    def _choose(self, b: int, total: NDArray[np.float32]) -> NDArray[np.int64]:
        """Places of the candidates in ``total``: drawn, or the best in falling order."""
        count = min(self._candidates, total.size)
        check_best(total.max(keepdims=True))
        if self._sources is not None:
            return sample_without_replacement(total, count, self._sources[b])
        best = np.argpartition(total, -count)[-count:]
        # Of equals the first in the vocabulary, whatever order the partition left.
        return best[np.lexsort((best, -total[best]))].astype(np.int64)

    def _candidate(self, b: int, parent: int, token: int) -> NDArray[np.int64]:
        return np.append(self.tokens[b, parent], token)

    def _finish(self, b: int, score: float, parent: int, token: int) -> None:
        best = self.best[b]
        if len(best) == self.width and score <= best[-1].score:
            return
        best.append(Hypothesis(self._candidate(b, parent, token), score))
        best.sort(key=lambda one: -one.score)
        del best[self.width :]

    def _settled(self, b: int, length: int) -> bool:
        """Whether the finished sequences are as many as wanted and, as far as can be told, none better can come."""
        best = self.best[b]
        if len(best) < self.width:
            return False
        if self._early is True:
            return True
        # A positive penalty favours the longest; only "never" assumes that the best beam could become that long.
        reach = int(self._limits[b]) if self._early == "never" and self._penalty > 0 else length
        return bool(self._scores[b, 0] / np.float32(reach**self._penalty) <= best[-1].score)
