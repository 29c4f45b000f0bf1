"""How a field of a configuration is declared and checked: the annotation is its type, a rule its limits."""

from __future__ import annotations

import copy
import dataclasses
import functools
import reprlib
import types
import typing
from collections.abc import Collection, Iterable
from typing import Any, Final

from pinnace.errors import ConfigError, nearest_word

RULE_KEY: Final = "rule"
LARGEST_SIZE: Final = 2**31 - 1

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80


@dataclasses.dataclass(frozen=True)
class Rule:
    """What a field's value must satisfy beyond its type; ``None`` is left to the type."""

    at_least: float | None = None
    at_most: float | None = None
    one_of: Collection[str] = ()

    def broken_by(self, value: Any) -> str:
        """Return what was expected where ``value`` breaks the rule, else an empty string. NaN breaks every limit."""
        if self.one_of and isinstance(value, str) and value not in self.one_of:
            return f"one of {', '.join(self.one_of)}{did_you_mean(value, self.one_of)}"
        if isinstance(value, int | float):
            low, high = self.at_least, self.at_most
            if low is not None and high is not None and not low <= value <= high:
                return f"a number from {low} to {high}"
            if low is not None and not low <= value:
                return f"at least {low}"
            if high is not None and not value <= high:
                return f"at most {high}"
        return ""


@dataclasses.dataclass(frozen=True)
class FieldFacts:
    """One declared field: the resolved type, the rule and how to make the default."""

    hint: Any
    rule: Rule
    default: Any
    factory: Any

    def make_default(self) -> Any:
        """Return a fresh default, so that two configurations never share a list or a dict."""
        return self.default if self.factory is None else self.factory()


def setting(
    default: Any, *, at_least: float | None = None, at_most: float | None = None, one_of: Collection[str] = ()
) -> Any:
    """Declare one field of a configuration in one line.

    Args:
        default: the documented default; a list, dict or nested configuration is copied for each instance.
        at_least: smallest number allowed.
        at_most: largest number allowed.
        one_of: the words allowed.

    Returns:
        A dataclass field; typed ``Any`` so that the annotation beside it decides the type.
    """
    metadata = {RULE_KEY: Rule(at_least, at_most, tuple(one_of))}
    if getattr(type(default), "__hash__", None) is None:
        return dataclasses.field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def size(default: int, *, at_least: int = 1, at_most: int = LARGEST_SIZE) -> Any:
    """Declare a count of something: a whole number that fits 31 bits."""
    return setting(default, at_least=at_least, at_most=at_most)


def probability(default: float | None) -> Any:
    """Declare a number from 0 to 1."""
    return setting(default, at_least=0, at_most=1)


def fields_of(cls: type) -> dict[str, FieldFacts]:
    """Return the declared fields of a configuration class by name, with their annotations resolved."""
    return _fields_of(cls)


@functools.cache
def _fields_of(cls: type) -> dict[str, FieldFacts]:
    hints = typing.get_type_hints(cls)
    return {
        f.name: FieldFacts(
            hint=hints[f.name],
            rule=f.metadata.get(RULE_KEY, Rule()),
            default=None if f.default is dataclasses.MISSING else f.default,
            factory=None if f.default_factory is dataclasses.MISSING else f.default_factory,
        )
        for f in dataclasses.fields(cls)
    }


def fits(value: Any, hint: Any) -> bool:
    """Whether ``value`` is of the annotated type. A bool is no int; an int is a float."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (types.UnionType, typing.Union):
        return any(fits(value, option) for option in arguments)
    if origin is typing.Literal:
        return any(type(value) is type(option) and value == option for option in arguments)
    if hint is None or hint is type(None):
        return value is None
    if hint is float:
        return type(value) in (int, float)
    if hint is int:
        return type(value) is int
    if origin in (list, tuple):
        return isinstance(value, list | tuple) and all(fits(item, arguments[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(
            fits(k, arguments[0]) and fits(v, arguments[1]) for k, v in value.items()
        )
    return isinstance(value, hint)


def describe(hint: Any) -> str:
    """Say a type in words for an error: ``int or None``, ``list of str``."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(describe(option) for option in arguments)
    if origin is typing.Literal:
        return " or ".join(repr(option) for option in arguments)
    if origin in (list, tuple):
        return f"list of {describe(arguments[0])}"
    if origin is dict:
        return f"dict of {describe(arguments[0])} to {describe(arguments[1])}"
    if hint is type(None):
        return "None"
    return str(getattr(hint, "__name__", hint))


def check(owner: str, name: str, value: Any, facts: FieldFacts) -> None:
    """Raise where ``value`` does not fit the field.

    Raises:
        ConfigError: the text names the field, what was got and what was expected.
    """
    if not fits(value, facts.hint):
        raise wrong(owner, name, value, describe(facts.hint))
    if expected := facts.rule.broken_by(value):
        raise wrong(owner, name, value, expected)


def wrong(owner: str, name: str, got: Any, expected: str) -> ConfigError:
    """Build the error for a value that does not fit."""
    return ConfigError(f"{owner}: {name} is {_short.repr(got)} ({type(got).__name__}), expected {expected}")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` where a known word is near, else an empty string."""
    near = nearest_word(word, known, 0.6)
    return f" (did you mean {near!r}?)" if near else ""
