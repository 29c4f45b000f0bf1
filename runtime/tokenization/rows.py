"""What a tokenizer call is asked to do: its texts as rows, its padding and truncation as one plan."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from pinnace.errors import InputError, unknown_word
from pinnace.runtime.tokenization.files import MAX_TEXT_CHARS, UNLIMITED

Text: TypeAlias = str | list[str]
"""One text: a string, or the list of its words."""

Row: TypeAlias = tuple[Text, Text | None]
"""A text and its partner in a pair."""

_PADDING: Final[Mapping[bool | str, str | None]] = {
    False: None, "do_not_pad": None, True: "longest", "longest": "longest", "max_length": "max_length",
}  # fmt: skip
_TRUNCATION: Final[Mapping[bool | str | None, str | None]] = {
    None: None,
    False: None,
    "do_not_truncate": None,
    True: "longest_first",
    "longest_first": "longest_first",
    "only_first": "only_first",
    "only_second": "only_second",
}
# Beyond this, a stated length means "no limit" and cannot be padded to.
_NO_LIMIT: Final = int(1e20)


@dataclass(frozen=True)
class Plan:
    """Padding and truncation of one call, resolved; lengths in tokens."""

    padding: str | None
    truncation: str | None
    max_length: int | None
    stride: int
    multiple: int | None
    padding_side: str
    truncation_side: str

    def shares(self, first: int, second: int, room: int) -> tuple[int, int]:
        """Split ``room`` tokens between two texts of these lengths by cutting the longer one first."""
        short, long = min(first, second), max(first, second)
        long = long if short > room else max(short, room - short)
        if short + long > room:
            short, long = room // 2, room - room // 2
        return (long, short) if first > second else (short, long)

    def padded_length(self, longest: int) -> int:
        """The length of padded rows, of which the longest has ``longest`` tokens."""
        length = longest if self.padding == "longest" or self.max_length is None else self.max_length
        return length if self.multiple is None else -(-length // self.multiple) * self.multiple

    def keep(self, first: int, second: int | None, added: int) -> tuple[int, int]:
        """How many tokens of the two texts of a row to keep.

        Args:
            first: tokens of the text, without special tokens.
            second: tokens of its partner, or None.
            added: how many special tokens the row will get.

        Raises:
            InputError: the row cannot be cut to the length in the way that is asked for.
        """
        whole = first, second or 0
        if self.truncation is None or self.max_length is None:
            return whole
        room = self.max_length - added
        if room < 0 or (room and self.stride >= room):
            raise InputError(
                f"max_length: got {self.max_length} with stride {self.stride} and {added} special tokens, "
                f"expected more than {added + self.stride}.\n  Raise max_length or lower stride."
            )
        excess = sum(whole) - room
        if excess <= 0:
            return whole
        if self.truncation == "only_second" and second is None:
            raise InputError(
                f"truncation 'only_second': got a text of {first} tokens and no second text, expected a pair.\n"
                "  Pass text_pair, or truncation='longest_first'."
            )
        if room == 0:
            return 0, 0
        if self.truncation == "longest_first":
            kept = (room, 0) if second is None else self.shares(*whole, room)
        else:
            kept = (first - excess, whole[1]) if self.truncation == "only_first" else (first, whole[1] - excess)
        # Longest-first may leave nothing of a text; a cut of one named text must leave something of it.
        least = 0 if self.truncation == "longest_first" else 1
        for length, wanted in zip(whole, kept, strict=True):
            if wanted < length and (wanted < least or 0 < wanted <= self.stride):
                raise InputError(
                    f"truncation {self.truncation!r}: got texts of {whole[0]} and {whole[1]} tokens, which leave "
                    f"{wanted} tokens of one to keep within max_length {self.max_length}, expected more than stride "
                    f"{self.stride}.\n  Raise max_length, lower stride or pass truncation='longest_first'."
                )
        return kept


def make_plan(
    plan_type: type[Plan],
    padding: bool | str,
    truncation: bool | str | None,
    max_length: int | None,
    stride: int,
    multiple: int | None,
    padding_side: str,
    truncation_side: str,
    model_max_length: int = UNLIMITED,
) -> Plan:
    """Resolve the arguments of a call as transformers does.

    ``max_length`` alone asks for truncation; without it, the model's own limit applies where there is one.

    Raises:
        InputError: a value of the wrong type, out of range, or that contradicts another.
        UsageError: an unknown strategy; the text names the nearest.
    """
    if max_length is not None and padding is False and truncation is None:
        truncation = "longest_first"
    pad, cut = _word("padding", padding, _PADDING), _word("truncation", truncation, _TRUNCATION)
    length = None if max_length is None else _count("max_length", max_length, 0)
    factor = None if multiple is None else _count("pad_to_multiple_of", multiple, 1)
    if padding_side not in ("left", "right"):
        raise unknown_word("padding_side", str(padding_side), ("left", "right"))
    if length is None and (pad == "max_length" or cut):
        if model_max_length > _NO_LIMIT:
            pad, cut = None if pad == "max_length" else pad, None
        else:
            length = model_max_length
    if pad and cut and factor and length is not None and length % factor:
        raise InputError(
            f"pad_to_multiple_of: got {factor}, expected a divisor of the length {length} that texts are cut to.\n"
            "  Choose a max_length that is a multiple of it."
        )
    return plan_type(pad, cut, length, _count("stride", stride, 0), factor, padding_side, truncation_side)


def make_rows(text: Any, text_pair: Any, split: bool, empty_pair_counts: bool) -> tuple[list[Row], bool]:
    """Bring every accepted form of input to rows.

    Args:
        text: a string, or a list of strings or of pairs; with ``split`` a list of words, or a list of those.
        text_pair: nothing, or the same form as ``text``.
        split: the texts are lists of words.
        empty_pair_counts: an empty partner of a single text still makes a pair.

    Returns:
        The rows, and whether the input was a batch.

    Raises:
        InputError: a wrong type (the text says where), lists of different lengths, an empty batch, or a text of more
            than ``MAX_TEXT_CHARS`` characters.
    """
    batched = isinstance(text, (list, tuple)) and (not split or bool(text and isinstance(text[0], (list, tuple))))
    if not batched:
        alone = text_pair is None or (not text_pair and not empty_pair_counts)
        return [(_text("text", text, split), None if alone else _text("text_pair", text_pair, split))], False
    if not text:
        raise InputError("text: got an empty list, expected at least one text.")
    if text_pair is None:
        return [_row(f"text[{i}]", item, split) for i, item in enumerate(text)], True
    if not isinstance(text_pair, (list, tuple)) or len(text_pair) != len(text):
        got = f"{len(text_pair)} texts" if isinstance(text_pair, (list, tuple)) else type(text_pair).__name__
        raise InputError(f"text_pair: got {got}, expected a list of {len(text)}, one for each text.")
    return [
        (_text(f"text[{i}]", one, split), _text(f"text_pair[{i}]", two, split))
        for i, (one, two) in enumerate(zip(text, text_pair, strict=True))
    ], True


def explain_refusal(texts: Sequence[Text]) -> None:
    """Raise an InputError that names the first character that no tokenizer can take, if there is one."""
    for text in texts:
        for piece in (text,) if isinstance(text, str) else text:
            try:
                piece.encode("utf-8")
            except UnicodeEncodeError as error:
                raise InputError(
                    f"text: got the lone surrogate {piece[error.start]!r} at character {error.start}, "
                    "expected Unicode text.\n"
                    "  Repair it where it was decoded, or pass text.encode('utf-8', 'replace').decode('utf-8')."
                ) from error


def _row(name: str, item: Any, split: bool) -> Row:
    part = (list, tuple) if split else str
    if isinstance(item, (list, tuple)) and len(item) == 2 and all(isinstance(half, part) for half in item):
        return _text(f"{name}[0]", item[0], split), _text(f"{name}[1]", item[1], split)
    return _text(name, item, split), None


def _text(name: str, value: Any, split: bool) -> Text:
    if split:
        if not isinstance(value, (list, tuple)):
            raise InputError(f"{name}: got {type(value).__name__}, expected a list of words (is_split_into_words).")
        for word in value:
            if not isinstance(word, str):
                raise InputError(f"{name}: got a word of type {type(word).__name__}, expected str.")
    elif not isinstance(value, str):
        raise InputError(
            f"{name}: got {type(value).__name__}, expected str.\n"
            "  Pass a string, or a list of strings; for lists of words pass is_split_into_words=True."
        )
    size = sum(map(len, value)) if split else len(value)
    if size > MAX_TEXT_CHARS:
        raise InputError(f"{name}: got {size} characters, expected at most {MAX_TEXT_CHARS}.\n  Split the text.")
    return list(value) if split else value


def _word(kind: str, value: Any, table: Mapping[Any, str | None]) -> str | None:
    # 0 and 1 equal False and True as keys, but as arguments they are mistakes.
    if value is None or isinstance(value, (bool, str)):
        if value in table:
            return table[value]
        if isinstance(value, str):
            raise unknown_word(kind, value, (word for word in table if isinstance(word, str)))
    raise InputError(f"{kind}: got {value!r}, expected True, False or a strategy's name.")


def _count(name: str, value: Any, least: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise InputError(f"{name}: got {value!r}, expected a whole number.") from None
    if isinstance(value, bool) or not least <= number < 2**31:
        raise InputError(f"{name}: got {value!r}, expected a whole number from {least} to {2**31 - 1}.")
    return number
