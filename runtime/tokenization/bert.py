"""The BERT tokenizer, from a vocabulary, a ``tokenizer.json`` or a folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from pinnace.errors import BundleError, UsageError
from pinnace.runtime.tokenization.base import Tokenizer
from pinnace.runtime.tokenization.files import (
    BERT_OPTIONS,
    GENERIC_CLASSES,
    TokenizerSettings,
    apply_bert_options,
    guarded,
    read_backend,
    read_settings,
    read_vocabulary,
)

DEFAULT_TOKENS: Final[Mapping[str, str]] = {
    "unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]",
}  # fmt: skip
INPUT_NAMES: Final = ("input_ids", "token_type_ids", "attention_mask")


class Source(NamedTuple):
    """What a folder or file of a tokenizer holds, opened; a tokenizer takes it over."""

    backend: tokenizers.Tokenizer
    settings: TokenizerSettings


class BertTokenizer(Tokenizer):
    """WordPiece over cleaned, optionally lower-cased text.

    An argument left at None takes what the source says: a folder or a ``tokenizer.json`` knows whether it lower-cases.
    A bare vocabulary says nothing, and the documented defaults apply (``do_lower_case=False``, ``[UNK]`` and the like).

    Args:
        vocab: token → id, the path of a vocabulary file, of a ``tokenizer.json`` or of a folder, or one opened before.
        do_lower_case: lower-case the text.
        unk_token: stands for a word outside the vocabulary.
        sep_token: ends each text of a row.
        pad_token: fills short rows.
        cls_token: begins a row.
        mask_token: stands for a hidden token.
        tokenize_chinese_chars: make each CJK character a word.
        strip_accents: drop accents; None does so exactly when lower-casing.
        vocab_file: another name of ``vocab``.
        settings: fields of TokenizerSettings, as ``model_max_length=512`` or ``padding_side="left"``.

    Raises:
        BundleError: a file that is missing or damaged, or a vocabulary without the unknown token.
        UsageError: no vocabulary, or an argument of the wrong kind.

    Source: ``transformers.BertTokenizer`` of the transformers 5.0 documentation.
    """

    _input_names = INPUT_NAMES

    def __init__(
        self,
        vocab: str | Path | Mapping[str, int] | Source | None = None,
        do_lower_case: bool | None = None,
        unk_token: str | None = None,
        sep_token: str | None = None,
        pad_token: str | None = None,
        cls_token: str | None = None,
        mask_token: str | None = None,
        tokenize_chinese_chars: bool | None = None,
        strip_accents: bool | None = None,
        *,
        vocab_file: str | Path | None = None,
        **settings: Any,
    ) -> None:
        source = vocab if vocab is not None else vocab_file
        if source is None:
            raise UsageError("vocab: got none, expected a dict, a vocabulary file, a tokenizer.json or a folder.")
        if unknown := sorted(set(settings) - set(TokenizerSettings.__dataclass_fields__)):
            raise UsageError(f"{unknown[0]}: got an argument that BertTokenizer does not have.")
        backend, stated = open_source(source)
        if not isinstance(backend.model, models.WordPiece):
            raise BundleError(f"tokenizer.json: got a {type(backend.model).__name__} model, expected BERT's WordPiece.")
        options = {
            "do_lower_case": do_lower_case,
            "tokenize_chinese_chars": tokenize_chinese_chars,
            "strip_accents": strip_accents,
        }
        asked = {
            "unk_token": unk_token, "sep_token": sep_token, "pad_token": pad_token,
            "cls_token": cls_token, "mask_token": mask_token,
        }  # fmt: skip
        tokens = {**DEFAULT_TOKENS, **stated.special_tokens, **{name: t for name, t in asked.items() if t is not None}}
        with guarded(BundleError, "vocab"):
            apply_bert_options(backend, {name: value for name, value in options.items() if value is not None})
            backend.model.unk_token = str(tokens["unk_token"])
            if cls_token is not None or sep_token is not None:
                backend.post_processor = None
        if backend.model.token_to_id(backend.model.unk_token) is None:
            raise BundleError(f"vocab: got no {backend.model.unk_token!r} in it, expected the unknown token.")
        kept = dict(stated.kept) | {"tokenizer_class": "BertTokenizer", **stated_options(backend)}
        super().__init__(backend, replace(stated, **{**settings, "special_tokens": tokens, "kept": kept}))

    def _default_framing(self) -> processors.PostProcessor:
        cls, sep = str(self.cls_token), str(self.sep_token)
        return processors.TemplateProcessing(
            # Lists, not one string, so that a token may hold spaces, colons or dollars.
            single=[f"{cls}:0", "$A:0", f"{sep}:0"],
            pair=[f"{cls}:0", "$A:0", f"{sep}:0", "$B:1", f"{sep}:1"],
            special_tokens=[(cls, self.cls_token_id), (sep, self.sep_token_id)],
        )

    @classmethod
    def from_pretrained(cls, path: str | Path, **options: Any) -> BertTokenizer:
        """Open a folder or file; options overrule what it says. Raises BundleError."""
        return cls(path, **options)


def open_source(source: str | Path | Mapping[str, int] | Source) -> Source:
    """Open a vocabulary, a vocabulary file, a ``tokenizer.json`` or a folder: the pipeline and what goes with it.

    Raises:
        BundleError: a file that is missing or damaged.
        UsageError: a vocabulary that is not a map from tokens to ids.
    """
    if isinstance(source, Source):
        return source
    if isinstance(source, Mapping):
        for token, number in source.items():
            if not isinstance(token, str) or not isinstance(number, int) or not 0 <= number < 2**32:
                raise UsageError(f"vocab: got {token!r}: {number!r}, expected tokens and their ids from 0.")
        return Source(_pipeline(source), TokenizerSettings())
    path = Path(source)
    if not path.is_dir():
        if path.suffix != ".json":
            return Source(_pipeline(read_vocabulary(path)), TokenizerSettings())
        backend = read_backend(path)
        return Source(backend, read_settings(None, backend))
    if (path / "tokenizer.json").exists():
        backend = read_backend(path / "tokenizer.json")
        settings = read_settings(path, backend)
        if settings.kept.get("tokenizer_class") not in GENERIC_CLASSES:
            apply_bert_options(backend, settings.kept)
        return Source(backend, settings)
    if not (path / "vocab.txt").exists():
        raise BundleError(f"tokenizer: got the folder {path.name!r} without one, expected tokenizer.json or vocab.txt.")
    backend = _pipeline(read_vocabulary(path / "vocab.txt"))
    settings = read_settings(path, None)
    # A folder that does not say lower-cases, as with transformers.
    apply_bert_options(backend, {"do_lower_case": True, **settings.kept})
    return Source(backend, settings)


def stated_options(backend: tokenizers.Tokenizer) -> dict[str, Any]:
    """The normalizer's options under their names in ``tokenizer_config.json``; empty for another normalizer."""
    if not isinstance(backend.normalizer, normalizers.BertNormalizer):
        return {}
    return {name: getattr(backend.normalizer, ours) for name, ours in BERT_OPTIONS.items()}


def _pipeline(vocab: Mapping[str, int]) -> tokenizers.Tokenizer:
    with guarded(BundleError, "vocab"):
        backend = tokenizers.Tokenizer(models.WordPiece(dict(vocab), unk_token=DEFAULT_TOKENS["unk_token"]))
        backend.normalizer = normalizers.BertNormalizer(lowercase=False)
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.decoder = decoders.WordPiece(prefix="##")
    return backend
