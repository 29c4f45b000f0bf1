"""Text of tokens as they come: pieces that never cut a character, for any number of rows."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from pinnace.errors import UsageError
from pinnace.runtime.tokenization.tokenizer import Tokenizer

# What a decoder writes for bytes that are no character, or none yet.
_UNFINISHED: Final = "\ufffd"
# So many of the prompt's last tokens decide how the first new one is written: a special token or two and a word.
_NEIGHBOURS: Final = 8


class RowText:
    """Turns the tokens of one row into pieces of text; joined, they are the text of all tokens.

    But for decoders that write the bytes of whole characters anew where a piece of one follows (ByteFallback): a piece
    that was given out stays. `new_text` is exact there too.

    Each token is decoded together with the tokens of the piece before it, because many decoders join neighbours (a
    word's parts, a leading space), and it is held back while its last character lacks bytes.

    Args:
        decode: ids to text.
        prompt: the tokens before the first, which decide whether its text begins with a space.
    """

    def __init__(self, decode: Callable[[list[int]], str], prompt: Sequence[int] = ()) -> None:
        self._decode = decode
        self._before = list(prompt[-_NEIGHBOURS:])
        self._held: list[int] = []
        self._known = decode(self._before).rstrip(_UNFINISHED) if self._before else ""

    def push(self, token: int) -> str:
        """Take a token and return the text that is now whole; often empty."""
        self._held.append(token)
        return self._take(final=False)

    def flush(self) -> str:
        """Return what is still held back; an unfinished character becomes the replacement character."""
        return self._take(final=True) if self._held else ""

    def fork(self) -> RowText:
        """Return another that has the same tokens so far, and goes on by itself."""
        made = copy.copy(self)
        made._held = list(self._held)
        return made

    def _take(self, *, final: bool) -> str:
        text = self._decode(self._before + self._held)
        if not final and text.endswith(_UNFINISHED):
            return ""
        piece = text[len(self._known) :]
        if not piece and not final:
            # A token without text (a special one) must not become the only neighbour of the next.
            return ""
        self._before, self._held = self._held, []
        self._known = self._decode(self._before)
        return piece


def new_text(decode: Callable[[list[int]], str], prompt: Sequence[int], tokens: Sequence[int]) -> str:
    """Return the text that tokens add to their prompt's, all decoded at once."""
    if not tokens:
        return ""
    known = decode(list(prompt)).rstrip(_UNFINISHED) if prompt else ""
    return decode([*prompt, *tokens])[len(known) :]


class RowDecoder:
    """Turns ids into text without special tokens, as `RowText` needs it.

    Args:
        tokenizer: that of the model.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def __call__(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), True, False))

    @functools.cached_property
    def special(self) -> Mapping[str, int]:
        """Special tokens, and their ids: they never stand in the text."""
        return self._tokenizer.special_token_ids

    def check_stops(self, strings: Sequence[str]) -> None:
        """Check that the text may hold these strings, or that each is a special token.

        Raises:
            UsageError: a special token and more, which would never be found.
        """
        for string in strings:
            inside = [token for token in self.special if token in string]
            if inside and string not in self.special:
                raise UsageError(
                    f"stop_strings: {string!r} has the special token {inside[0]!r}, which never stands in the text, "
                    f"and more; give {inside[0]!r} alone, which ends a row too"
                )

    def stops(self, strings: Sequence[str]) -> frozenset[int]:
        """Ids of those strings that are special tokens, which a row must end at although its text lacks them."""
        return frozenset(self.special[string] for string in strings if string in self.special)
