"""The protobuf wire format, read only: numbered fields of a byte string, bounded so that no input can hang it.

The core install has no protobuf package; looking into a graph needs no more than these few lines.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from pinnace.errors import BundleError

VARINT: Final = 0
FIXED64: Final = 1
LENGTH: Final = 2
FIXED32: Final = 5

MAX_FIELDS: Final = 4_000_000
_FIXED_BYTES: Final = {FIXED64: 8, FIXED32: 4}

Value = int | memoryview


class Wire:
    """A reader of one file's messages; it counts fields over all of them.

    Args:
        name: the file's name, for the text of errors.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._fields = 0

    def damaged(self, reason: str) -> BundleError:
        """Build the error for a file that cannot be read."""
        return BundleError(f"{self._name} is not a readable ONNX graph: {reason}")

    def fields(self, message: memoryview) -> Iterator[tuple[int, Value]]:
        """Yield ``(field number, value)``: an int for numbers, a view for texts, bytes and messages.

        Raises:
            BundleError: the bytes break the format, or there are more fields than any real graph has.
        """
        position, end = 0, len(message)
        while position < end:
            self.count()
            key, position = self._varint(message, position)
            number, kind = key >> 3, key & 7
            if number == 0:
                raise self.damaged("a field has the number 0")
            if kind == VARINT:
                value, position = self._varint(message, position)
                yield number, value
                continue
            if kind == LENGTH:
                size, position = self._varint(message, position)
            elif kind in _FIXED_BYTES:
                size = _FIXED_BYTES[kind]
            else:
                raise self.damaged(f"unknown wire type {kind}")
            if size > end - position:
                raise self.damaged("a field is longer than the message that holds it")
            yield number, message[position : position + size]
            position += size

    def count(self) -> None:
        """Count one field, or one number of a packed list."""
        self._fields += 1
        if self._fields > MAX_FIELDS:
            raise self.damaged(f"more than {MAX_FIELDS:,} fields")

    def integer(self, value: Value) -> int:
        """Return a field's value as the signed 64-bit number that it stands for."""
        if not isinstance(value, int):
            raise self.damaged("a number was expected")
        return value - (1 << 64) if value >= 1 << 63 else value

    def integers(self, value: Value) -> list[int]:
        """Return the numbers of a repeated field, packed or a single one."""
        if isinstance(value, int):
            return [self.integer(value)]
        numbers, position = [], 0
        while position < len(value):
            self.count()
            number, position = self._varint(value, position)
            numbers.append(self.integer(number))
        return numbers

    def message(self, value: Value) -> memoryview:
        """Return a field's value as the bytes of a message."""
        if isinstance(value, int):
            raise self.damaged("a message was expected")
        return value

    def text(self, value: Value) -> str:
        """Return a field's value as text; bytes that are not UTF-8 show as replacement signs."""
        view = self.message(value)
        if len(view) > 1 << 20:
            raise self.damaged("a text is longer than 1 MiB")
        return bytes(view).decode("utf-8", "replace")

    def real(self, value: Value) -> float:
        """Return a 32-bit float field's value."""
        view = self.message(value)
        if len(view) != 4:
            raise self.damaged("a 32-bit number was expected")
        (number,) = struct.unpack("<f", view)
        return float(number)

    def _varint(self, message: memoryview, position: int) -> tuple[int, int]:
        result = 0
        for shift in range(0, 70, 7):
            if position >= len(message):
                raise self.damaged("it is cut off")
            byte = message[position]
            position += 1
            result |= (byte & 0x7F) << shift
            if byte < 0x80:
                return result & ((1 << 64) - 1), position
        raise self.damaged("a number is longer than 64 bits")
