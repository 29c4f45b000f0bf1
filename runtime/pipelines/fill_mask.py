"""Fill-mask: the words that a model of language puts where a text has a mask."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from pinnace.arrays import Array
from pinnace.errors import InputError, UsageError
from pinnace.runtime.arguments import check_count, check_text
from pinnace.runtime.pipelines.base import CallOptions, Pipeline
from pinnace.runtime.pipelines.scores import softmax

_TOKENIZER_ARGUMENTS = ("truncation", "max_length")


@dataclasses.dataclass(frozen=True)
class FillMaskOptions(CallOptions):
    """Options of fill-mask.

    Attributes:
        top_k: how many words for each mask.
        targets: a word or words to choose among, rather than the whole vocabulary; a word that the vocabulary lacks
            is replaced by its first token, with a warning.
        tokenizer_kwargs: ``truncation`` and ``max_length`` for texts that are too long.
    """

    top_k: int | None = 5
    targets: Any = None
    tokenizer_kwargs: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("top_k", self.top_k)
        if not isinstance(self.tokenizer_kwargs, Mapping | None):
            raise UsageError(f"tokenizer_kwargs is {self.tokenizer_kwargs!r}; expected a mapping of names to values")
        unknown = sorted(map(str, set(self.tokenizer_kwargs or ()) - set(_TOKENIZER_ARGUMENTS)))
        if unknown:
            raise UsageError(
                f"tokenizer_kwargs has {', '.join(unknown)}; expected only {' and '.join(_TOKENIZER_ARGUMENTS)}"
            )


class FillMaskPipeline(Pipeline[FillMaskOptions]):
    """Fill the masks of a text: ``[{score, token, token_str, sequence}]``, a list of such lists for several masks.

    Several masks are judged each on its own, with the others left in place.

    Source: behaviour of transformers 4.57, FillMaskPipeline.
    """

    task = "fill-mask"
    bundle_tasks = ("fill-mask",)
    options_type = FillMaskOptions

    def check_input(self, item: Any, place: str) -> tuple[str, str]:
        """Accept a text; its place is kept for the message when it has no mask."""
        return check_text(item, place), place

    def answer(self, items: list[tuple[str, str]], options: FillMaskOptions) -> list[Any]:
        """Fill the masks of each text."""
        encodings = self.encode([text for text, _ in items], **dict(options.tokenizer_kwargs or {})).encodings or []
        mask = self.tokenizer.mask_token_id
        masked = [np.flatnonzero(np.asarray(encoding.ids) == mask) for encoding in encodings]
        for (_, place), positions in zip(items, masked, strict=True):
            if not positions.size:
                raise InputError(
                    f"{place} has no mask in its first {self.longest} tokens, expected at least one; "
                    f"write {self.tokenizer.mask_token} where a word is to be found"
                )
        targets = self._target_ids(options.targets)
        results: list[Any] = [None] * len(items)
        for places, outputs in self.batches(encodings, options):
            for row, i in enumerate(places):
                logits = outputs["logits"][row, masked[i]]  # (masks, V)
                results[i] = self._fill(np.asarray(encodings[i].ids), masked[i], logits, targets, options.top_k or 5)
        return results

    def _fill(self, ids: Array, positions: Array, logits: Array, targets: Array | None, top_k: int) -> Any:
        probabilities = softmax(logits)
        if targets is not None:
            probabilities = probabilities[:, targets]
        top_k = min(top_k, probabilities.shape[1])
        best = np.argpartition(-probabilities, top_k - 1, axis=-1)[:, :top_k]
        order = np.argsort(-np.take_along_axis(probabilities, best, -1), axis=-1, kind="stable")
        best = np.take_along_axis(best, order, -1)  # (masks, top_k)
        scores = np.take_along_axis(probabilities, best, -1)
        tokens = best if targets is None else targets[best]
        alone = len(positions) == 1
        pad = self.tokenizer.pad_token_id
        rows = []
        for position, chosen, values in zip(positions.tolist(), tokens.tolist(), scores.tolist(), strict=True):
            row = []
            for token, score in zip(chosen, values, strict=True):
                filled = [i for i in (*ids[:position].tolist(), token, *ids[position + 1 :].tolist()) if i != pad]
                # With several masks, the special tokens stay: skipping them would drop the other masks too.
                sequence = self.tokenizer.decode(filled, skip_special_tokens=alone)
                word = self.tokenizer.decode([token])
                row.append({"score": score, "token": token, "token_str": word, "sequence": sequence})
            rows.append(row)
        return rows[0] if alone else rows

    def _target_ids(self, targets: Any) -> Array | None:
        if targets is None:
            return None
        words = [targets] if isinstance(targets, str) else targets
        if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
            raise UsageError(f"targets is {targets!r}; expected a word or a list of words")
        vocabulary = self.tokenizer.get_vocab()
        ids = []
        for word in words:
            token = vocabulary.get(word)
            if token is None:
                pieces = self.tokenizer(word, add_special_tokens=False)["input_ids"]
                text = self.tokenizer.convert_ids_to_tokens(pieces[0]) if pieces else None
                known = f"its first token {text!r} stands for it" if pieces else "it is left out"
                warnings.warn(f"the target {word!r} is not in the vocabulary; {known}", UserWarning, stacklevel=4)
                token = pieces[0] if pieces else None
            if token is not None and token not in ids:
                ids.append(token)
        if not ids:
            raise UsageError(f"targets is {targets!r}, of which no word has a token; expected at least one that has")
        return np.asarray(ids)
