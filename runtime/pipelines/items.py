"""What one input of a pipeline may be beside a text: a pair of texts, or a mapping of named fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from pinnace.errors import InputError
from pinnace.runtime.arguments import check_text

# A text, and its partner if it is one of a pair.
Pair: TypeAlias = tuple[str, str | None]


def check_pair(item: Any, place: str) -> Pair:
    """Return a text, or a mapping of ``text`` and perhaps ``text_pair``, as a pair.

    An empty partner is none, as with transformers.

    Raises:
        InputError: anything else.
    """
    form = "a text (str) or {'text': ..., 'text_pair': ...}"
    if not isinstance(item, Mapping):
        if isinstance(item, list | tuple):
            raise InputError(f"{place} is a {type(item).__name__}, expected {form}; give a pair as such a dict")
        return check_text(item, place, form), None
    if "text" not in item or set(item) - {"text", "text_pair"}:
        raise InputError(f"{place} has the keys {sorted(map(str, item))}, expected {form}; give exactly these")
    partner = item.get("text_pair")
    text = check_text(item["text"], f"'text' of {place}")
    return text, None if partner is None else check_text(partner, f"'text_pair' of {place}") or None


def check_fields(item: Any, place: str, required: Sequence[str]) -> list[Any]:
    """Return the values of exactly the ``required`` keys of a mapping.

    Raises:
        InputError: not a mapping, or other keys.
    """
    form = "{" + ", ".join(f"{name!r}: ..." for name in required) + "}"
    if not isinstance(item, Mapping):
        raise InputError(f"{place} is {type(item).__name__}, expected {form}; give such a dict, or a list of them")
    if set(item) != set(required):
        raise InputError(f"{place} has the keys {sorted(map(str, item))}, expected {form}; give exactly these")
    return [item[name] for name in required]
