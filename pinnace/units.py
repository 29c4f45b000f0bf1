"""Numbers with units, for a reader."""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from typing import Final, NamedTuple


class Scale(NamedTuple):
    """A unit for a reader: values are multiplied by ``factor`` and named ``word``."""

    factor: float
    word: str


# Unit of a stored value -> scales for a reader, smallest numbers first, each with the value from which it is used.
_SCALES: Final[Mapping[str, tuple[tuple[float, Scale], ...]]] = types.MappingProxyType(
    {
        "s": ((0.0, Scale(1e6, "µs")), (1e-3, Scale(1e3, "ms")), (1.0, Scale(1.0, "s"))),
        "bytes": ((0.0, Scale(1.0, "bytes")), (1e3, Scale(1e-3, "kB")), (1e6, Scale(1e-6, "MB")),
                  (1e9, Scale(1e-9, "GB"))),
        "bytes/s": ((0.0, Scale(1e-6, "MB/s")), (1e9, Scale(1e-9, "GB/s"))),
        "FLOP/s": ((0.0, Scale(1e-9, "GFLOP/s")), (1e12, Scale(1e-12, "TFLOP/s"))),
        "J": ((0.0, Scale(1e3, "mJ")), (1.0, Scale(1.0, "J"))),
        "": ((0.0, Scale(100.0, "%")),),
    }
)  # fmt: skip


def scale_for(value: float, unit: str) -> Scale:
    """The scale on which a value is easy to read: milliseconds for 0.012 s, percent for a share (``unit`` empty)."""
    fitting = [scale for least, scale in _SCALES.get(unit, ((0.0, Scale(1.0, unit)),)) if abs(value) >= least]
    return fitting[-1]


def digits(value: float, figures: int = 3) -> str:
    """A number with so many significant figures, and never less than whole: ``12.3``, ``1,234``, ``0.00123``."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    places = max(0, figures - 1 - math.floor(math.log10(abs(value))))
    rounded = round(value, places)
    if rounded and math.floor(math.log10(abs(rounded))) > math.floor(math.log10(abs(value))):
        places = max(0, places - 1)  # 9.999 has become 10.0
    return f"{rounded:,.{places}f}"


def in_unit(value: float, unit: str, figures: int = 3) -> str:
    """A value with its unit for a reader: ``12.3 ms``, ``1.20 GB``, ``92.1 %``."""
    scale = scale_for(value, unit)
    number = value * scale.factor
    # A share says the same with one place; more figures would claim more than was measured.
    text = f"{number:.1f}" if unit == "" else digits(number, figures)
    return f"{text} {scale.word}"


def in_bytes(count: float) -> str:
    """A number of bytes for a reader, with one place: ``437.9 MB``."""
    scale = scale_for(count, "bytes")
    return f"{count * scale.factor:.{0 if scale.factor == 1 else 1}f} {scale.word}"
