"""Copy a checkpoint's tokenizer and sentence-transformers files: an allow-list, bounded in size, without paths."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from pinnace.errors import CheckpointError
from pinnace.runtime.tokenization.tokenizer import load_tokenizer
from pinnace.spec import Pooling

MAX_BYTES: Final = 64 * 1024 * 1024
_SENTENCE: Final = "sentence_bert_config.json"
_PLAIN: Final = (
    "tokenizer.json",
    "vocab.txt",
    "added_tokens.json",
    "chat_template.jinja",
    "config_sentence_transformers.json",
    _SENTENCE,
)
_FILTERED: Final = ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json")
_POOLING: Final = "1_Pooling/config.json"
_MODULES: Final = "modules.json"
_TEMPLATES: Final = "additional_chat_templates"
_TEMPLATE: Final = re.compile(r"[\w-]+\.jinja", re.ASCII)
# Fields that name files or code of the machine that saved the tokenizer.
_LEFT_OUT: Final = frozenset(
    {
        "auto_map",
        "name_or_path",
        "_name_or_path",
        "special_tokens_map_file",
        "tokenizer_file",
        "vocab_file",
        "custom_pipelines",
    }
)


def copy_settings(source: Path, target: Path) -> tuple[str, ...]:
    """Copy what the runtime needs besides weights; returns the names copied.

    Raises:
        CheckpointError: a file is too large, cannot be read or is not what its name says.
    """
    copied = []
    for name in _names(source):
        path = source / name
        if not path.is_file():
            continue
        if name in _FILTERED:
            kept = {key: value for key, value in _object(path).items() if key not in _LEFT_OUT}
            content = _json_text(kept).encode()
        else:
            content = _content(path)
        (target / name).parent.mkdir(exist_ok=True)
        (target / name).write_bytes(content)
        copied.append(name)
    return tuple(copied)


def _names(source: Path) -> Iterator[str]:
    """Names that may be copied: those of the list, and the named chat templates that the folder has."""
    yield from (*_PLAIN, *_FILTERED, _MODULES, _POOLING)
    if (source / _TEMPLATES).is_dir():
        names = sorted(path.name for path in (source / _TEMPLATES).iterdir())
        yield from (f"{_TEMPLATES}/{name}" for name in names if _TEMPLATE.fullmatch(name))


def has_tokenizer(folder: Path) -> bool:
    """Whether the folder holds a tokenizer."""
    return (folder / "tokenizer.json").is_file() or (folder / "vocab.txt").is_file()


def complete_tokenizer(folder: Path) -> dict[str, int]:
    """Load a bundle's tokenizer, write its ``tokenizer.json`` where there is only a vocabulary; give special tokens.

    Returns:
        name such as ``cls_token`` -> id.

    Raises:
        BundleError, CheckpointError: files that make no tokenizer.
    """
    try:
        tokenizer = load_tokenizer(folder)
        if not (folder / "tokenizer.json").is_file():
            tokenizer.save_pretrained(folder)
    except UnicodeEncodeError as error:
        half = error.object[error.start : error.end]
        raise CheckpointError(f"the tokenizer's files hold half of a surrogate pair, {half!r}: no character") from None
    _state_sentence_length(folder)
    named = sorted(tokenizer.special_tokens_map.items())
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in named}


def _state_sentence_length(folder: Path) -> None:
    """Say in the tokenizer's settings to how many tokens a sentence-transformers model cuts its texts.

    fastembed looks only there, and would cut at the longest row that the model can take: other vectors for long texts.
    """
    if not (folder / _MODULES).is_file() or not (folder / _SENTENCE).is_file():
        return
    length = _object(folder / _SENTENCE).get("max_seq_length")
    if type(length) is not int or length < 1:
        return
    path = folder / "tokenizer_config.json"
    settings = _object(path) if path.is_file() else {}
    path.write_text(_json_text({**settings, "max_length": length}), encoding="utf-8")


def read_pooling(folder: Path) -> Pooling | None:
    """How a sentence-transformers folder makes a vector of a text; None for other folders.

    Raises:
        CheckpointError: it pools in a way, or has a module, that Pinnace does not have.
    """
    path = folder / _MODULES
    if not path.is_file():
        return None
    modules = _parsed(path)
    if not isinstance(modules, list) or not all(isinstance(m, dict) for m in modules):
        raise CheckpointError(f"{path} must be a list of modules")
    kinds = [str(m.get("type", "")).rpartition(".")[2] for m in modules]
    unknown = sorted(set(kinds) - {"Transformer", "Pooling", "Normalize"})
    if unknown:
        raise CheckpointError(f"{path} has the module {unknown[0]}; Pinnace has Transformer, Pooling and Normalize")
    facts = _object(folder / _POOLING) if (folder / _POOLING).is_file() else {"pooling_mode_mean_tokens": True}
    mode = facts.get("pooling_mode")
    modes = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max"}
    chosen = [mode] if isinstance(mode, str) else [m for key, m in modes.items() if facts.get(key)]
    others = [k for k, v in facts.items() if k.startswith("pooling_mode_") and v is True and k not in modes]
    if len(chosen) != 1 or chosen[0] not in modes.values() or others:
        raise CheckpointError(f"{_POOLING} asks for {others or chosen}; Pinnace pools by mean, cls or max, one of them")
    return Pooling(str(chosen[0]), "Normalize" in kinds)


def _object(path: Path) -> dict[str, Any]:
    facts = _parsed(path)
    if not isinstance(facts, dict):
        raise CheckpointError(f"{path} must hold a JSON object")
    return facts


def _json_text(facts: dict[str, Any]) -> str:
    # ASCII alone: half of a surrogate pair, which a file may hold as an escape, has no other form.
    return json.dumps(facts, indent=2) + "\n"


def _content(path: Path) -> bytes:
    """Read a whole file of bounded size. Raises CheckpointError."""
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise CheckpointError(f"{path} has {size} bytes, more than the {MAX_BYTES} allowed")
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None


def _parsed(path: Path) -> Any:
    try:
        return json.loads(_content(path).decode())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from None
