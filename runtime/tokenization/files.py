"""Reads the tokenizer files of a folder: a fixed list of names, bounded sizes, every failure a typed error.

No value found inside a file is ever used as a path. What a hostile ``tokenizer.json`` can still do: the regular
expressions in it run in an engine that gives up after a fixed number of retries at one position (an InputError here),
but a pattern of polynomial cost, or a normalizer that lengthens its text, costs time and memory in the text's size.
So the text of one row is capped (``MAX_TEXT_CHARS``), and a service should cap requests lower still.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import tokenizers
from tokenizers import normalizers

from pinnace.errors import BundleError, PinnaceError
from pinnace.runtime.bundles import integrity

MAX_FILE_BYTES: Final = 64 * 2**20
"""Largest tokenizer file that is read, in bytes; the largest vocabularies in use (256,000 tokens) take about 35 MB."""

MAX_TEXT_CHARS: Final = 2**20
"""Longest text of one row, in characters; at one token per character it takes about 0.8 GB and a few seconds."""

UNLIMITED: Final = int(1e30)
"""``model_max_length`` of a tokenizer that states none."""

SPECIAL_TOKENS: Final = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

GENERIC_CLASSES: Final = frozenset({"PreTrainedTokenizerFast", "TokenizersBackend"})
"""Values of ``tokenizer_class`` that take ``tokenizer.json`` as it is, without the options of a BERT normalizer."""

BERT_OPTIONS: Final[Mapping[str, str]] = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}
_KEPT: Final = ("tokenizer_class", "chat_template", *BERT_OPTIONS)


@contextmanager
def guarded(error: type[PinnaceError], doing: str) -> Iterator[None]:
    """Turn whatever the ``tokenizers`` library raises into ``error``.

    A panic of the library arrives as a BaseException that ``except Exception`` lets through to the top of a server; an
    interrupt or an exit passes untouched.
    """
    try:
        yield
    except (PinnaceError, MemoryError):
        raise
    except BaseException as cause:
        if not isinstance(cause, Exception) and type(cause).__module__ != "pyo3_runtime":
            raise
        raise error(f"{doing}: the tokenizers library refused: {str(cause)[:500]}") from cause


@dataclass(frozen=True)
class TokenizerSettings:
    """What ``tokenizer_config.json`` adds to ``tokenizer.json``.

    Args:
        special_tokens: name as in ``SPECIAL_TOKENS`` → token.
        extra_special_tokens: further tokens that count as special.
        added_tokens: tokens to add when the vocabulary lacks them, in the order of their ids.
        model_max_length: longest row the model takes, in tokens.
        model_input_names: what a call returns by default; None for what the class returns.
        kept: keys that only ``save_pretrained`` needs.
    """

    special_tokens: Mapping[str, str | tokenizers.AddedToken] = field(default_factory=dict)
    extra_special_tokens: tuple[str | tokenizers.AddedToken, ...] = ()
    added_tokens: tuple[tokenizers.AddedToken, ...] = ()
    model_max_length: int = UNLIMITED
    padding_side: str = "right"
    truncation_side: str = "right"
    pad_token_type_id: int = 0
    clean_up_tokenization_spaces: bool = False
    split_special_tokens: bool = False
    model_input_names: tuple[str, ...] | None = None
    kept: Mapping[str, Any] = field(default_factory=dict)


def read_text(path: Path) -> str:
    """Read one UTF-8 file of at most ``MAX_FILE_BYTES`` bytes; Raises BundleError."""
    return integrity.read_text(path, MAX_FILE_BYTES)


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object; an absent file is an empty one. Raises BundleError."""
    return integrity.read_object(path, MAX_FILE_BYTES) if path.exists() else {}


def read_vocabulary(path: Path) -> dict[str, int]:
    """Read ``vocab.txt``: one token a line, its id the line's number from 0. Raises BundleError."""
    # Not str.splitlines: a vocabulary holds tokens such as U+2028 or U+0085.
    lines = read_text(path).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if lines[-1] == "":
        lines.pop()
    return {token: number for number, token in enumerate(lines)}


def read_backend(path: Path) -> tokenizers.Tokenizer:
    """Read a ``tokenizer.json``. Raises BundleError."""
    text = read_text(path)
    with guarded(BundleError, path.name):
        return tokenizers.Tokenizer.from_str(text)


def read_settings(folder: Path | None, backend: tokenizers.Tokenizer | None) -> TokenizerSettings:
    """Read what a folder says beside ``tokenizer.json``, and what padding and truncation stored in that file imply."""
    config = read_object(folder / "tokenizer_config.json") if folder else {}
    if folder and "added_tokens_decoder" not in config:
        config |= read_object(folder / "special_tokens_map.json")
        config["added_tokens_decoder"] = {
            str(number): {"content": token} for token, number in read_object(folder / "added_tokens.json").items()
        }
    padding = (backend.padding if backend else None) or {}
    truncation = (backend.truncation if backend else None) or {}
    for key, value in (
        ("pad_token", padding.get("pad_token")),
        ("padding_side", padding.get("direction")),
        ("pad_token_type_id", padding.get("pad_type_id")),
        ("truncation_side", truncation.get("direction")),
    ):
        if value is not None and config.get(key) is None:
            config[key] = value
    return parse_settings(config)


def parse_settings(config: Mapping[str, Any]) -> TokenizerSettings:
    """Check the keys of a ``tokenizer_config.json`` that are read; all others, paths among them, are ignored.

    Raises:
        BundleError: a key with a value of the wrong type; the text names it.
    """
    extras = config.get("extra_special_tokens") or config.get("additional_special_tokens") or ()
    extras = tuple(extras.values()) if isinstance(extras, Mapping) else extras
    _expect(isinstance(extras, (list, tuple)), "extra_special_tokens", extras, "a list of tokens")
    decoder = config.get("added_tokens_decoder") or {}
    _expect(
        isinstance(decoder, Mapping) and all(_is_id(number) for number in decoder),
        "added_tokens_decoder", decoder, "an object from ids to tokens",
    )  # fmt: skip
    names = config.get("model_input_names") or ()
    _expect(
        isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names),
        "model_input_names", names, "a list of names",
    )  # fmt: skip
    limit = config.get("model_max_length") or config.get("max_len") or UNLIMITED
    _expect(
        isinstance(limit, (int, float)) and 0 < limit <= 2 * UNLIMITED, "model_max_length", limit, "a positive number"
    )
    for side in ("padding_side", "truncation_side"):
        _expect(config.get(side, "right") in ("left", "right"), side, config.get(side), "'left' or 'right'")
    type_id = config.get("pad_token_type_id", 0)
    _expect(isinstance(type_id, int) and 0 <= type_id < 2**31, "pad_token_type_id", type_id, "a small whole number")
    return TokenizerSettings(
        special_tokens={name: _token(name, config[name]) for name in SPECIAL_TOKENS if config.get(name) is not None},
        extra_special_tokens=tuple(_token("extra_special_tokens", token) for token in extras),
        added_tokens=tuple(
            _added_token("added_tokens_decoder", decoder[number], special=False) for number in sorted(decoder, key=int)
        ),
        model_max_length=int(limit),
        padding_side=config.get("padding_side", "right"),
        truncation_side=config.get("truncation_side", "right"),
        pad_token_type_id=type_id,
        clean_up_tokenization_spaces=bool(config.get("clean_up_tokenization_spaces", False)),
        split_special_tokens=bool(config.get("split_special_tokens", False)),
        model_input_names=tuple(names) or None,
        kept={key: config[key] for key in _KEPT if key in config},
    )


def apply_bert_options(backend: tokenizers.Tokenizer, options: Mapping[str, Any]) -> None:
    """Let ``do_lower_case``, ``strip_accents`` and ``tokenize_chinese_chars``, where given, overrule the normalizer.

    Only a BERT normalizer has them; a tokenizer with another one is left alone.
    """
    given = {ours: options[name] for name, ours in BERT_OPTIONS.items() if name in options}
    normalizer = backend.normalizer
    if not given or not isinstance(normalizer, normalizers.BertNormalizer):
        return
    for name, value in given.items():
        _expect(value is None or isinstance(value, bool), name, value, "true or false")
    stated = {name: getattr(normalizer, name) for name in ("clean_text", *BERT_OPTIONS.values())}
    stated |= {name: value for name, value in given.items() if value is not None or name == "strip_accents"}
    backend.normalizer = normalizers.BertNormalizer(**stated)


def _is_id(key: Any) -> bool:
    """Whether a key of a JSON object is a token id; 2**32 has ten digits."""
    return str(key).isdecimal() and len(str(key)) <= 10


def _expect(right: bool, key: str, got: Any, expected: str) -> None:
    if not right:
        raise BundleError(f"tokenizer_config.json, {key}: got {str(got)[:80]!r}, expected {expected}.")


def _token(key: str, value: Any) -> str | tokenizers.AddedToken:
    return value if isinstance(value, (str, tokenizers.AddedToken)) else _added_token(key, value, special=True)


def _added_token(key: str, value: Any, special: bool) -> tokenizers.AddedToken:
    _expect(isinstance(value, Mapping) and isinstance(value.get("content"), str), key, value, "a token")
    flags = {name: value[name] for name in ("single_word", "lstrip", "rstrip", "normalized") if name in value}
    flags["special"] = value.get("special", special)
    _expect(all(isinstance(flag, bool) for flag in flags.values()), key, value, "flags that are true or false")
    return tokenizers.AddedToken(value["content"], **flags)
