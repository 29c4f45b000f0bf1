"""Configuration files as JSON: bounded when read, whole or absent when written."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, Final

from pinnace.errors import CheckpointError, ConfigError

LARGEST_FILE: Final = 4 << 20  # bytes; the largest published label maps are well below
DEEPEST_NESTING: Final = 32
FLOAT_KEY: Final = "__float__"
NOT_FINITE: Final = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}


def read_json_object(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read one JSON object from a file.

    Args:
        path: a regular file of at most 4 MiB in UTF-8.

    Raises:
        CheckpointError: the file is missing or cannot be read.
        ConfigError: too large, not JSON, not an object, or nested too deeply; the text names the file.
    """
    file = Path(path)
    if not file.is_file():
        raise CheckpointError(f"{file} is not a file; give a folder that holds config.json, or a JSON file")
    try:
        with file.open("rb") as stream:
            data = stream.read(LARGEST_FILE + 1)
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror or error}") from None
    if len(data) > LARGEST_FILE:
        raise ConfigError(f"{file} is larger than {LARGEST_FILE} bytes, which no configuration is")
    try:
        parsed = json.loads(data.decode("utf-8"))
    except RecursionError:
        raise ConfigError(f"{file} is nested deeper than {DEEPEST_NESTING} levels") from None
    except ValueError as error:
        raise ConfigError(f"{file} is not JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise ConfigError(f"{file} holds a {type(parsed).__name__}, expected a JSON object")
    if _is_deeper_than(parsed, DEEPEST_NESTING):
        raise ConfigError(f"{file} is nested deeper than {DEEPEST_NESTING} levels")
    decoded: dict[str, Any] = decode_floats(parsed)
    return decoded


def to_json_text(values: dict[str, Any]) -> str:
    """Return sorted, indented JSON with a closing newline; infinity and NaN as ``{"__float__": "Infinity"}``.

    Raises:
        ConfigError: a value that JSON cannot hold.
    """
    try:
        return json.dumps(encode_floats(values), indent=2, sort_keys=True) + "\n"
    except TypeError as error:
        raise ConfigError(f"the configuration cannot be written as JSON: {error}") from None


def encode_floats(value: Any) -> Any:
    """Replace infinity and NaN, which JSON has no word for, by tagged objects."""
    if isinstance(value, float) and not math.isfinite(value):
        return {FLOAT_KEY: next(word for word, number in NOT_FINITE.items() if repr(number) == repr(value))}
    if isinstance(value, dict):
        return {key: encode_floats(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode_floats(item) for item in value]
    return value


def decode_floats(value: Any) -> Any:
    """Undo ``encode_floats``."""
    if isinstance(value, dict):
        if set(value) == {FLOAT_KEY} and isinstance(value[FLOAT_KEY], str):
            return NOT_FINITE.get(value[FLOAT_KEY], value)
        return {key: decode_floats(item) for key, item in value.items()}
    if isinstance(value, list):
        return [decode_floats(item) for item in value]
    return value


def _is_deeper_than(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit + 1):
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return False
    return True
