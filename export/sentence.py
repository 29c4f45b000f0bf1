"""One real sentence for the grid, where the checkpoint has a tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from pinnace.export.cases import Case
from pinnace.export.interface import Interface
from pinnace.runtime.tokenizer import load_tokenizer

TEXT: Final = "A pinnace is a small boat that carries people and goods between a ship and the shore."
PAIR: Final = "What is a pinnace?"


def sentence_case(folder: Path, interface: Interface) -> Case | None:
    """Tokenize a pair of sentences; None for graphs with fixed shapes, choices or a cache, which the grid covers."""
    names = {spec.name for spec in interface.inputs}
    if interface.options.static or interface.cache is not None or len(interface.inputs[0].shape) != 2:
        return None
    encoded = load_tokenizer(folder)(PAIR, TEXT, return_token_type_ids=True, truncation=True, max_length=64)
    places = {"position_ids": range(len(encoded["input_ids"]))}
    inputs = {name: np.asarray([places.get(name) or encoded[name]], np.int64) for name in sorted(names)}
    return Case("sentence", inputs, inputs["attention_mask"] != 0)
