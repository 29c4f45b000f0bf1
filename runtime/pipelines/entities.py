"""From the label probabilities of a window's tokens to labelled tokens, words and entities."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any, TypeAlias

import numpy as np

from pinnace.arrays import Array
from pinnace.runtime.tokenization.tokenizer import Tokenizer

Entity: TypeAlias = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Window:
    """One row of a text.

    Attributes:
        text: the whole text.
        encoding: the row's ``tokenizers.Encoding``.
        probabilities: float32 ``[tokens, labels]``.
        word_starts: first character of each word where the text came split into words, else None.
    """

    text: str
    encoding: Any
    probabilities: Array
    word_starts: Array | None


@dataclasses.dataclass(frozen=True)
class _Units:
    """Tokens, or words of tokens, in the order of the text: their tokens ``first..last``, label and score."""

    first: Array
    last: Array
    label: Array
    score: Array


class Tagger:
    """Turns windows into entities by one strategy.

    Args:
        tokenizer: gives token strings and joins them to words.
        labels: the model's labels by id, as ``B-PER``, ``I-PER`` or plain.
        strategy: ``none``, ``simple``, ``first``, ``average`` or ``max``.
        ignore_labels: labels that are left out: whole ones without aggregation, bare ones with it.

    Source: behaviour of transformers 4.57, TokenClassificationPipeline's aggregation.
    """

    def __init__(self, tokenizer: Tokenizer, labels: Sequence[str], strategy: str, ignore_labels: Any) -> None:
        self._tokenizer = tokenizer
        self._labels = list(labels)
        self._strategy = strategy
        self._ignored: Collection[Any] = ignore_labels
        bare = [label[2:] if label.startswith(("B-", "I-")) else label for label in self._labels]
        self._tag = np.asarray([bare.index(tag) for tag in bare])
        self._begins = np.asarray([label.startswith("B-") for label in self._labels])
        self._group_name = [label.split("-", 1)[-1] for label in self._labels]

    def entities(self, window: Window) -> list[Entity]:
        """Return the entities of a window that are not ignored, in order."""
        encoding = window.encoding
        tokens = np.flatnonzero(np.asarray(encoding.special_tokens_mask, np.int8) == 0)
        if not tokens.size:
            return []
        ids = np.asarray(encoding.ids)[tokens]
        offsets = np.asarray(encoding.offsets)[tokens]  # (T, 2)
        if window.word_starts is not None:
            words = encoding.word_ids
            offsets = offsets + window.word_starts[[words[i] for i in tokens.tolist()]][:, None]
        names = encoding.tokens
        names = [names[i] for i in tokens.tolist()]
        unknown = ids == self._tokenizer.unk_token_id
        for i in np.flatnonzero(unknown).tolist():
            names[i] = window.text[offsets[i, 0] : offsets[i, 1]]
        units = self._units(window, tokens, names, offsets, unknown)
        if self._strategy == "none":
            return self._plain(units, tokens, names, offsets)
        return self._groups(units, names, offsets)

    def _units(self, window: Window, tokens: Array, names: list[str], offsets: Array, unknown: Array) -> _Units:
        chances = window.probabilities[tokens]
        everyone = np.arange(len(tokens))
        if self._strategy in ("none", "simple"):
            return _Units(everyone, everyone, chances.argmax(-1), chances.max(-1))
        continues = self._continues(window.text, names, offsets) & ~unknown
        continues[0] = False
        first = np.flatnonzero(~continues)
        last = np.append(first[1:], len(tokens)) - 1
        if self._strategy == "first":
            chances = chances[first]
        elif self._strategy == "average":
            chances = np.add.reduceat(chances, first) / (last - first + 1).astype(np.float32)[:, None]
        else:
            surest = chances.max(-1)
            word = np.cumsum(~continues) - 1
            candidates = np.flatnonzero(surest == np.maximum.reduceat(surest, first)[word])
            chances = chances[candidates[np.unique(word[candidates], return_index=True)[1]]]
        return _Units(first, last, chances.argmax(-1), chances.max(-1))

    def _continues(self, text: str, names: list[str], offsets: Array) -> Array:
        """Whether each token goes on with the word of the token before it."""
        if self._tokenizer.continuing_subword_prefix:
            # The prefix makes a token's string longer than the text that it covers; so does a lost accent.
            spans = np.minimum(offsets, len(text))
            lengths = np.fromiter(map(len, names), np.int64, len(names))
            return np.asarray(lengths != spans[:, 1] - spans[:, 0])
        # Only where tokens begin: the text may be long, and have a window for every few hundred tokens.
        starts = np.minimum(offsets[:, 0], len(text)).tolist()
        return np.asarray([start > 0 and " " not in text[start - 1 : start + 1] for start in starts])

    def _plain(self, units: _Units, tokens: Array, names: list[str], offsets: Array) -> list[Entity]:
        kept = np.asarray([label not in self._ignored for label in self._labels])[units.label]
        return [
            {
                "entity": self._labels[units.label[i]],
                "score": float(units.score[i]),
                "index": int(tokens[i]),
                "word": names[i],
                "start": int(offsets[i, 0]),
                "end": int(offsets[i, 1]),
            }
            for i in np.flatnonzero(kept).tolist()
        ]

    def _groups(self, units: _Units, names: list[str], offsets: Array) -> list[Entity]:
        tags = self._tag[units.label]
        opens = np.append(True, (tags[1:] != tags[:-1]) | self._begins[units.label[1:]])
        starts = np.flatnonzero(opens)
        stops = np.append(starts[1:], len(tags))
        scores = np.add.reduceat(units.score, starts) / (stops - starts).astype(np.float32)
        groups = []
        for start, stop, score in zip(starts.tolist(), stops.tolist(), scores.tolist(), strict=True):
            name = self._group_name[units.label[start]]
            if name in self._ignored:
                continue
            first, last = int(units.first[start]), int(units.last[stop - 1])
            words = names[first : last + 1]
            if self._strategy != "simple":
                spans = zip(units.first[start:stop].tolist(), units.last[start:stop].tolist(), strict=True)
                words = [self._join(names[a : b + 1]) for a, b in spans]
            groups.append(
                {
                    "entity_group": name,
                    "score": score,
                    "word": self._join(words),
                    "start": int(offsets[first, 0]),
                    "end": int(offsets[last, 1]),
                }
            )
        return groups

    def _join(self, names: list[str]) -> str:
        return str(self._tokenizer.convert_tokens_to_string(names))


def merge_overlapping(entities: list[Entity]) -> list[Entity]:
    """Of entities that overlap, as neighbouring windows give them, keep the longest, then the surest."""
    merged: list[Entity] = []
    for entity in sorted(entities, key=lambda e: int(e["start"])):
        if merged and merged[-1]["start"] <= entity["start"] < merged[-1]["end"]:
            if _weight(entity) > _weight(merged[-1]):
                merged[-1] = entity
        else:
            merged.append(entity)
    return merged


def _weight(entity: Entity) -> tuple[int, float]:
    return entity["end"] - entity["start"], entity["score"]
