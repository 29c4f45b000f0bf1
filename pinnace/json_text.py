"""Results as JSON: numbers, texts, lists, mappings and numpy's arrays, and never NaN."""

from __future__ import annotations

import json
from typing import Any

from pinnace.errors import NumericalError


def to_json(value: Any, indent: int | None = None, *, ascii_only: bool = False) -> str:
    """Serialize numbers, texts, lists, mappings and numpy's arrays.

    Raises:
        NumericalError: a number is NaN or infinite.
    """
    try:
        return json.dumps(value, ensure_ascii=ascii_only, allow_nan=False, indent=indent, default=_plain)
    except ValueError:
        raise NumericalError("the result holds NaN or infinity, which is no answer and no JSON number") from None


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):  # numpy's arrays and numbers
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no form in JSON")
