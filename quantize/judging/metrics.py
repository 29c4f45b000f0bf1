"""Measures of answers, vectors and distributions: a variant's against labels, or against those of fp32."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Collection, Hashable, Sequence
from typing import Final

import numpy as np

from pinnace.arrays import Array
from pinnace.errors import UsageError

SIMILARITIES: Final = 1 << 22  # of vectors, worked on at a time; some three arrays of this size live at once
_ARTICLES: Final = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION: Final = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Lower case, without ASCII punctuation, English articles and extra blanks, as SQuAD's evaluation compares."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def exact_match(answer: str, golds: Collection[str]) -> float:
    """1.0 where the normalized answer is one of the gold answers; no golds, or an empty one, mean "no answer"."""
    said = normalize_answer(answer)
    return float(any(said == normalize_answer(gold) for gold in golds or ("",)))


def answer_f1(answer: str, golds: Collection[str]) -> float:
    """Largest F1 of the answer's words against a gold answer's; where either is "no answer", 1.0 if both are.

    Source: SQuAD 2.0's official evaluation.
    """
    said = normalize_answer(answer).split()
    return max(_word_f1(said, normalize_answer(gold).split()) for gold in golds or ("",))


def _word_f1(said: list[str], gold: list[str]) -> float:
    if not said or not gold:
        return float(said == gold)
    # F1 = 2 * precision * recall / (precision + recall) = 2 * shared / (said + gold)
    return 2 * (Counter(said) & Counter(gold)).total() / (len(said) + len(gold))


def micro_f1(found: Sequence[Collection[Hashable]], golds: Sequence[Collection[Hashable]]) -> float:
    """F1 over all texts together: of entities ``(start, end, label)``, right only as a whole, or of labels.

    Args:
        found: what was found in each text.
        golds: what is right in each text.

    Returns:
        0 to 1; 1 where there is nothing to find and nothing was found.
    """
    shared = sum((Counter(f) & Counter(g)).total() for f, g in zip(found, golds, strict=True))
    both = sum(map(len, found)) + sum(map(len, golds))
    return 2 * shared / both if both else 1.0


def reciprocal_rank(order: Sequence[int], relevant: Collection[int]) -> float:
    """1 / the place, from 1, of the first relevant document in a ranking; 0 where none is ranked."""
    return next((1 / place for place, index in enumerate(order, 1) if index in relevant), 0.0)


def correlation(found: Sequence[float] | Array, golds: Sequence[float] | Array) -> float:
    """Pearson's correlation of two lists of numbers; 1 or 0 where one does not vary: whether they are equal.

    Raises:
        UsageError: fewer than two numbers.
    """
    a, b = np.asarray(found, np.float64), np.asarray(golds, np.float64)
    if len(a) < 2:
        raise UsageError(f"a correlation needs at least 2 examples, got {len(a)}; give more")
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norm if norm > 0 else float(np.allclose(found, golds))


def largest_difference(found: Array, reference: Array) -> float:
    """Largest difference of an output's numbers, relative to its largest magnitude in the reference; of all outputs.

    A correlation sees neither a wrong scale nor a shift; this does.

    Args:
        found: [examples, outputs].
        reference: [examples, outputs].
    """
    a, b = np.asarray(found, np.float64), np.asarray(reference, np.float64)
    gaps, sizes = np.abs(a - b).max(0), np.abs(b).max(0)
    return float((gaps / np.where(sizes > 0, sizes, 1.0)).max())


def cosines(vectors: Array, reference: Array) -> Array:
    """Cosine of each vector with its reference.

    Args:
        vectors: [N, D].
        reference: [N, D].

    Returns:
        float64 [N]; where a vector is all zeros, 1 if both are, else 0.
    """
    a, b = np.asarray(vectors, np.float64), np.asarray(reference, np.float64)
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    equal = (a == b).all(-1)
    return np.where(equal, 1.0, (a * b).sum(-1) / np.where(norms > 0, norms, 1.0))


def neighbours(vectors: Array, k: int) -> Array:
    """The ``k`` other vectors with the largest cosine to each.

    Args:
        vectors: [N, D].
        k: how many, below N.

    Returns:
        int64 [N, k], best first; of equal ones, the first in order.

    Raises:
        UsageError: too few vectors.
    """
    if not 0 < k < len(vectors):
        raise UsageError(f"{k} neighbours need more than {k} examples, got {len(vectors)}; give more")
    units = np.asarray(vectors, np.float64)
    units = units / np.maximum(np.linalg.norm(units, axis=-1, keepdims=True), 1e-300)
    best = np.empty((len(units), k), np.int64)
    rows = max(1, SIMILARITIES // len(units))  # at a time: N x N would not fit for large N
    for first in range(0, len(units), rows):
        block = units[first : first + rows] @ units.T
        block[np.arange(len(block)), first + np.arange(len(block))] = -np.inf  # a vector is not its own neighbour
        best[first : first + len(block)] = np.argsort(-block, axis=-1, kind="stable")[:, :k]
    return best


def shared(got: Array, want: Array) -> Array:
    """Share of each row's neighbours ``got`` that are also among ``want``, both from `neighbours`: float64 [N]."""
    return np.asarray((got[:, :, None] == want[:, None, :]).any(-1).mean(-1))


def log_softmax(logits: Array) -> Array:
    """Natural logarithms of the probabilities over the last axis, in float64 and without overflow."""
    shifted = np.asarray(logits, np.float64) - np.max(logits, axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


def divergence(reference: Array, logits: Array) -> Array:
    """Kullback-Leibler divergence KL(reference || variant) of each pair of distributions, in nats.

    Args:
        reference: fp32's logits [N, V].
        logits: the variant's logits [N, V].

    Returns:
        float64 [N], at least 0.
    """
    p, q = log_softmax(reference), log_softmax(logits)
    return np.asarray(np.maximum((np.exp(p) * (p - q)).sum(-1), 0.0))


def top1_kept(reference: Array, logits: Array) -> Array:
    """Whether each row's largest entry stays in place: bool [N] from logits [N, V]."""
    return np.asarray(np.argmax(reference, -1) == np.argmax(logits, -1))


def token_nats(logits: Array, targets: Array) -> Array:
    """Negative log-likelihood of each target, in nats: float64 [N] from logits [N, V] and ids [N]."""
    return np.asarray(-log_softmax(logits)[np.arange(len(targets)), targets])
