"""Tokens by name and by number: the vocabulary, the special tokens, and how they frame a row."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import tokenizers

from pinnace.errors import BundleError, InputError
from pinnace.runtime.tokenization.files import SPECIAL_TOKENS, TokenizerSettings, guarded


@dataclass(frozen=True)
class Layout:
    """The frame of a row: per position the special token's id, or None where a text goes.

    Args:
        ids: special ids; None for a text.
        sources: 0 or 1 where a text goes, None for a special token.
        types: the token type of each position.
    """

    ids: tuple[int | None, ...]
    sources: tuple[int | None, ...]
    types: tuple[int, ...]

    @classmethod
    def of(cls, framer: tokenizers.Tokenizer, pair: bool) -> Layout:
        """Read the frame off a row of one-token texts; ``framer`` knows the token ``x``."""
        text, partner = (tokenizers.Tokenizer(framer.model).encode("x") for _ in range(2))
        row = framer.post_process(text, partner if pair else None, True)
        sources = tuple(row.sequence_ids)
        ids = (number if source is None else None for source, number in zip(sources, row.ids, strict=True))
        return cls(tuple(ids), sources, tuple(row.type_ids))

    def fill(self, texts: Sequence[Sequence[int]]) -> list[tuple[int, int, int]]:
        """Put texts into the frame; returns (id, type, 1 for special) per token."""
        filled = []
        for special, source, kind in zip(self.ids, self.sources, self.types, strict=True):
            if special is not None:
                filled.append((special, kind, 1))
            elif source is not None:
                filled.extend((number, kind, 0) for number in texts[source])
        return filled


class _NamedToken:
    """A special token's text as an attribute: ``tokenizer.pad_token``; None when the tokenizer has none."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: SpecialTokens, owner: type) -> str | None:
        return instance._special.get(self.name)

    def __set__(self, instance: SpecialTokens, token: str | None) -> None:
        if token is not None and instance._backend.token_to_id(token) is None:
            raise InputError(f"{self.name}: got {token!r}, expected a token of the vocabulary.")
        # A new dict, so that a thread that reads the old one is not disturbed.
        instance._special = {**instance._special, self.name: token}


class _NamedId:
    """A special token's id as an attribute: ``tokenizer.pad_token_id``."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name.removesuffix("_id")

    def __get__(self, instance: SpecialTokens, owner: type) -> int | None:
        token = instance._special.get(self.name)
        return None if token is None else instance._token_id(token)


class SpecialTokens:
    """The vocabulary side of a tokenizer.

    Args:
        backend: the pipeline of a ``tokenizer.json``.
        settings: names the special tokens; those that the vocabulary lacks are added to it.

    Raises:
        BundleError: a special token cannot be added.
    """

    bos_token, eos_token, unk_token, sep_token, pad_token, cls_token, mask_token = (_NamedToken() for _ in range(7))
    bos_token_id, eos_token_id, unk_token_id, sep_token_id, pad_token_id, cls_token_id, mask_token_id = (
        _NamedId() for _ in range(7)
    )
    _layouts: dict[bool, Layout]

    def __init__(self, backend: tokenizers.Tokenizer, settings: TokenizerSettings) -> None:
        self._backend = backend
        self._special: dict[str, str | None] = {
            name: _content(settings.special_tokens[name]) for name in SPECIAL_TOKENS if name in settings.special_tokens
        }
        self._extra = [_content(token) for token in settings.extra_special_tokens]
        self._add_missing(settings)

    def _add_missing(self, settings: TokenizerSettings) -> None:
        named = [settings.special_tokens[name] for name in SPECIAL_TOKENS if name in settings.special_tokens]
        specials = [
            token if isinstance(token, tokenizers.AddedToken) else tokenizers.AddedToken(token, special=True)
            for token in (*named, *settings.extra_special_tokens)
        ]
        with guarded(BundleError, "special tokens"):
            known = {token.content for token in self._backend.get_added_tokens_decoder().values()}
            missing = []
            for token in (*settings.added_tokens, *specials):
                if token.content not in known:
                    known.add(token.content)
                    missing.append(token)
            self._backend.add_tokens(missing)

    @property
    def extra_special_tokens(self) -> list[str]:
        """Special tokens beyond the named ones."""
        return list(self._extra)

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """Name → token, for the named special tokens that exist."""
        return {name: token for name in SPECIAL_TOKENS if (token := self._special.get(name)) is not None}

    @property
    def all_special_tokens(self) -> list[str]:
        """Every special token once: named ones, then the others."""
        return list(dict.fromkeys([*self.special_tokens_map.values(), *self._extra]))

    @property
    def all_special_ids(self) -> list[int]:
        """The ids of ``all_special_tokens``."""
        return [number for token in self.all_special_tokens if (number := self._token_id(token)) is not None]

    @property
    def added_tokens_decoder(self) -> dict[int, tokenizers.AddedToken]:
        """Id → token, for tokens added to the model's own vocabulary."""
        return dict(self._backend.get_added_tokens_decoder())

    @property
    def special_token_ids(self) -> dict[str, int]:
        """Token → id, for those that ``decode`` leaves out where special tokens are skipped."""
        return {token.content: number for number, token in self.added_tokens_decoder.items() if token.special}

    @property
    def vocab_size(self) -> int:
        """Tokens of the model's own vocabulary, added ones not counted."""
        return int(self._backend.get_vocab_size(with_added_tokens=False))

    def __len__(self) -> int:
        """Tokens in all, added ones counted."""
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    def __bool__(self) -> bool:
        """A tokenizer is true, however few tokens it has."""
        return True

    @property
    def continuing_subword_prefix(self) -> str | None:
        """What marks a token that continues a word (``##``); None for models that mark words otherwise."""
        prefix: str | None = getattr(self._backend.model, "continuing_subword_prefix", None)
        return prefix or None

    def get_vocab(self) -> dict[str, int]:
        """Token → id, added tokens included."""
        return dict(self._backend.get_vocab(with_added_tokens=True))

    def _token_id(self, token: str) -> int | None:
        found: int | None = self._backend.token_to_id(token)
        if found is None and (unknown := self._special.get("unk_token")) is not None:
            found = self._backend.token_to_id(unknown)
        return found

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """Token → id (that of the unknown token, or None, where there is none); a list gives a list."""
        if isinstance(tokens, str):
            with guarded(InputError, "token"):
                return self._token_id(tokens)
        return [self.convert_tokens_to_ids(token) for token in tokens]

    @overload
    def convert_ids_to_tokens(self, ids: int, skip_special_tokens: bool = False) -> str | None: ...

    @overload
    def convert_ids_to_tokens(self, ids: Sequence[int], skip_special_tokens: bool = False) -> list[str | None]: ...

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> str | list[str | None] | None:
        """Id → token (None outside the vocabulary); a list gives a list.

        Raises:
            InputError: something that is not an id.
        """
        if not isinstance(ids, (list, tuple)) and not getattr(ids, "shape", ()):
            return self._id_token(self._check_ids(ids)[0])
        skipped = set(self.all_special_ids) if skip_special_tokens else set()
        return [self._id_token(number) for number in self._check_ids(ids) if number not in skipped]

    def _id_token(self, number: int) -> str | None:
        token: str | None = self._backend.id_to_token(number)
        return token

    @staticmethod
    def _check_ids(ids: Any) -> list[int]:
        numbers = []
        # An array without dimensions is one id, though it has the method of a list.
        several = hasattr(ids, "__iter__") and not isinstance(ids, str) and getattr(ids, "shape", None) != ()
        for item in ids if several else (ids,):
            try:
                number = operator.index(item)
            except TypeError:
                raise InputError(f"ids: got {item!r}, expected whole numbers, as a list or an integer array.") from None
            if not 0 <= number < 2**32:
                raise InputError(f"ids: got {number}, expected a token id from 0.")
            numbers.append(number)
        return numbers

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """How many special tokens frame a row."""
        return sum(number is not None for number in self._layouts[bool(pair)].ids)

    def build_inputs_with_special_tokens(
        self, token_ids_0: Sequence[int], token_ids_1: Sequence[int] | None = None
    ) -> list[int]:
        """Frame ids with special tokens, as in ``[CLS] a [SEP] b [SEP]``."""
        return [number for number, _, _ in self._fill(token_ids_0, token_ids_1)]

    def create_token_type_ids_from_sequences(
        self, token_ids_0: Sequence[int], token_ids_1: Sequence[int] | None = None
    ) -> list[int]:
        """The token types of the row that ``build_inputs_with_special_tokens`` makes."""
        return [kind for _, kind, _ in self._fill(token_ids_0, token_ids_1)]

    def get_special_tokens_mask(
        self,
        token_ids_0: Sequence[int],
        token_ids_1: Sequence[int] | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        """1 for special tokens, 0 for the text's.

        Args:
            token_ids_0: ids of a text, or of a framed row.
            token_ids_1: ids of its partner; not with a framed row.
            already_has_special_tokens: ``token_ids_0`` is a framed row.

        Raises:
            InputError: a framed row with a partner.
        """
        if not already_has_special_tokens:
            return [special for _, _, special in self._fill(token_ids_0, token_ids_1)]
        if token_ids_1 is not None:
            raise InputError("token_ids_1: got ids beside a row that already has special tokens, expected none.")
        special = set(self.all_special_ids)
        return [int(number in special) for number in self._check_ids(token_ids_0)]

    def _fill(self, first: Sequence[int], second: Sequence[int] | None) -> list[tuple[int, int, int]]:
        texts = [self._check_ids(ids) for ids in (first, second) if ids is not None]
        return self._layouts[second is not None].fill(texts)


def _content(token: str | tokenizers.AddedToken) -> str:
    return token if isinstance(token, str) else str(token.content)
