"""Keys and values of running rows: buffers that are bound once, grow in blocks, and let rows enter, leave and move."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from pinnace.arrays import Array
from pinnace.runtime.generation.kvcache_base import Cache, RowState, Store, enough_memory
from pinnace.spec import PAST, PRESENT, CacheSpec

# Buffers grow by this many tokens at once: rarely, and without taking memory for the model's whole limit.
BLOCK: Final = 256
# A growing cache is packed anew when this many of its columns hold no row's token.
MAX_HOLES: Final = 64


def make_cache(spec: CacheSpec, dtype: str, device: str, rows: int, tokens: int = 0) -> Cache:
    """Make an empty cache of the kind that the graph takes; the arguments are those of `Cache`."""
    kind = FixedCache if spec.fixed else SharedCache if spec.in_place else GrowingCache
    return kind(spec, dtype, device, rows, tokens)


class SharedCache(Cache):
    """One buffer [rows, heads, capacity, head_size] is past and present: new keys are written behind each row's."""

    def __init__(self, spec: CacheSpec, dtype: str, device: str, rows: int, tokens: int = 0) -> None:
        super().__init__(spec, dtype, device, rows, tokens)
        self._capacity = 0
        self._most_rows = 0
        self._mask: Array = np.zeros((0, 0), np.int64)
        self._resize(rows, tokens)

    def bind(self, binding: Any, tokens: int) -> None:
        """Bind each buffer to the past and to the present."""
        shape = (self.rows, self.spec.heads, self._capacity, self.spec.head_size)
        pasts, presents = self._names(PAST), self._names(PRESENT)
        for store, past, present in zip(self._stores, pasts, presents, strict=True):
            for call, name in ((binding.bind_input, past), (binding.bind_output, present)):
                call(name, store.device, store.device_id, store.dtype.type, shape, store.address)

    def mask(self, counts: Array, tokens: int) -> Array:
        """Ones for each row's tokens, the new ones too.

        A step of one token keeps one mask as wide as the buffer, so that nothing need be bound again; many tokens take
        a mask as wide as the longest row, for the graph finds a row's last token by it.
        """
        totals = self.lengths + counts
        if tokens > 1 or self.device != "cpu":
            width = tokens if not self.lengths.any() else int(totals.max())
            return (np.arange(width) < totals[:, None]).astype(np.int64)
        return self._wide_mask(totals)

    def _wide_mask(self, totals: Array) -> Array:
        """One mask as wide as the buffer, kept from step to step; after most steps one place of each row changes."""
        if self._mask.shape != (self.rows, self._capacity):
            self._mask = np.zeros((self.rows, self._capacity), np.int64)
            self._filled = np.zeros(self.rows, np.int64)
        if not np.array_equal(self._filled + 1, totals):
            self._mask[:] = np.arange(self._capacity) < totals[:, None]
        else:
            self._mask[np.arange(self.rows), totals - 1] = 1
        self._filled = totals
        return self._mask

    def advance(self, counts: Array, tokens: int) -> None:
        """The graph has written in place; only the lengths change."""
        self.lengths = self.lengths + counts

    def keep(self, order: Sequence[int]) -> None:
        """Copy the rows that move."""
        chosen = np.asarray(order, np.int64)
        self._resize(len(chosen), 0)
        moved = np.flatnonzero(chosen != np.arange(len(chosen)))
        longest = int(self.lengths[chosen[moved]].max(initial=0))
        shape = (len(moved), self.spec.heads, longest, self.spec.head_size)
        with enough_memory(int(np.prod(shape)) * np.dtype(self.dtype).itemsize, self.device):
            held = np.empty(shape, self.dtype)  # once and first, since it may fail, and must then have changed nothing
        for store in self._stores if len(moved) else ():
            array = store.read()
            view = self._view(array)
            for place, row in enumerate(chosen[moved]):
                held[place] = view[row, :, :longest]
            for place, row in enumerate(moved):
                view[row, :, :longest] = held[place]
            store.write(array)
        self._set_rows(len(chosen), self.lengths[chosen])

    def load(self, states: Sequence[RowState]) -> None:
        """Copy each row's keys and values into the buffers, once."""
        lengths = [state[0].shape[1] for state in states]
        first = self.rows
        self._resize(first + len(states), max(lengths, default=0))
        for place, store in enumerate(self._stores):
            array = store.read()
            view = self._view(array)
            for row, state in enumerate(states, first):
                view[row, :, : lengths[row - first]] = state[place]
            store.write(array)
        self._set_rows(first + len(states), np.concatenate([self.lengths, np.array(lengths, np.int64)]))

    def read(self, row: int, tokens: int | None = None) -> RowState:
        """Copy a row out of the buffers."""
        length = int(self.lengths[row]) if tokens is None else tokens
        return [self._view(store.read())[row, :, :length].copy() for store in self._stores]

    def _set_rows(self, rows: int, lengths: Array) -> None:
        self.rows, self.lengths = rows, lengths
        self._filled = np.full(rows, -1, np.int64)
        self.version += 1

    def _view(self, array: Array) -> Array:
        return array.reshape(self._most_rows, self.spec.heads, self._capacity, self.spec.head_size)

    def _reserve(self, tokens: int) -> None:
        self._resize(self.rows, int(self.lengths.max(initial=0)) + tokens)

    def _resize(self, rows: int, tokens: int) -> None:
        """Give the buffers at least ``rows`` rows of at least ``tokens`` tokens, keeping what they hold."""
        capacity = max(self._capacity, self._capacity_for(tokens))
        if rows <= self._most_rows and capacity == self._capacity:
            return
        most = max(rows, self._most_rows)
        shape = (most, self.spec.heads, capacity, self.spec.head_size)
        made = self._make(int(np.prod(shape)))
        for old, new in zip(self._stores, made, strict=bool(self._stores)):
            array = new.read()
            before = self._view(old.read())
            array.reshape(shape)[: self.rows, :, : self._capacity] = before[: self.rows]
            new.write(array)
        self._stores, self._most_rows, self._capacity = made, most, capacity
        self.version += 1

    def _capacity_for(self, tokens: int) -> int:
        # A step's mask must be wider than its one token, or the graph would take the step for a prompt.
        wanted = max(tokens, 2)
        return min(-(-wanted // BLOCK) * BLOCK, max(self.spec.capacity, 2))


class FixedCache(SharedCache):
    """A shared buffer of the one capacity that the graph takes; the mask has a place for each of its slots."""

    def mask(self, counts: Array, tokens: int) -> Array:
        """Ones for each row's tokens, the new ones too."""
        return self._wide_mask(self.lengths + counts)

    def _capacity_for(self, tokens: int) -> int:
        return self.spec.capacity


class GrowingCache(Cache):
    """The graph returns past and new keys joined; two sets of buffers take turns at being past and present.

    Columns are shared by all rows, so a row may have columns that are not its own; a mask tells which are.
    """

    def __init__(self, spec: CacheSpec, dtype: str, device: str, rows: int, tokens: int = 0) -> None:
        super().__init__(spec, dtype, device, rows, tokens)
        self._past = 0
        self._own: Array = np.zeros((rows, 0), np.int64)
        self._sizes = [0, 0]
        self._sets: list[list[Store]] = [[], []]
        self._make_room(0, rows, 0)
        self._make_room(1, rows, tokens)

    def bind(self, binding: Any, tokens: int) -> None:
        """Bind one set as the past, the other as the present."""
        heads, size = self.spec.heads, self.spec.head_size
        for call, names, stores, width in (
            (binding.bind_input, self._names(PAST), self._sets[0], self._past),
            (binding.bind_output, self._names(PRESENT), self._sets[1], self._past + tokens),
        ):
            shape = (self.rows, heads, width, size)
            for name, store in zip(names, stores, strict=True):
                call(name, store.device, store.device_id, store.dtype.type, shape, store.address)

    def mask(self, counts: Array, tokens: int) -> Array:
        """Ones for each row's own columns and its new tokens."""
        new = (np.arange(tokens) < counts[:, None]).astype(np.int64)
        return np.concatenate([self._own, new], 1)

    def advance(self, counts: Array, tokens: int) -> None:
        """The present becomes the past."""
        self._own = self.mask(counts, tokens)
        self.lengths = self.lengths + counts
        self._past += tokens
        self._swap()

    def shorten(self, row: int, tokens: int) -> None:
        """Disown the row's last columns."""
        self._own[row, np.flatnonzero(self._own[row])[tokens:]] = 0
        super().shorten(row, tokens)

    def keep(self, order: Sequence[int]) -> None:
        """Gather the rows into the other set of buffers."""
        chosen = np.asarray(order, np.int64)
        self._make_room(1, len(chosen), self._past)
        with enough_memory(self._sizes[1] * np.dtype(self.dtype).itemsize, self.device):
            for old, new in zip(*self._sets, strict=True):
                array = new.read()
                # In any other mode than this, numpy gathers into memory of its own first.
                np.take(self._view(old.read(), self.rows), chosen, 0, out=self._view(array, len(chosen)), mode="clip")
                new.write(array)
        self._own, self.lengths, self.rows = self._own[chosen], self.lengths[chosen], len(chosen)
        self._swap()

    def load(self, states: Sequence[RowState]) -> None:
        """Rebuild all rows, each from the first column on."""
        self._pack(states)

    def read(self, row: int, tokens: int | None = None) -> RowState:
        """Copy a row's own columns."""
        columns = np.flatnonzero(self._own[row])[:tokens]
        return [self._view(store.read(), self.rows)[row][:, columns] for store in self._sets[0]]

    def _reserve(self, tokens: int) -> None:
        if self._past - int(self.lengths.max(initial=0)) > MAX_HOLES:
            self._pack()
        self._make_room(1, self.rows, self._past + tokens)

    def _pack(self, added: Sequence[RowState] = ()) -> None:
        states = [*(self.read(row) for row in range(self.rows)), *added]
        lengths = np.array([state[0].shape[1] for state in states], np.int64)
        past = int(lengths.max(initial=0))
        self._make_room(0, len(states), past)  # first, since it may fail, and must then have changed nothing
        self.rows, self.lengths, self._past = len(states), lengths, past
        for place, store in enumerate(self._sets[0]):
            array = store.read()
            view = self._view(array, self.rows)
            for row, state in enumerate(states):
                view[row, :, : lengths[row]] = state[place]
                view[row, :, lengths[row] :] = 0
            store.write(array)
        self._own = (np.arange(self._past) < lengths[:, None]).astype(np.int64)
        self.version += 1

    def _swap(self) -> None:
        self._sets.reverse()
        self._sizes.reverse()
        self.version += 1

    def _view(self, array: Array, rows: int) -> Array:
        shape = (rows, self.spec.heads, self._past, self.spec.head_size)
        return array[: int(np.prod(shape))].reshape(shape)

    def _make_room(self, which: int, rows: int, width: int) -> None:
        """Make one set of buffers large enough; what it held is lost."""
        size = rows * self.spec.heads * width * self.spec.head_size
        if size > self._sizes[which] or not self._sets[which]:
            blocks = rows * self.spec.heads * max(BLOCK, -(-width // BLOCK) * BLOCK) * self.spec.head_size
            self._sets[which], self._sizes[which] = self._make(blocks), blocks
            self.version += 1
