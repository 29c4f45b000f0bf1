"""Tokenized rows become the inputs of a graph: padded to the longest of the batch, or to the graph's fixed shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pinnace.arrays import Array
from pinnace.runtime.pipelines.batching import pad_rows
from pinnace.spec import Manifest


def make_feeds(
    manifest: Manifest, encodings: Sequence[Any], padding: int, width: int, rows: int | None
) -> dict[str, Array]:
    """Build the inputs of one run, int64 by name.

    Args:
        manifest: which inputs the graph takes, and in which shapes.
        encodings: the tokenized rows, ``width`` for each row of the batch.
        padding: id of the padding token.
        width: rows that belong together, as `fixed_shape` says.
        rows: rows of the batch where the graph fixes them.
    """
    specs = {spec.name: spec.shape for spec in manifest.inputs}
    # A row without any token (an empty text and no special ones) becomes one token of padding.
    tokens = [encoding.ids or [padding] for encoding in encodings]
    ids = pad_rows(tokens, padding)
    feeds = {"input_ids": ids}
    if "attention_mask" in specs:
        feeds["attention_mask"] = pad_rows([encoding.attention_mask or [1] for encoding in encodings], 0)
    if "token_type_ids" in specs:
        feeds["token_type_ids"] = pad_rows([encoding.type_ids or [0] for encoding in encodings], 0)
    if "position_ids" in specs:
        # Padding stays at its row's last place: dynamic scaling takes the largest of a row for its length.
        last = np.array([[len(row) - 1] for row in tokens], np.int64)
        feeds["position_ids"] = np.minimum(np.arange(ids.shape[1]), last)
    shape = specs["input_ids"]
    extra_rows = 0 if rows is None else rows * width - len(encodings)
    extra_tokens = shape[-1] - ids.shape[1] if isinstance(shape[-1], int) else 0
    if extra_rows or extra_tokens:
        # Rows are repeated rather than blank: a row without any token would attend to nothing.
        feeds = {
            name: np.pad(np.pad(values, ((0, extra_rows), (0, 0)), mode="edge"), ((0, 0), (0, extra_tokens)))
            for name, values in feeds.items()
        }
    if len(shape) == 3:
        feeds = {name: values.reshape(-1, width, values.shape[-1]) for name, values in feeds.items()}
    return feeds


class FixedShape(NamedTuple):
    """What a graph fixes of its inputs' shape.

    Attributes:
        width: rows that belong together: the choices where their number is fixed, else 1.
        rows: rows of the batch, each of ``width``; None where any number will do.
        tokens: tokens of a row; None where any number will do.
    """

    width: int
    rows: int | None
    tokens: int | None


def fixed_shape(manifest: Manifest) -> FixedShape:
    """Return what a bundle's graphs fix of their inputs' shape."""
    shape = next(spec.shape for spec in manifest.inputs if spec.name == "input_ids")
    fixed = [size if isinstance(size, int) else None for size in shape]
    return FixedShape((fixed[1] or 1) if len(shape) == 3 else 1, fixed[0], fixed[-1])
