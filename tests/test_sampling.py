"""Picking tokens: the likeliest, draws that follow the distribution, and seeds that reproduce whatever the batch."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from pinnace.errors import NumericalError
from pinnace.runtime.generation.logits_filters import softmax, temperature, top_k
from pinnace.runtime.generation.sampling import generator, greedy, sample, sample_without_replacement

DRAWS = 40_000


def scores(rows: int, vocabulary: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(rows, vocabulary)).astype(np.float32)


def chi_square(counts: NDArray[np.int64], shares: NDArray[np.float64]) -> float:
    """Distance of counts from what shares expect, in standard deviations of the statistic (Wilson and Hilferty)."""
    expected = shares * counts.sum()
    statistic = float(((counts - expected) ** 2 / expected).sum())
    spread = 2 / (9 * (len(counts) - 1))
    return float(((statistic / (len(counts) - 1)) ** (1 / 3) - (1 - spread)) / spread**0.5)


def drawn(row: NDArray[np.float32], seed: int = 1) -> NDArray[np.int64]:
    source = generator(seed)
    tokens = [int(sample(row[None], [source])[0]) for _ in range(DRAWS)]
    return np.bincount(tokens, minlength=row.size)


def test_draws_follow_the_distribution() -> None:
    row = scores(1, 12)[0] * 1.5
    counts = drawn(row)
    assert chi_square(counts, softmax(row).astype(np.float64)) < 4
    # The test can fail: a distribution that is a little sharper is told apart.
    assert chi_square(counts, softmax(row * np.float32(1.1)).astype(np.float64)) > 6


def test_draws_follow_filters() -> None:
    row = top_k(5)(temperature(0.7)(scores(1, 300)))[0]
    counts = drawn(row)
    live = np.isfinite(row)
    assert counts[~live].sum() == 0
    assert chi_square(counts[live], softmax(row)[live].astype(np.float64)) < 4


def test_draws_without_replacement_follow_the_distribution() -> None:
    row = scores(1, 4, seed=3)[0]
    shares = softmax(row).astype(np.float64)
    pairs = list(itertools.permutations(range(4), 2))
    expected = np.array([shares[a] * shares[b] / (1 - shares[a]) for a, b in pairs])
    source = generator(2)
    counts = np.zeros(len(pairs), dtype=np.int64)
    for _ in range(DRAWS // 2):
        first, second = sample_without_replacement(row, 2, source)
        counts[pairs.index((int(first), int(second)))] += 1
    assert chi_square(counts, expected) < 4
    assert chi_square(counts, np.full(len(pairs), 1 / len(pairs))) > 6


def test_forbidden_places_are_drawn_last() -> None:
    row = np.array([-np.inf, 0, -np.inf, 1], dtype=np.float32)
    for seed in range(20):
        assert set(sample_without_replacement(row, 2, generator(seed)).tolist()) == {1, 3}


def test_a_rows_draws_do_not_depend_on_its_batch() -> None:
    steps = [scores(6, 50, seed) for seed in range(10)]
    sources = [generator(9, row % 3) for row in range(6)]
    together = np.array([sample(step, sources) for step in steps])
    for row in range(6):
        source = [generator(9, row % 3)]
        alone = [int(sample(step[row : row + 1], source)[0]) for step in steps]
        assert alone == together[:, row].tolist()


def test_sequences_of_one_prompt_differ_and_seeds_repeat() -> None:
    row = np.zeros((1, 1000), dtype=np.float32)

    def tokens(seed: int | None, sequence: int) -> list[int]:
        source = [generator(seed, sequence)]
        return [int(sample(row, source)[0]) for _ in range(5)]

    assert tokens(1, 0) == tokens(1, 0)
    assert len({tuple(tokens(seed, sequence)) for seed in range(4) for sequence in range(4)}) == 16
    assert tokens(None, 0) != tokens(None, 0)
    assert tokens(2**64 - 1, 0) != tokens(0, 0)


class Edge:
    """Stands for a generator whose number is the largest below 1."""

    def random(self) -> float:
        return float(np.nextafter(1, 0))


def test_the_last_number_below_one_draws_a_token() -> None:
    for seed in range(50):
        row = scores(1, 7, seed)
        row[:, -2:] = -np.inf
        assert sample(row, [Edge()])[0] == 4  # type: ignore[list-item]


def test_greedy_takes_the_first_of_equals() -> None:
    rows = np.array([[1, 3, 3, 2], [5, 0, 5, 5]], dtype=np.float32)
    assert greedy(rows).tolist() == [1, 0]
    assert greedy(rows).dtype == np.int64


@pytest.mark.parametrize(
    ("value", "text"), [(np.nan, "NaN or infinity"), (np.inf, "NaN or infinity"), (-np.inf, "forbid every token")]
)
def test_scores_that_give_no_token(value: float, text: str) -> None:
    rows = scores(3, 8)
    rows[1] = value
    sources = [generator(0) for _ in range(3)]
    with pytest.raises(NumericalError, match=text):
        greedy(rows)
    with pytest.raises(NumericalError, match=text):
        sample(rows, sources)
    with pytest.raises(NumericalError, match=text):
        sample_without_replacement(rows[1], 2, sources[0])


def test_one_nan_among_numbers_is_found() -> None:
    rows = scores(2, 100)
    rows[1, 50] = np.nan
    with pytest.raises(NumericalError, match="NaN"):
        greedy(rows)
    with pytest.raises(NumericalError, match="NaN"):
        sample(rows, [generator(0), generator(1)])
