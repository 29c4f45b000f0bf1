"""BERT's first tokenizer, word for word in Python: for checkpoints that need ``never_split`` or no basic splitting.

It is slower than BertTokenizer and knows no offsets. Its results differ from it in corners, as the original's do.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import models

from pinnace.errors import BundleError, UsageError
from pinnace.runtime.tokenization.base import Tokenizer
from pinnace.runtime.tokenization.bert import INPUT_NAMES, BertTokenizer
from pinnace.runtime.tokenization.files import SPECIAL_TOKENS, TokenizerSettings, guarded, read_vocabulary
from pinnace.runtime.tokenization.rows import Plan, Text

_CJK = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F), (0x2B820, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip
_LONGEST_WORD = 100  # characters; a longer word is unknown


class LegacyPlan(Plan):
    """Cuts two texts as the original did, token by token from the longer one, from the second when they are equal."""

    def shares(self, first: int, second: int, room: int) -> tuple[int, int]:
        """Split ``room`` tokens between two texts of these lengths."""
        excess = first + second - room
        level = min(excess, abs(first - second))
        first, second = (first - level, second) if first > second else (first, second - level)
        rest = excess - level
        return first - rest // 2, second - (rest - rest // 2)


@dataclass(frozen=True)
class BasicSplitter:
    """Cleans text and splits it at spaces, punctuation and CJK characters.

    Args:
        lower: lower-case, and drop accents unless ``strip_accents`` is False.
        strip_accents: drop accents whatever ``lower`` says.
        chinese: make each CJK character a word.
    """

    lower: bool
    strip_accents: bool | None
    chinese: bool

    def split(self, text: str, never_split: Collection[str]) -> list[str]:
        """Split one text; words in ``never_split`` stay as they are."""
        words = []
        for word in unicodedata.normalize("NFC", "".join(map(self._clean, text))).split():
            plain = word if word in never_split else self._fold(word)
            if plain in never_split:
                words.append(plain)
            else:
                words.extend("".join(f" {c} " if _is_punctuation(c) else c for c in plain).split())
        return words

    def _fold(self, word: str) -> str:
        if self.lower:
            word = word.lower()
        if self.strip_accents or (self.lower and self.strip_accents is None):
            word = "".join(c for c in unicodedata.normalize("NFD", word) if unicodedata.category(c) != "Mn")
        return word

    def _clean(self, char: str) -> str:
        if char in "\t\n\r" or unicodedata.category(char) == "Zs":
            return " "
        if char == "\ufffd" or unicodedata.category(char).startswith("C"):
            return ""
        if self.chinese and any(first <= ord(char) <= last for first, last in _CJK):
            return f" {char} "
        return char


class BertTokenizerLegacy(Tokenizer):
    """The Python form of BERT's tokenizer.

    Args:
        vocab_file: one token a line.
        do_lower_case: lower-case the text.
        do_basic_tokenize: clean and split the text before WordPiece; else it is only split at spaces, cases kept.
        never_split: words to keep whole, compared after lower-casing.
        unk_token: stands for a word outside the vocabulary.
        sep_token: ends each text of a row.
        pad_token: fills short rows.
        cls_token: begins a row.
        mask_token: stands for a hidden token.
        tokenize_chinese_chars: make each CJK character a word.
        strip_accents: drop accents; None does so exactly when lower-casing.
        clean_up_tokenization_spaces: close up spaces before punctuation when decoding.
        settings: fields of TokenizerSettings, as ``model_max_length=512``.

    Raises:
        BundleError: no such file, or one without the unknown token.
        UsageError: an argument that does not exist.

    Source: ``transformers.BertTokenizerLegacy`` of the transformers 5.0 documentation; behaviour of the Python
    BertTokenizer of 4.57.
    """

    is_fast = False
    _plan_type = LegacyPlan
    _input_names = INPUT_NAMES
    _default_framing = BertTokenizer._default_framing

    def __init__(
        self,
        vocab_file: str | Path,
        do_lower_case: bool = True,
        do_basic_tokenize: bool = True,
        never_split: Iterable[str] | None = None,
        unk_token: str = "[UNK]",  # noqa: S107
        sep_token: str = "[SEP]",  # noqa: S107
        pad_token: str = "[PAD]",  # noqa: S107
        cls_token: str = "[CLS]",  # noqa: S107
        mask_token: str = "[MASK]",  # noqa: S107
        tokenize_chinese_chars: bool = True,
        strip_accents: bool | None = None,
        clean_up_tokenization_spaces: bool = True,
        **settings: Any,
    ) -> None:
        if unknown := sorted(set(settings) - set(TokenizerSettings.__dataclass_fields__)):
            raise UsageError(f"{unknown[0]}: got an argument that BertTokenizerLegacy does not have.")
        self._pieces = read_vocabulary(Path(vocab_file))
        if unk_token not in self._pieces:
            raise BundleError(f"{Path(vocab_file).name}: got no {unk_token!r} in it, expected the unknown token.")
        tokens = dict(zip(SPECIAL_TOKENS[2:], (unk_token, sep_token, pad_token, cls_token, mask_token), strict=True))
        self._all = dict(self._pieces)
        for token in (*tokens.values(), *settings.get("extra_special_tokens", ())):
            self._all.setdefault(str(token), len(self._all))
        splitter = BasicSplitter(do_lower_case, strip_accents, tokenize_chinese_chars)
        self._splitter = splitter if do_basic_tokenize else None
        self._lower = do_lower_case and do_basic_tokenize
        self._never_split = frozenset(never_split or ())
        with guarded(BundleError, "vocab"):
            backend = tokenizers.Tokenizer(models.WordLevel(self._all, unk_token=unk_token))
        clean = {"clean_up_tokenization_spaces": clean_up_tokenization_spaces}
        super().__init__(backend, TokenizerSettings(**{**settings, **clean, "special_tokens": tokens}))
        specials = sorted(self.all_special_tokens, key=len, reverse=True)
        self._special_pattern = re.compile("|".join(map(re.escape, specials)))

    @classmethod
    def from_pretrained(cls, path: str | Path, **options: Any) -> BertTokenizerLegacy:
        """Open a vocabulary file, or the ``vocab.txt`` of a folder. Raises BundleError."""
        found = Path(path)
        return cls(found / "vocab.txt" if found.is_dir() else found, **options)

    def _add_missing(self, settings: TokenizerSettings) -> None:
        """Special tokens stand in the word table already; as added tokens they would be cut out of longer words."""

    @property
    def continuing_subword_prefix(self) -> str:
        """What marks a token that continues a word."""
        return "##"

    @property
    def vocab_size(self) -> int:
        """Tokens of the vocabulary file."""
        return len(self._pieces)

    def tokenize(
        self, text: str, pair: str | None = None, add_special_tokens: bool = False, **options: Any
    ) -> list[str]:
        """The token strings of one text, before words outside the vocabulary become the unknown token's id."""
        texts = [self._tokenize(part) for part in (text, pair) if part is not None]
        if not add_special_tokens:
            return [token for tokens in texts for token in tokens]
        return [str(self.cls_token), *(token for tokens in texts for token in (*tokens, str(self.sep_token)))]

    def _tokenize(self, text: str) -> list[str]:
        if self._lower:
            # Lower-casing character by character, as the original: a final sigma keeps its plain form.
            text = "".join(self._outside_specials(text, lambda part: ["".join(c.lower() for c in part)]))
        return self._outside_specials(text, self._split)

    def _outside_specials(self, text: str, change: Callable[[str], list[str]]) -> list[str]:
        parts: list[str] = []
        end = 0
        for match in self._special_pattern.finditer(text):
            parts += [*change(text[end : match.start()]), match.group()]
            end = match.end()
        return [*parts, *change(text[end:])]

    def _split(self, text: str) -> list[str]:
        if self._splitter is None:
            return [piece for word in text.split() for piece in self._word_pieces(word)]
        whole = self._never_split | frozenset(self.all_special_tokens)
        words = self._splitter.split(text, whole)
        return [p for word in words for p in ([word] if word in self._never_split else self._word_pieces(word))]

    def _word_pieces(self, word: str) -> list[str]:
        """Cut a word into the longest pieces of the vocabulary, from the left."""
        pieces: list[str] = []
        start = 0
        while len(word) <= _LONGEST_WORD and start < len(word):
            prefix = "##" if start else ""
            end = next((e for e in range(len(word), start, -1) if prefix + word[start:e] in self._pieces), None)
            if end is None:
                break
            pieces.append(prefix + word[start:end])
            start = end
        return pieces if start == len(word) else [str(self.unk_token)]

    def _encode_bare(self, texts: list[Text], split: bool, as_partner: bool = False) -> list[tokenizers.Encoding]:
        words = [
            self._tokenize(text) if isinstance(text, str) else [t for word in text for t in self._tokenize(word)]
            for text in texts
        ]
        return super()._encode_bare(list[Text](words), True, as_partner)

    def _id_token(self, number: int) -> str | None:
        return super()._id_token(number) or self.unk_token

    def _decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        tokens = self.convert_ids_to_tokens(ids, skip_special_tokens)
        return self.convert_tokens_to_string([token for token in tokens if token is not None])

    def convert_tokens_to_string(self, tokens: Sequence[str]) -> str:
        """Join token strings into text."""
        return " ".join(tokens).replace(" ##", "").strip()

    def save_vocabulary(self, save_directory: str | Path, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write ``vocab.txt`` (as ``prefix-vocab.txt`` with a prefix). Raises UsageError, as Tokenizer's does."""
        path = self._vocabulary_path(save_directory, filename_prefix)
        path.write_text("".join(f"{token}\n" for token in sorted(self._pieces, key=self._pieces.__getitem__)), "utf-8")
        return (str(path),)

    def save_pretrained(self, save_directory: str | Path) -> tuple[str, ...]:
        """Write the vocabulary alone: a ``tokenizer.json`` cannot say what this tokenizer does.

        ``from_pretrained`` opens it again, given the same arguments.
        """
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        return self.save_vocabulary(save_directory)


def _is_punctuation(char: str) -> bool:
    # All of ASCII that is neither letter, digit, space nor control, though Unicode calls some of it symbols.
    return ("!" <= char <= "~" and not char.isalnum()) or unicodedata.category(char).startswith("P")
