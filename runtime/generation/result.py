"""What a generation returns: one result a row, and one error where rows failed, after all others have ended."""

from __future__ import annotations

import dataclasses

from pinnace.arrays import Array
from pinnace.errors import NumericalError


@dataclasses.dataclass(frozen=True)
class Generated:
    """One generated row.

    Attributes:
        ids: the new tokens [T], an end token included.
        text: their text, up to a stop string; None without a tokenizer.
        reason: ``eos``, ``stop_string``, ``length``, ``time``, ``cancelled`` or ``error``.
        logprobs: log-probability of each new token, where asked for.
        top_logprobs: for each new token the likeliest tokens and their log-probabilities, where asked for.
        error: what went wrong in this row, where the reason is ``error``; the row holds what was there before.
    """

    ids: Array
    text: str | None
    reason: str
    logprobs: Array | None = None
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...] | None = None
    error: NumericalError | None = None


def whole(results: list[list[Generated]]) -> list[list[Generated]]:
    """Return the results of all rows.

    Raises:
        NumericalError: rows failed; it holds the results of all.
    """
    failed = [(place, row.error) for place, rows in enumerate(results) for row in rows if row.error is not None]
    if not failed:
        return results
    place, first = failed[0]
    count = sum(map(len, results))
    if count == 1:
        raise first
    error = NumericalError(
        f"prompt {place}: {first}\n  {len(failed)} of {count} rows failed; what all gave is in this error's results."
    )
    error.results = results
    raise error
