"""Numbers with units, for a reader."""

from __future__ import annotations


def in_bytes(count: float) -> str:
    """A number of bytes for a reader."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
