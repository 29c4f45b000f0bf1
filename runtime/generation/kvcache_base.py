"""What all caches of keys and values share: their buffers, and what rows can do in them."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Final, TypeAlias

import numpy as np

from pinnace.arrays import Array
from pinnace.errors import InputError, MachineError
from pinnace.runtime.engine.ort import onnxruntime
from pinnace.spec import CacheSpec

# Keys and values of one row: for each layer a key and a value, [heads, tokens, head_size].
RowState: TypeAlias = list[Array]
_LINE: Final = 32  # buffers begin at multiples of this many numbers: of 64 bytes or more


class Store:
    """One buffer at a fixed address, on the CPU or on a device.

    Args:
        size: numbers that it holds.
        dtype: their numpy type name.
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
        array: zeros [size] to be the buffer on the CPU; None makes them.

    Raises:
        MachineError: not enough memory.
    """

    def __init__(self, size: int, dtype: str, device: str, array: Array | None = None) -> None:
        self.device, _, number = device.partition(":")
        self.device_id = int(number or 0)
        self.dtype = np.dtype(dtype)
        with enough_memory(size * self.dtype.itemsize, device):
            if self.device == "cpu":
                self._array: Array | None = np.zeros(size, self.dtype) if array is None else array
                self.address = int(self._array.ctypes.data)
            else:
                self._array = None
                self._value = onnxruntime.OrtValue.ortvalue_from_shape_and_type(
                    [size], self.dtype.type, self.device, self.device_id
                )
                self._value.update_inplace(np.zeros(size, self.dtype))
                self.address = int(self._value.data_ptr())

    def read(self) -> Array:
        """Return the numbers: the buffer itself on the CPU, a copy of a device's."""
        return self._array if self._array is not None else np.asarray(self._value.numpy())

    def write(self, array: Array) -> None:
        """Put back what `read` gave, after a change."""
        if self._array is None:
            self._value.update_inplace(array)


def make_stores(count: int, size: int, dtype: str, device: str) -> list[Store]:
    """Make buffers of one size; on the CPU they lie in one piece.

    numpy asks Linux for large pages where an array has 4 MB or more, which the keys of one layer seldom have. With them
    GroupQueryAttention alone takes 0.87 of the time behind 512 to 2,048 tokens (onnxruntime 1.32, one thread).

    Raises:
        MachineError: not enough memory.
    """
    if device != "cpu":
        return [Store(size, dtype, device) for _ in range(count)]
    wide = -(-size // _LINE) * _LINE
    with enough_memory(count * wide * np.dtype(dtype).itemsize, device):
        piece = np.zeros(count * wide, dtype)
    return [Store(size, dtype, device, piece[i * wide : i * wide + size]) for i in range(count)]


@contextlib.contextmanager
def enough_memory(size: int, device: str) -> Iterator[None]:
    """Name ``size`` bytes in the error of an allocation that fails."""
    try:
        yield
    except (MemoryError, ValueError, RuntimeError) as error:
        raise MachineError(
            f"not enough memory for {size / 1e6:,.0f} MB of keys and values on {device} "
            f"({type(error).__name__}). Run fewer or shorter rows at once"
        ) from None


class Cache(abc.ABC):
    """Keys and values of the rows of one batch.

    Args:
        spec: what the model caches.
        dtype: numpy type name of keys and values.
        device: where the model runs.
        rows: rows at the beginning, all empty.
        tokens: tokens that each of them may soon have.

    Attributes:
        rows: rows now.
        lengths: tokens of each row, [rows].
        version: changes whenever addresses or shapes do, and bindings must be made anew.
    """

    def __init__(self, spec: CacheSpec, dtype: str, device: str, rows: int, tokens: int = 0) -> None:
        self.spec, self.dtype, self.device = spec, dtype, device
        self.rows = rows
        self.lengths: Array = np.zeros(rows, np.int64)
        self.version = 0
        self._stores: list[Store] = []

    def reserve(self, tokens: int) -> None:
        """Make room for ``tokens`` more in every row.

        Raises:
            InputError: a row would be longer than the model takes.
            MachineError: not enough memory.
        """
        needed = int(self.lengths.max(initial=0)) + tokens
        if needed > self.spec.capacity:
            raise InputError(
                f"a row would have {needed:,} tokens, the model takes {self.spec.capacity:,}. "
                "Shorten the prompt, or ask for fewer new tokens"
            )
        self._reserve(tokens)

    def shorten(self, row: int, tokens: int) -> None:
        """Forget the last tokens of a row, so that ``tokens`` remain."""
        self.lengths[row] = tokens

    @abc.abstractmethod
    def bind(self, binding: Any, tokens: int) -> None:
        """Bind past and present for a run that adds ``tokens`` to every row."""

    @abc.abstractmethod
    def mask(self, counts: Array, tokens: int) -> Array:
        """Return the attention mask of a run that adds ``counts`` of ``tokens`` new positions to the rows."""

    @abc.abstractmethod
    def advance(self, counts: Array, tokens: int) -> None:
        """Take over what a run has added."""

    @abc.abstractmethod
    def keep(self, order: Sequence[int]) -> None:
        """Make row ``i`` what row ``order[i]`` is; rows may be dropped, moved and repeated.

        Raises:
            MachineError: not enough memory; the rows are as before.
        """

    @abc.abstractmethod
    def load(self, states: Sequence[RowState]) -> None:
        """Add rows with the given keys and values at the end."""

    @abc.abstractmethod
    def read(self, row: int, tokens: int | None = None) -> RowState:
        """Return a copy of a row's keys and values, of its first ``tokens`` tokens."""

    @abc.abstractmethod
    def _reserve(self, tokens: int) -> None: ...

    @property
    def _tensors(self) -> int:
        return 2 * self.spec.layers

    def _names(self, part_of: str) -> list[str]:
        return [f"{part_of}.{i}.{part}" for i in range(self.spec.layers) for part in ("key", "value")]

    def _make(self, size: int) -> list[Store]:
        return make_stores(self._tensors, size, self.dtype, self.device)
