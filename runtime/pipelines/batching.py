"""Rows of unlike length in batches with little padding, each small enough for the processor's cache."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from pinnace.errors import UsageError
from pinnace.runtime.machine import threads

BUDGET_VARIABLE: Final = "PINNACE_BATCH_TOKENS"
# The widest activation of an encoder layer is four times the hidden size, in 4-byte numbers.
_BYTES_PER_TOKEN_AND_HIDDEN: Final = 16
# A virtual machine reports its host's whole last-level cache, so no more than this is believed.
_MOST_CACHE: Final = 4 << 20
_FEWEST_TOKENS: Final = 128
# What a run costs beside its tokens, in tokens. Measured on one and two threads of an AMD EPYC: 13 for BERT-base, 10 to
# 16 for all-MiniLM-L6-v2 in fp32 and int8, 22 to 27 for a hidden size of 128.
RUN_TOKENS: Final = 16
_MOST_TOKENS: Final = 4096


def plan_batches(
    lengths: Sequence[int],
    *,
    token_budget: int,
    max_rows: int | None = None,
    rows_within: Callable[[int], int] | None = None,
    run_tokens: int = RUN_TOKENS,
) -> list[list[int]]:
    """Group rows into the batches that take the least time: few runs against little padding.

    Args:
        lengths: tokens of each row.
        token_budget: most tokens of a batch, padding counted: rows times the longest row. A row longer than the
            budget is a batch of its own.
        max_rows: most rows of a batch.
        rows_within: most rows of a given length, such as the memory allows; None for no such limit.
        run_tokens: what a run costs beside its tokens, in tokens.

    Returns:
        Lists of indexes into ``lengths``, every index once, the longest rows first; equal input, equal result.

    Raises:
        UsageError: a budget or row limit below 1.
    """
    if token_budget < 1 or (max_rows is not None and max_rows < 1):
        raise UsageError(f"token_budget is {token_budget} and max_rows {max_rows}; expected at least 1")
    # Longest first: the first batch makes the runtime's memory as large as it will ever be.
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    sizes = [max(1, lengths[i]) for i in order]
    # Batches are neighbours in this order: the cheapest way to run the rows before each place, and its last batch.
    costs, starts = [0] + [0] * len(order), [0] * (len(order) + 1)
    reached = 0
    for first, longest in enumerate(sizes):
        room = max(1, token_budget // longest)
        room = room if max_rows is None else min(room, max_rows)
        room = room if rows_within is None else min(room, rows_within(longest))
        for end in range(first + 1, min(first + room, len(order)) + 1):
            if longest - sizes[end - 1] > run_tokens:
                break  # this row's padding costs more than a run of its own
            cost = costs[first] + run_tokens + (end - first) * longest
            if end > reached or cost < costs[end]:
                costs[end], starts[end] = cost, first
            reached = max(reached, end)
    batches, end = [], len(order)
    while end:
        batches.append(order[starts[end] : end])
        end = starts[end]
    return batches[::-1]


def default_token_budget(hidden_size: int) -> int:
    """Return the tokens of a batch whose activations fit one core's cache, or ``PINNACE_BATCH_TOKENS``.

    With the 4 MiB a core of AMD Milan has, a hidden size of 384 gives 640; 512 was the fastest measured there.

    Raises:
        UsageError: the environment variable is not a whole number of at least 1.
    """
    if word := os.environ.get(BUDGET_VARIABLE):
        if not word.isdecimal() or int(word) < 1:
            raise UsageError(f"{BUDGET_VARIABLE} is {word!r}; expected a whole number of at least 1")
        return int(word)
    cache = min(threads.cache_per_core() or _MOST_CACHE, _MOST_CACHE)
    tokens = cache // (_BYTES_PER_TOKEN_AND_HIDDEN * max(1, hidden_size)) // 64 * 64
    return min(max(tokens, _FEWEST_TOKENS), _MOST_TOKENS)


def pad_rows(rows: Sequence[Sequence[int]], value: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Put rows into one array, padded at the right to the longest.

    Args:
        rows: token ids of each row.
        value: what fills the rest of a shorter row.

    Returns:
        int64 ``[rows, longest]``.
    """
    padded = np.full((len(rows), max(map(len, rows), default=0)), value, np.int64)  # (B, T)
    for row, ids in zip(padded, rows, strict=True):
        row[: len(ids)] = ids
    return padded
