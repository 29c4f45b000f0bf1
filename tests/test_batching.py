"""Batches: every row once, within the budget, little padding, the same each time."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinnace.errors import UsageError
from pinnace.runtime.machine import threads
from pinnace.runtime.pipelines.batching import default_token_budget, pad_rows, plan_batches


@given(st.lists(st.integers(0, 600), max_size=80), st.integers(1, 2000), st.none() | st.integers(1, 9))
def test_every_row_once_and_within_the_budget(lengths: list[int], budget: int, rows: int | None) -> None:
    batches = plan_batches(lengths, token_budget=budget, max_rows=rows)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert 1 <= len(batch) <= (rows or len(batch))
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget
    assert batches == plan_batches(lengths, token_budget=budget, max_rows=rows)


@given(st.lists(st.integers(1, 90), min_size=1, max_size=9), st.integers(1, 300), st.integers(0, 40))
def test_no_other_cut_is_cheaper(lengths: list[int], budget: int, run_tokens: int) -> None:
    sizes = sorted(lengths, reverse=True)

    def cost(batches: list[list[int]]) -> int:
        return sum(run_tokens + len(batch) * max(batch) for batch in batches)

    possible = []
    for cuts in itertools.product([False, True], repeat=len(sizes) - 1):
        edges = [0, *(i for i, cut in enumerate(cuts, 1) if cut), len(sizes)]
        batches = [sizes[a:b] for a, b in itertools.pairwise(edges)]
        if all(len(batch) == 1 or len(batch) * batch[0] <= budget for batch in batches):
            possible.append(cost(batches))
    planned = plan_batches(lengths, token_budget=budget, run_tokens=run_tokens)
    assert cost([[lengths[i] for i in batch] for batch in planned]) == min(possible)


def test_a_long_row_does_not_pad_short_ones() -> None:
    assert plan_batches([12, 127, 13, 15], token_budget=640) == [[1], [3, 2, 0]]
    assert plan_batches([12, 127, 13, 15], token_budget=640, run_tokens=640) == [[1, 3, 2, 0]]


def test_sorting_saves_padding() -> None:
    lengths = [128, 8] * 32
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in plan_batches(lengths, token_budget=512))
    assert padded <= 1.1 * sum(lengths)


def test_impossible_budgets() -> None:
    with pytest.raises(UsageError, match="token_budget is 0"):
        plan_batches([1], token_budget=0)
    with pytest.raises(UsageError, match="max_rows 0"):
        plan_batches([1], token_budget=1, max_rows=0)


def test_budget_fits_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PINNACE_BATCH_TOKENS", raising=False)
    monkeypatch.setattr(threads, "cache_per_core", lambda: 4 << 20)
    assert default_token_budget(384) == 640
    monkeypatch.setattr(threads, "cache_per_core", lambda: 200 << 20)
    assert default_token_budget(384) == 640
    monkeypatch.setattr(threads, "cache_per_core", lambda: 1 << 20)
    assert default_token_budget(384) == 128
    monkeypatch.setattr(threads, "cache_per_core", lambda: None)
    assert default_token_budget(8) == 4096
    monkeypatch.setenv("PINNACE_BATCH_TOKENS", "77")
    assert default_token_budget(384) == 77
    monkeypatch.setenv("PINNACE_BATCH_TOKENS", "lots")
    with pytest.raises(UsageError, match="lots"):
        default_token_budget(384)


def test_padding() -> None:
    padded = pad_rows([[1, 2, 3], [4], []], 9)
    assert padded.dtype == np.int64
    assert padded.tolist() == [[1, 2, 3], [4, 9, 9], [9, 9, 9]]
    assert pad_rows([], 0).shape == (0, 0)
