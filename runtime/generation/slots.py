"""Continuous batching: rows enter and leave between steps, and each is exactly what it is alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from pinnace.arrays import Array
from pinnace.runtime.engine.cancellation import RunLimit
from pinnace.runtime.generation.decoder import Batch, Decoder
from pinnace.runtime.generation.prefix import Prefix
from pinnace.runtime.generation.row import Row, Token


class Reading:
    """Rows with one prompt, which is read piece by piece before they enter. Not for several threads at once.

    Args:
        decoder: the model.
        rows: rows that have no new token yet, all with the same prompt.
        limit: what may stop a piece.

    Attributes:
        rows: the rows.
        batch: what was read so far, one row.
    """

    def __init__(self, decoder: Decoder, rows: Sequence[Row], limit: RunLimit) -> None:
        self.rows = rows
        self._limit = limit
        self._prompt = rows[0].prompt
        self.batch = decoder.batch(1, max(len(row.prompt) + row.limit for row in rows))

    def read(self, most: int) -> Array | None:
        """Read up to ``most`` tokens more; return the last logits [1, V] when all are read, None before.

        Raises:
            Stopped: the limit was reached; what was read before stays so.
        """
        first = int(self.batch.cache.lengths[0])
        logits = self.batch.extend(self._prompt[first : first + most], self._limit)[-1:]
        return logits.copy() if first + most >= len(self._prompt) else None


class Slots:
    """The rows that run together now. Not for several threads at once.

    Args:
        decoder: the model.
        limit: what may stop all of them; a single row is stopped by `leave`.

    Attributes:
        rows: the running rows, in the order of the batch.
    """

    def __init__(self, decoder: Decoder, limit: RunLimit) -> None:
        self.decoder = decoder
        self.limit = limit
        self.rows: list[Row] = []
        self._batch: Batch | None = None
        self._done: list[int] = []

    def enter(self, rows: Sequence[Row], prefix: Prefix | None = None) -> Iterator[Token]:
        """Run the prompts of new rows and yield each row's first token.

        Rows with the same prompt share one run of it.

        Args:
            rows: rows that have no new token yet.
            prefix: keys and values of a beginning that prompts may share.

        Raises:
            Stopped: the limit was reached; no row has entered.
        """
        self._clear()
        prompts: dict[bytes, int] = {}
        order = [prompts.setdefault(row.prompt.tobytes(), len(prompts)) for row in rows]
        different = [rows[order.index(number)] for number in range(len(prompts))]
        tokens = max((len(row.prompt) + row.limit for row in rows), default=0)
        entering, logits = self._prompt([row.prompt for row in different], prefix, tokens)
        yield from self._join(rows, order, entering, logits)

    def admit(self, reading: Reading, logits: Array) -> Iterator[Token]:
        """Let rows enter whose prompt was read in pieces, and yield each row's first token.

        Args:
            reading: what was read.
            logits: the last that it gave [1, V].
        """
        self._clear()
        yield from self._join(reading.rows, [0] * len(reading.rows), reading.batch, logits)

    def step(self) -> Iterator[Token]:
        """Run one step of all rows and yield each row's next token; rows that ended have left before the next step.

        Raises:
            Stopped: the limit was reached; the rows are as before.
        """
        self._clear()
        if self._batch is None or not self.rows:
            return
        tokens = np.array([row.last for row in self.rows], np.int64)
        yield from self._choose(0, self._batch.step(tokens, self.limit))

    def leave(self, row: Row) -> None:
        """Take a row out before the next step."""
        self._done.append(self.rows.index(row))

    @property
    def running(self) -> int:
        """How many rows have not ended."""
        return len(self.rows) - len(set(self._done))

    def _join(self, rows: Sequence[Row], order: list[int], entering: Batch, logits: Array) -> Iterator[Token]:
        """Let row i enter with what row ``order[i]`` of another batch has; that batch becomes the one where none is."""
        if order != list(range(len(order))):
            entering.cache.keep(order)
            logits = logits[order]
        if self._batch is None or not self.rows:
            self._batch = entering
        else:
            self._batch.cache.load([entering.cache.read(row) for row in range(len(order))])
        first = len(self.rows)
        self.rows.extend(rows)
        yield from self._choose(first, logits)

    def _choose(self, first: int, logits: Array) -> Iterator[Token]:
        tokens = []
        for place, row in enumerate(self.rows[first:]):
            tokens.append(row.take(logits[place]))
            if row.reason is not None:
                self._done.append(first + place)
        # All rows have chosen before the first is told: a caller may stop listening at any token.
        yield from tokens

    def _prompt(self, prompts: list[Array], prefix: Prefix | None, tokens: int) -> tuple[Batch, Array]:
        if prefix is None:
            return self.decoder.prompt(prompts, self.limit, tokens)
        batch, parts = self.decoder.batch(0, tokens), []
        for prompt in prompts:
            single = self.decoder.batch(0, tokens if len(prompts) == 1 else len(prompt))
            shared = prefix.shared(prompt, self.decoder)
            single.join(prefix.state(shared))
            parts.append(single.extend(prompt[shared:], self.limit)[-1].copy())
            if len(prompts) == 1:
                return single, np.stack(parts)
            batch.join(single.cache.read(0))
        return batch, np.stack(parts)

    def _clear(self) -> None:
        """Close the gaps of rows that have ended: the last row moves into each."""
        if not self._done or self._batch is None:
            return
        order = list(range(len(self.rows)))
        for gap in sorted(set(self._done), reverse=True):
            order[gap] = order[-1]
            order.pop()
        if order:
            self._batch.cache.keep(order)  # first, since it may fail, and the rows must then leave another time
        else:
            self._batch = None
        self.rows = [self.rows[place] for place in order]
        self._done.clear()
