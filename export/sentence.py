"""One real sentence for the grid, where the checkpoint has a tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from pinnace.export.cases import Case
from pinnace.export.interface import Interface
from pinnace.runtime.tokenization.tokenizer import load_tokenizer
from pinnace.spec import Limits

TEXT: Final = "A pinnace is a small boat that carries people and goods between a ship and the shore."
PAIR: Final = "What is a pinnace?"
LONGEST: Final = 64  # tokens
SHORTEST: Final = 8  # of a model that is worth it: a pair has three special tokens


def sentence_case(folder: Path, interface: Interface, limits: Limits) -> Case | None:
    """Tokenize a pair of sentences, or one where the model knows a single segment.

    None for graphs with fixed shapes, choices or a cache, which the grid covers; for rows too short for a sentence; and
    where the tokenizer gives an id that the model does not have, as one that is larger than the vocabulary may.
    """
    names = {spec.name for spec in interface.inputs}
    if interface.options.static or interface.cache is not None or len(interface.inputs[0].shape) != 2:
        return None
    if limits.sequence < SHORTEST:
        return None
    texts = (PAIR, TEXT) if limits.token_types > 1 else (TEXT,)
    encoded = load_tokenizer(folder)(
        *texts, return_token_type_ids=True, truncation=True, max_length=min(LONGEST, limits.sequence)
    )
    if not _known(encoded["input_ids"], limits.vocabulary) or not _known(encoded["token_type_ids"], limits.token_types):
        return None
    places = {"position_ids": range(len(encoded["input_ids"]))}
    inputs = {name: np.asarray([places.get(name) or encoded[name]], np.int64) for name in sorted(names)}
    return Case("sentence", inputs, inputs["attention_mask"] != 0)


def _known(ids: Sequence[int], count: int) -> bool:
    return all(0 <= number < count for number in ids)
