"""Frozen dataclasses from parsed JSON: every field is there, none is unknown, each has its type."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any, TypeVar

from pinnace.errors import PinnaceError

T = TypeVar("T")


def build(kind: type[T], data: Any, where: str, error: type[PinnaceError]) -> T:
    """Turn parsed JSON into a dataclass of strings, numbers, tuples, string-keyed dicts and further dataclasses.

    Args:
        kind: the dataclass.
        data: what `json.loads` gave.
        where: what the data is called in messages, such as a file's name.
        error: the class of what is raised.

    Raises:
        PinnaceError: of the class ``error``: a missing or unknown field, or a wrong type, with its place.
    """
    made: T = _Builder(error).build(kind, data, where)
    return made


@dataclasses.dataclass(frozen=True)
class _Builder:
    error: type[PinnaceError]

    def build(self, kind: Any, data: Any, where: str) -> Any:
        """Turn ``data`` into ``kind``, a dataclass or a type built of the few that records use."""
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            return self._dataclass(kind, data, where)
        if origin is tuple:
            if not isinstance(data, list):
                raise self.error(f"{where} must be a list, got {type(data).__name__}")
            return tuple(self.build(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(data))
        if origin is dict:
            if not isinstance(data, dict):
                raise self.error(f"{where} must be an object, got {type(data).__name__}")
            return {key: self.build(arguments[1], item, f"{where}.{key}") for key, item in data.items()}
        if origin in (types.UnionType, typing.Union):
            if data is None and type(None) in arguments:
                return None
            plain = [a for a in arguments if a in (int, str)]
            if plain and type(data) in plain:
                return data
            return self.build(arguments[0], data, where)
        if kind is float and type(data) is int:  # 1.0 may be written as 1
            return float(data)
        if type(data) is not kind:
            raise self.error(f"{where} must be {kind.__name__}, got {type(data).__name__}")
        return data

    def _dataclass(self, kind: type[Any], data: Any, where: str) -> Any:
        if not isinstance(data, dict):
            raise self.error(f"{where} must be an object, got {type(data).__name__}")
        hints = typing.get_type_hints(kind)
        fields = {f.name: f for f in dataclasses.fields(kind)}
        if unknown := sorted(set(data) - set(fields)):
            raise self.error(f"{where} has unknown fields: {', '.join(unknown)}")
        required = {n for n, f in fields.items() if f.default is f.default_factory is dataclasses.MISSING}
        if missing := sorted(required - set(data)):
            raise self.error(f"{where} lacks fields: {', '.join(missing)}")
        return kind(**{name: self.build(hints[name], value, f"{where}.{name}") for name, value in data.items()})
