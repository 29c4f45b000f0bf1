"""Rows of tokens for runs alone: a few bytes for each token, where the tokenizer's own records take hundreds."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable
from typing import Any, Final, Self

from pinnace.runtime.pipelines.items import Pair
from pinnace.runtime.pipelines.pieces import pieces

# Pairs that are tokenized at once. What is cut off a row is held too, until its slice is done: some 1 kB for a token.
SLICE_ROWS: Final = 1024
SLICE_CHARACTERS: Final = 1 << 18


class TokenRow:
    """What a run needs of a ``tokenizers.Encoding`` without padding, under the same names.

    Attributes:
        ids: token ids.
        type_ids: 0 for tokens of the first text, 1 for those of the second.
    """

    __slots__ = ("ids", "type_ids")

    def __init__(self, ids: Iterable[int], type_ids: Iterable[int]) -> None:
        self.ids, self.type_ids = array("i", ids), array("i", type_ids)

    @classmethod
    def of(cls, encoding: Any) -> Self:
        """Take them from a ``tokenizers.Encoding``."""
        return cls(encoding.ids, encoding.type_ids)

    @property
    def attention_mask(self) -> array[int]:
        """1 for every token, since there is no padding."""
        return array("i", [1]) * len(self.ids)

    def __len__(self) -> int:
        return len(self.ids)


def token_rows(
    encode: Callable[[list[str], list[str] | None], Any], pairs: Iterable[Pair], between: Callable[[], object]
) -> list[TokenRow]:
    """Tokenize texts and pairs of texts, mixed, in slices, and keep of each row what a run needs.

    Args:
        encode: returns the ``BatchEncoding`` of texts and their partners.
        pairs: the texts, each with its partner or None; read as they are needed.
        between: called before each slice; what it raises ends the work.

    Returns:
        One row for each pair, in order.

    Raises:
        InputError: as ``encode``.
    """
    rows: list[TokenRow] = []
    for part in pieces(pairs, SLICE_ROWS, SLICE_CHARACTERS):
        between()
        rows += _slice(encode, part)
    return rows


def _slice(encode: Callable[[list[str], list[str] | None], Any], pairs: list[Any]) -> list[TokenRow]:
    rows: list[Any] = [None] * len(pairs)
    for with_partner in (False, True):
        places = [i for i, pair in enumerate(pairs) if (pair[1] is not None) == with_partner]
        if places:
            partners = [pairs[i][1] for i in places] if with_partner else None
            found = encode([pairs[i][0] for i in places], partners).encodings or []
            for place, encoding in zip(places, found, strict=True):
                rows[place] = TokenRow.of(encoding)
    return rows
