"""Random inputs of a graph, for timing, and to calibrate with where a bundle has no tokenizer and so takes no texts."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pinnace.runtime.pipelines.feeds import fixed_shape
from pinnace.spec import Manifest

FEEDS: Final = 24
TOKENS: Final = 128


def random_inputs(manifest: Manifest, generator: np.random.Generator, rows: int, tokens: int) -> dict[str, Any]:
    """Rows of random tokens without padding, at least two choices where the model chooses, an empty cache.

    Args:
        manifest: of the bundle.
        generator: gives the tokens.
        rows: B, unless the graph fixes it.
        tokens: T, at most what the model takes, unless the graph fixes it.
    """
    fixed = fixed_shape(manifest)
    shape = (fixed.rows or rows, fixed.tokens or min(tokens, manifest.limits.sequence))
    return inputs_of(manifest, generator.integers(0, manifest.limits.vocabulary, shape))


def inputs_of(manifest: Manifest, ids: npt.NDArray[np.int64]) -> dict[str, Any]:
    """All inputs for rows of tokens ``(B, T)`` without padding, an empty cache; each choice gets the same tokens.

    A graph of fixed shape must fix these B and T.
    """
    rows, tokens = ids.shape
    sizes = {"batch": rows, "sequence": tokens, "past_sequence": 0, "total_sequence": tokens}
    inputs: dict[str, Any] = {}
    for spec in manifest.inputs:
        shape = tuple(size if isinstance(size, int) else sizes.get(size, 2) for size in spec.shape)
        inputs[spec.name] = np.zeros(shape, spec.dtype)
    choices = inputs["input_ids"].ndim == 3
    inputs["input_ids"][:] = ids[:, None] if choices else ids
    if "attention_mask" in inputs:
        inputs["attention_mask"][..., :tokens] = 1  # what a cache of fixed capacity has behind them is empty
    if "position_ids" in inputs:
        inputs["position_ids"][:] = np.arange(tokens)
    return inputs


def random_feeds(manifest: Manifest, seed: int = 0) -> list[dict[str, Any]]:
    """A few runs to calibrate with; they tell the scale of activations, and nothing of real ones."""
    generator = np.random.default_rng(seed)
    return [random_inputs(manifest, generator, 1, TOKENS) for _ in range(FEEDS)]
