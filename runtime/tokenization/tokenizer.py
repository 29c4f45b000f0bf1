"""Opens the tokenizer of a checkpoint or bundle folder; the public names of tokenization."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tokenizers.normalizers import BertNormalizer, Lowercase, Sequence

from pinnace.errors import BundleError
from pinnace.runtime.tokenization.base import Tokenizer
from pinnace.runtime.tokenization.bert import DEFAULT_TOKENS, BertTokenizer, open_source
from pinnace.runtime.tokenization.encoding import BatchEncoding, CharSpan, TokenSpan
from pinnace.runtime.tokenization.files import MAX_FILE_BYTES, MAX_TEXT_CHARS

__all__ = [
    "BatchEncoding", "BertTokenizer", "CharSpan", "TokenSpan", "Tokenizer",
    "MAX_FILE_BYTES", "MAX_TEXT_CHARS", "load_tokenizer",
]  # fmt: skip

_BERT_CLASSES: Final = frozenset({"BertTokenizer", "BertTokenizerFast"})


def load_tokenizer(folder: str | Path, *, lower_case: bool = False) -> Tokenizer:
    """Open the tokenizer of a folder, whatever its kind.

    ``tokenizer.json`` decides; without one, ``vocab.txt`` makes a BERT tokenizer. ``tokenizer_config.json``,
    ``special_tokens_map.json`` and ``added_tokens.json`` add to them. No other file is opened, whatever these name.

    Args:
        folder: the folder.
        lower_case: put texts, but for special tokens in them, into lower case first.

    Raises:
        BundleError: the folder has no tokenizer, or a damaged, oversized or unreadable one.
    """
    path = Path(folder)
    if not path.is_dir():
        raise BundleError(f"tokenizer: got {str(path)!r}, expected a folder with tokenizer.json or vocab.txt.")
    source = open_source(path)
    backend, settings = source
    stated = settings.kept.get("tokenizer_class")
    # A bare tokenizer.json names no special tokens; one that is BERT's in every respect is taken for BERT's.
    looks_like_bert = isinstance(backend.normalizer, BertNormalizer) and all(
        backend.token_to_id(token) is not None for token in DEFAULT_TOKENS.values()
    )
    is_bert = stated in _BERT_CLASSES or (stated is None and looks_like_bert)
    tokenizer = BertTokenizer(source) if is_bert else Tokenizer(backend, settings)
    if lower_case:  # the tokenizer works with this backend, no copy
        backend.normalizer = Sequence([Lowercase(), *([] if backend.normalizer is None else [backend.normalizer])])
    return tokenizer
