"""Measures of answers, vectors and distributions, against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pinnace.compare import TASK_GATES, Evaluation, miss, task_gate
from pinnace.errors import UsageError
from pinnace.quantize.judging import metrics, task_metrics


@pytest.mark.parametrize(
    ("answer", "golds", "f1", "exact"),
    [
        ("The Cat!", ["cat"], 1.0, 1.0),  # case, article, punctuation
        ("a  small\tboat", ["small boat"], 1.0, 1.0),
        ("an anthem", ["anthem"], 1.0, 1.0),  # "an" goes, "anthem" stays
        ("small red boat", ["small boat"], 0.8, 0.0),  # precision 2/3, recall 1
        ("the boat boat", ["boat"], 2 / 3, 0.0),  # a repeated word counts once
        ("oar", ["mast", "oar of ash"], 0.5, 0.0),  # the best of several golds
        ("oar", [], 0.0, 0.0),
        ("", [], 1.0, 1.0),
        ("", ["oar"], 0.0, 0.0),
        ("the", [], 1.0, 1.0),  # nothing remains of it
        ("sea", ["", "sea"], 1.0, 1.0),
    ],
)
def test_answers_are_scored_by_the_rules_of_squad(answer: str, golds: list[str], f1: float, exact: float) -> None:
    assert metrics.answer_f1(answer, golds) == pytest.approx(f1)
    assert metrics.exact_match(answer, golds) == exact


def test_entities_count_over_all_texts_and_only_as_a_whole() -> None:
    golds = [[(0, 3, "PER"), (5, 9, "LOC")], [(0, 2, "ORG")], []]
    found = [[(0, 3, "PER"), (5, 8, "LOC")], [(0, 2, "PER")], [(1, 2, "PER")]]
    assert metrics.micro_f1(found, golds) == pytest.approx(2 * 1 / (4 + 3))
    assert metrics.micro_f1(golds, golds) == 1.0
    assert metrics.micro_f1([[], []], [[], []]) == 1.0
    assert metrics.micro_f1([[(0, 3, "PER")] * 2], [[(0, 3, "PER")]]) == pytest.approx(2 / 3)  # found twice, right once


def test_rankings() -> None:
    assert metrics.reciprocal_rank([2, 0, 1], [1]) == pytest.approx(1 / 3)
    assert metrics.reciprocal_rank([2, 0, 1], [0, 2]) == 1.0
    assert metrics.reciprocal_rank([2, 0], [1]) == 0.0


def test_correlation() -> None:
    assert metrics.correlation([1, 2, 3], [2, 4, 6]) == pytest.approx(1.0)
    assert metrics.correlation([1, 2, 3], [6, 4, 2]) == pytest.approx(-1.0)
    assert metrics.correlation([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(0.8)
    assert metrics.correlation([5, 5], [5, 5]) == 1.0
    assert metrics.correlation([5, 5], [4, 6]) == 0.0
    with pytest.raises(UsageError, match="at least 2 examples, got 1"):
        metrics.correlation([1], [1])


def test_each_output_of_a_regression_must_correlate() -> None:
    """Levels that differ between outputs correlate by themselves, and an output that never varies says nothing."""
    random, levels = np.random.default_rng(0), np.array([0.0, 50.0, 100.0])
    golds = [levels + random.standard_normal(3) for _ in range(200)]
    noise = [levels + random.standard_normal(3) for _ in range(200)]
    assert task_metrics._NUMBER.measure(noise, golds)[0] < 0.3
    half = [np.append(gold[:2], other[2]) for gold, other in zip(golds, noise, strict=True)]
    assert task_metrics._NUMBER.measure(half, golds)[0] < 0.3
    still = [np.append(gold[:2], 7.0) for gold in golds]
    assert task_metrics._NUMBER.measure(golds, still)[0] == pytest.approx(1.0)


def test_a_difference_sees_scale_and_shift() -> None:
    right = np.array([[0.0, 10.0], [2.0, -20.0], [-4.0, 5.0]])
    assert metrics.largest_difference(right, right) == 0.0
    assert metrics.largest_difference(2 * right, right) == 1.0
    assert metrics.largest_difference(right + np.array([0, 5]), right) == 0.25
    assert metrics.largest_difference(right + np.array([3, 5]), right) == 0.75  # the worse of both outputs
    assert metrics.largest_difference(right[:, :1], np.zeros((3, 1))) == 4.0


def test_cosines() -> None:
    a = np.array([[1, 0], [3, 4], [0, 0], [0, 0], [-2, 0]], np.float32)
    b = np.array([[0, 1], [4, 3], [0, 0], [1, 0], [1, 0]], np.float32)
    assert metrics.cosines(a, b).tolist() == pytest.approx([0.0, 24 / 25, 1.0, 0.0, -1.0])


def test_neighbours_leave_out_the_vector_itself() -> None:
    degrees = np.radians([0, 10, 25, 90, 100])
    vectors = np.stack([np.cos(degrees), np.sin(degrees)], 1) * np.array([[1], [50], [0.1], [1], [7]])
    assert metrics.neighbours(vectors, 1).ravel().tolist() == [1, 0, 1, 4, 3]  # by angle, not by length
    moved = np.radians([0, 24, 25, 90, 100])
    other = np.stack([np.cos(moved), np.sin(moved)], 1)
    for k, kept in ((1, [1, 0, 1, 1, 1]), (2, [1, 1, 1, 1, 1])):
        assert metrics.shared(metrics.neighbours(other, k), metrics.neighbours(vectors, k)).tolist() == kept
    with pytest.raises(UsageError, match="5 neighbours need more than 5 examples, got 5"):
        metrics.neighbours(vectors, 5)


def test_neighbours_of_many_vectors_are_those_of_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "SIMILARITIES", 1024 * 1500)
    vectors = np.random.default_rng(0).standard_normal((1500, 8))  # more than one block of rows
    got = metrics.neighbours(vectors, 3)
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for i in (0, 1023, 1024, 1499):
        near = [j for j in np.argsort(-(units @ units[i]), kind="stable") if j != i]
        assert got[i].tolist() == near[:3]


def test_divergence_is_that_of_the_definition() -> None:
    p, q = np.array([0.5, 0.25, 0.25]), np.array([0.25, 0.25, 0.5])
    expected = 0.5 * math.log(2) + 0.25 * math.log(0.5)
    found = metrics.divergence(np.log(p)[None] + 7, np.log(q)[None] - 3)  # a shift of the logits changes nothing
    assert found.tolist() == pytest.approx([expected])
    assert metrics.divergence(np.log(q)[None], np.log(p)[None])[0] == pytest.approx(expected)  # equal here by symmetry
    skewed = np.array([0.7, 0.2, 0.1])
    one, other = metrics.divergence(np.log([p]), np.log([skewed])), metrics.divergence(np.log([skewed]), np.log([p]))
    assert one[0] != pytest.approx(other[0])  # which one is the reference matters
    assert one[0] == pytest.approx(float((p * np.log(p / skewed)).sum()))


def test_large_logits_do_not_overflow_and_small_divergences_are_not_lost() -> None:
    logits = np.array([[1e4, 0.0, -1e4]], np.float32)
    assert np.isfinite(metrics.log_softmax(logits)).all()
    assert metrics.divergence(logits, logits)[0] == 0.0
    base = np.array([[1.0, 2.0, 3.0]], np.float32)
    near = base + np.array([[0, 0, 2.0**-12]], np.float32)
    p = np.exp(metrics.log_softmax(base))[0]
    # To second order KL is half the variance of the shift; float32 would round 3e-9 away.
    assert metrics.divergence(base, near)[0] == pytest.approx(0.5 * p[2] * (1 - p[2]) * 2.0**-24, rel=1e-3)


def test_tokens() -> None:
    logits = np.log(np.array([[0.1, 0.6, 0.3], [0.5, 0.2, 0.3]]))
    assert metrics.token_nats(logits, np.array([1, 2])).tolist() == pytest.approx([-math.log(0.6), -math.log(0.3)])
    assert metrics.top1_kept(logits, np.array([[0, 2, 1], [0, 0, 1.0]])).tolist() == [True, False]


def evaluation(
    metric: str, value: float, reference: float = 1.0, precision: str = "int8", **details: float
) -> Evaluation:
    return Evaluation("a-task", precision, metric, value, reference, 100, True, details)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (evaluation("f1", 0.7812, 0.789), ""),  # 99.01 %
        (evaluation("f1", 0.7810, 0.789), "f1 0.7810, needed at least 0.7811 (99.0% of fp32's 0.7890)"),
        (evaluation("accuracy", 0.99), ""),
        (evaluation("correlation", -0.5, -0.5, largest_difference=0.25), ""),
        (evaluation("correlation", 1.0, largest_difference=0.26), "largest difference 0.2600, allowed at most 0.25"),
        (
            evaluation("correlation", -0.51, -0.5, largest_difference=0.0),
            "correlation -0.5100, needed at least -0.5050",
        ),
        (evaluation("accuracy", 0.99, precision="int4"), ""),
        (evaluation("entity_f1", 0.99, precision="fp16"), "entity f1 0.9900, needed at least 0.9950"),
        (evaluation("neighbour_overlap", 0.965, mean_cosine=0.9975), ""),
        (
            evaluation("neighbour_overlap", 0.954, mean_cosine=0.9975),
            "neighbour overlap 0.9540, needed at least 0.9650",
        ),
        (evaluation("neighbour_overlap", 0.965, mean_cosine=0.997), "mean cosine 0.9970, needed at least 0.9975"),
        (evaluation("kl", 0.01, 0.0, top1=0.97), ""),
        (evaluation("kl", 0.011, 0.0, top1=0.97), "kl 0.0110, allowed at most 0.01"),
        (
            evaluation("kl", 0.011, 0.0, top1=0.9),
            "kl 0.0110, allowed at most 0.01; top1 0.9000, needed at least 0.9700",
        ),
        (evaluation("kl", 0.05, 0.0, "int4", top1=0.92), ""),
        (evaluation("kl", 0.05, 0.0, "int4", top1=0.919), "top1 0.9190, needed at least 0.9200"),
        (evaluation("kl", math.nan, 0.0, top1=1.0), "NaN or infinity in the result"),
        (evaluation("kl", 0.001, 0.0, top1=math.nan), "top1 nan, needed at least 0.9700"),
    ],
)
def test_gates(found: Evaluation, words: str) -> None:
    said = miss(found, task_gate(found.precision, found.metric))
    assert said.startswith(words) if words else said == ""


def test_the_users_largest_drop_replaces_the_gates_own_and_nothing_else() -> None:
    loose = task_gate("int8", "f1", 0.05)
    assert miss(evaluation("f1", 0.76, 0.8), loose) == ""
    assert "needed at least 0.7600" in miss(evaluation("f1", 0.759, 0.8), loose)
    strict = task_gate("int8", "f1", 0.0)
    assert miss(evaluation("f1", 0.7999, 0.8), strict) and not miss(evaluation("f1", 0.81, 0.8), strict)
    assert "kl" in miss(evaluation("kl", 0.02, 0.0, top1=0.95), task_gate("int8", "kl", 0.1))
    assert miss(evaluation("kl", 0.01, 0.0, top1=0.95), task_gate("int8", "kl", 0.1)) == ""
    assert "mean cosine" in miss(
        evaluation("neighbour_overlap", 0.9, mean_cosine=0.9), task_gate("int8", "neighbour_overlap", 0.5)
    )
    for drop in (-0.1, 1.1, math.nan):
        with pytest.raises(UsageError, match=r"expected 0 to 1, 0\.01 for one per cent"):
            task_gate("int8", "f1", drop)
    with pytest.raises(UsageError, match="Did you mean 'int8 f1'"):
        task_gate("int8", "f2")


def test_each_gate_has_one_bound_that_a_drop_replaces() -> None:
    for gate in TASK_GATES.values():
        assert sum(bound.drop for bound in gate) == 1
