"""The result of a tokenizer call: arrays by name, and the map between characters, words and tokens."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tokenizers

from pinnace.errors import InputError


class CharSpan(NamedTuple):
    """A stretch of the original text: ``text[start:end]``."""

    start: int
    end: int


class TokenSpan(NamedTuple):
    """A stretch of a row's tokens: ``tokens[start:end]``."""

    start: int
    end: int


class BatchEncoding(UserDict[str, Any]):
    """Lists (or int64 arrays) by name, as ``input_ids`` or ``attention_mask``, also readable as attributes.

    The position methods take ``(index)`` for the first row or ``(row, index)`` for any row. Characters count in the
    text that was passed in (in its word, when the input was split into words).

    Args:
        data: name → list of one row, list of rows, or array ``[rows, tokens]`` (offsets: ``[rows, tokens, 2]``).
        encodings: one per row; None where the tokenizer knows no positions (the legacy one).
        return_tensors: None keeps lists, ``"np"`` makes int64 arrays.

    Raises:
        InputError: ``return_tensors`` is something else, or rows of different lengths cannot be one array.

    Source: behaviour of transformers' BatchEncoding (4.57 and 5.23).
    """

    def __init__(
        self,
        data: Mapping[str, Any] | None = None,
        encodings: Sequence[tokenizers.Encoding] | None = None,
        return_tensors: str | None = None,
    ) -> None:
        super().__init__(data or {})
        self._encodings = None if encodings is None else list(encodings)
        if return_tensors == "np":
            self.data = {name: _as_array(name, value) for name, value in self.data.items()}
        elif return_tensors is not None:
            raise InputError(
                f"return_tensors: got {return_tensors!r}, expected None or 'np'.\n"
                "  Other frameworks: pass 'np' and convert, as in torch.from_numpy(result['input_ids'])."
            )

    def __getitem__(self, key: Any) -> Any:
        """The value called ``key``; with an integer, that row's ``tokenizers.Encoding``."""
        return self._rows()[key] if isinstance(key, int) else self.data[key]

    def __getattr__(self, name: str) -> Any:
        data = self.__dict__.get("data", {})
        if name in data:
            return data[name]
        raise AttributeError(f"this encoding has no {name!r}; it holds: {', '.join(data) or 'nothing'}")

    def _rows(self) -> list[tokenizers.Encoding]:
        if self._encodings is None:
            raise InputError(
                "positions: the legacy tokenizer keeps no offsets or word numbers; use BertTokenizer for them."
            )
        return self._encodings

    def _at(self, first: int, second: int | None, length: Callable[[tokenizers.Encoding], int]) -> tuple[Any, int]:
        """Resolve ``(index)`` or ``(row, index)``; negative indices count from the end."""
        row, index = (0, first) if second is None else (first, second)
        rows = self._rows()
        if not -len(rows) <= row < len(rows):
            raise InputError(f"row: got {row}, expected less than {len(rows)}, the number of rows.")
        encoding = rows[row]
        index += length(encoding) if index < 0 else 0
        if index < 0:
            raise InputError(f"index: got {index - length(encoding)}, which is before the first of row {row}.")
        return encoding, index

    @property
    def is_fast(self) -> bool:
        """True where positions are known."""
        return self._encodings is not None

    @property
    def encodings(self) -> list[tokenizers.Encoding] | None:
        """One ``tokenizers.Encoding`` per row."""
        return self._encodings

    @property
    def n_sequences(self) -> int | None:
        """1 for single texts, 2 for pairs, None where unknown."""
        return int(self._encodings[0].n_sequences) if self._encodings else None

    def tokens(self, batch_index: int = 0) -> list[str]:
        """The token strings of one row."""
        return list(self._rows()[batch_index].tokens)

    def sequence_ids(self, batch_index: int = 0) -> list[int | None]:
        """For each token 0 (first text), 1 (second text) or None (special tokens and padding)."""
        return list(self._rows()[batch_index].sequence_ids)

    def word_ids(self, batch_index: int = 0) -> list[int | None]:
        """For each token the number of its word in its text, or None."""
        return list(self._rows()[batch_index].word_ids)

    def token_to_sequence(self, batch_or_token_index: int, token_index: int | None = None) -> int | None:
        """Which text (0 or 1) a token comes from."""
        encoding, index = self._at(batch_or_token_index, token_index, len)
        found: int | None = encoding.token_to_sequence(index)
        return found

    def token_to_word(self, batch_or_token_index: int, token_index: int | None = None) -> int | None:
        """The number of the word that a token belongs to."""
        encoding, index = self._at(batch_or_token_index, token_index, len)
        found: tuple[int, int] | int | None = encoding.token_to_word(index)
        return found[1] if isinstance(found, tuple) else found

    def word_to_tokens(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> TokenSpan | None:
        """The tokens of a word, or None when it has none."""
        encoding, index = self._at(batch_or_word_index, word_index, _word_count)
        span = encoding.word_to_tokens(index, sequence_index)
        return None if span is None else TokenSpan(*span)

    def token_to_chars(self, batch_or_token_index: int, token_index: int | None = None) -> CharSpan | None:
        """The characters of a token, or None for a special token."""
        encoding, index = self._at(batch_or_token_index, token_index, len)
        span = encoding.token_to_chars(index)
        if span is None:
            return None
        return CharSpan(*(span[1] if isinstance(span[1], tuple) else span))

    def char_to_token(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """The token that covers a character, or None (a space, or text cut off)."""
        encoding, index = self._at(batch_or_char_index, char_index, _text_length)
        found: int | None = encoding.char_to_token(index, sequence_index)
        return found

    def word_to_chars(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> CharSpan | None:
        """The characters of a word, or None when the word has no tokens here."""
        encoding, index = self._at(batch_or_word_index, word_index, _word_count)
        span = encoding.word_to_chars(index, sequence_index)
        return None if span is None else CharSpan(*span)

    def char_to_word(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """The number of the word that covers a character, or None."""
        encoding, index = self._at(batch_or_char_index, char_index, _text_length)
        found: int | None = encoding.char_to_word(index, sequence_index)
        return found


def _word_count(encoding: tokenizers.Encoding) -> int:
    return max((word + 1 for word in encoding.word_ids if word is not None), default=0)


def _text_length(encoding: tokenizers.Encoding) -> int:
    return max((end for _, end in encoding.offsets), default=0)


def _as_array(name: str, value: Any) -> np.ndarray[Any, np.dtype[np.int64]]:
    if isinstance(value, list) and value and isinstance(value[0], list):
        lengths = sorted({len(row) for row in value})
        if len(lengths) > 1:
            raise InputError(
                f"{name}: got rows of {lengths[0]} to {lengths[-1]} tokens, expected equal lengths for one array.\n"
                "  Pass padding=True, and truncation=True where a text may be longer than the model takes."
            )
    return np.asarray(value, dtype=np.int64)
