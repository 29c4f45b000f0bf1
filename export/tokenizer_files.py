"""Copy a checkpoint's tokenizer and sentence-transformers files: an allow-list, bounded in size, without paths."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from pinnace.errors import BundleError, CheckpointError
from pinnace.models.checkpoints.hub import check_pointer
from pinnace.runtime.pipelines.sentence_settings import PROMPTS_FILE, TEXTS_FILE, SentenceSettings
from pinnace.runtime.tokenization.tokenizer import load_tokenizer
from pinnace.spec import Pooling

MAX_BYTES: Final = 64 * 1024 * 1024
_PLAIN: Final = (
    "tokenizer.json",
    "vocab.txt",
    "added_tokens.json",
    "chat_template.jinja",
    PROMPTS_FILE,
    TEXTS_FILE,
)
_FILTERED: Final = ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json")
_MODULES: Final = "modules.json"
# A module's folder in the checkpoint: without a dot it is not above it, and has no name that the bundle gives a file.
# Deeper ones no bundle may have.
_MODULE_FOLDER: Final = re.compile(r"[\w-]{1,64}", re.ASCII)
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
            if name == TEXTS_FILE:
                _object(path)  # refused by its own name, not by the copy's
            content = _content(path)
        (target / name).parent.mkdir(exist_ok=True)
        (target / name).write_bytes(content)
        copied.append(name)
    return tuple(copied)


def _names(source: Path) -> Iterator[str]:
    """Names that may be copied: those of the list, and the pooling and the named chat templates that the folder has."""
    yield from (*_PLAIN, *_FILTERED, _MODULES)
    for module in _modules(source):
        if _kind(module) == "Pooling" and (place := _folder_of(module)):
            yield f"{place}/config.json"
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
    if not (folder / _MODULES).is_file() or not (folder / TEXTS_FILE).is_file():
        return
    length = _object(folder / TEXTS_FILE).get("max_seq_length")
    if type(length) is not int or length < 1:
        return
    path = folder / "tokenizer_config.json"
    settings = _object(path) if path.is_file() else {}
    path.write_text(_json_text({**settings, "max_length": length}), encoding="utf-8")


def read_pooling(folder: Path) -> Pooling | None:
    """How a sentence-transformers folder makes a vector of a text; None for other folders.

    Raises:
        CheckpointError: it pools in a way, or has a module, that Pinnace does not have; or it does not say how.
    """
    path = folder / _MODULES
    if not path.is_file():
        return None
    modules = _modules(folder)
    kinds = [_kind(module) for module in modules]
    unknown = sorted(set(kinds) - {"Transformer", "Pooling", "Normalize"})
    if unknown:
        raise CheckpointError(f"{path} has the module {unknown[0]}; Pinnace has Transformer, Pooling and Normalize")
    _check_texts(folder)
    if "Pooling" not in kinds:
        _warn(f"{path} has no Pooling module, so the bundle gives vectors of tokens; pooling= makes one of each text")
        return None
    if kinds.count("Pooling") > 1:
        raise CheckpointError(f"{path} has {kinds.count('Pooling')} Pooling modules; Pinnace pools once")
    mode, include_prompt = _pooling_facts(folder, modules[kinds.index("Pooling")])
    return Pooling(mode, "Normalize" in kinds, include_prompt)


def _pooling_facts(folder: Path, module: dict[str, Any]) -> tuple[str, bool]:
    """How a module pools, and whether the tokens of a prompt count."""
    place = _folder_of(module)
    if place is None:
        raise CheckpointError(
            f"{folder / _MODULES}: the path of Pooling is {module.get('path')!r}, expected the name of a folder of "
            "the checkpoint, in letters, digits, _ and -, such as '1_Pooling'"
        )
    path = folder / place / "config.json"
    if not path.is_file():
        raise CheckpointError(
            f"{folder / _MODULES} has a Pooling module, and {place}/config.json, which says how it pools, is not in "
            "the folder; download the whole repository and give its folder"
        )
    facts = _object(path)
    mode = facts.get("pooling_mode")  # a word, or several in a list
    modes = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max"}
    said = mode if isinstance(mode, list) else [mode] if isinstance(mode, str) else None
    chosen = [m for key, m in modes.items() if facts.get(key)] if said is None else said
    others = [k for k, v in facts.items() if k.startswith("pooling_mode_") and v is True and k not in modes]
    if len(chosen) != 1 or chosen[0] not in modes.values() or others:
        raise CheckpointError(
            f"{place}/config.json asks for {others or chosen}; Pinnace pools by mean, cls or max, one of them"
        )
    include_prompt = facts.get("include_prompt", True)
    if not isinstance(include_prompt, bool):
        raise CheckpointError(f"{path}: include_prompt is {include_prompt!r}, expected true or false")
    return str(chosen[0]), include_prompt


def _check_texts(folder: Path) -> None:
    """Refuse what the runtime, which applies these settings to texts, would refuse."""
    read = (_object(path) if path.is_file() else {} for path in (folder / TEXTS_FILE, folder / PROMPTS_FILE))
    try:
        SentenceSettings.parse(folder, *read)
    except BundleError as error:
        raise CheckpointError(str(error)) from None


def _warn(text: str) -> None:
    warnings.warn(text, UserWarning, stacklevel=4)


def _modules(folder: Path) -> list[dict[str, Any]]:
    """The modules of a sentence-transformers folder; none for other folders. Raises CheckpointError."""
    path = folder / _MODULES
    modules = _parsed(path) if path.is_file() else []
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise CheckpointError(f"{path} must be a list of modules")
    return modules


def _kind(module: dict[str, Any]) -> str:
    return str(module.get("type", "")).rpartition(".")[2]


def _folder_of(module: dict[str, Any]) -> str | None:
    """Where a module's settings lie; None where that is no plain folder inside the checkpoint."""
    path = module.get("path")
    return path if isinstance(path, str) and _MODULE_FOLDER.fullmatch(path) else None


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
        check_pointer(path)
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None


def _parsed(path: Path) -> Any:
    try:
        return json.loads(_content(path).decode())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from None
