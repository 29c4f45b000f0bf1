"""Functions that need the packages of an extra, and import them when they are called."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection
from typing import Any

from pinnace.errors import MissingExtra


def behind_extra(owner: str, home: str, extra: str, activity: str, packages: Collection[str]) -> Callable[..., Any]:
    """Return a function that calls another one, whose module is imported only then.

    Args:
        owner: the module that has it under the same name, by which it pickles.
        home: that function, as ``module:name``.
        extra: the extra that brings what the module imports.
        activity: what cannot be done without it, for the error: ``"exporting"``.
        packages: what it brings, by the names to import.
    """
    module, _, name = home.partition(":")

    def call(*arguments: Any, **options: Any) -> Any:
        try:
            found = importlib.import_module(module)
        except ImportError as error:
            if (error.name or "").partition(".")[0] in packages:
                raise MissingExtra(extra, activity) from None
            raise
        return getattr(found, name)(*arguments, **options)

    call.__module__, call.__name__, call.__qualname__ = owner, name, name
    call.__doc__ = f"See `{module}.{name}` for arguments and errors. Raises MissingExtra without the extra {extra}."
    return call
