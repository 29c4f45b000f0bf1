"""Logits to probabilities, in float32 whatever the model computes in."""

from __future__ import annotations

import numpy as np

from pinnace.arrays import Array


def softmax(logits: Array) -> Array:
    """Probabilities over the last axis."""
    logits = np.asarray(logits, np.float32)
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))


def sigmoid(logits: Array) -> Array:
    """Probability of each value on its own, without overflow for large negative values."""
    logits = np.asarray(logits, np.float32)
    small = np.exp(-np.abs(logits))
    return np.asarray(np.where(logits >= 0, 1, small) / (1 + small), np.float32)
