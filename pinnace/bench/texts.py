"""Real English texts of mixed length without a download: docstrings of a fixed list of standard modules."""

from __future__ import annotations

import importlib
import inspect
import random
import types
from collections.abc import Iterator
from typing import Final

SEED: Final = 20
SHORTEST: Final = 40  # characters; shorter docstrings are labels, not sentences
MODULES: Final = (
    "argparse", "ast", "asyncio", "base64", "bisect", "calendar", "codecs", "collections", "concurrent.futures",
    "configparser", "contextlib", "copy", "csv", "dataclasses", "datetime", "decimal", "difflib", "email.message",
    "enum", "fractions", "functools", "gettext", "glob", "gzip", "heapq", "html", "http.client", "imaplib", "inspect",
    "io", "ipaddress", "itertools", "json", "locale", "logging", "mailbox", "math", "mimetypes", "multiprocessing.pool",
    "numbers", "operator", "optparse", "os", "pathlib", "pickle", "pickletools", "platform", "pprint", "queue",
    "random", "re", "sched", "shelve", "shlex", "shutil", "smtplib", "socket", "sqlite3", "statistics", "string",
    "subprocess", "tarfile", "tempfile", "textwrap", "threading", "tokenize", "trace", "turtle", "types", "typing",
    "unittest.case", "unittest.mock", "urllib.parse", "urllib.request", "uuid", "wave", "weakref", "zipfile",
)  # fmt: skip


def texts(count: int) -> list[str]:
    """Give docstrings, the same ones on every machine with the same version of Python.

    Args:
        count: how many; their lengths run from one line to several pages, in the proportions that the library has.

    Raises:
        ValueError: the modules do not hold so many.
    """
    found = sorted({text for name in MODULES for text in _docstrings(importlib.import_module(name))})
    if len(found) < count:
        raise ValueError(f"{count} texts are asked for, and the modules hold {len(found)}")
    return random.Random(SEED).sample(found, count)  # noqa: S311 - a choice of texts, no secret


def _docstrings(module: types.ModuleType) -> Iterator[str]:
    """Docstrings of a module, of what it defines, and of its classes' methods."""
    things = [module]
    for value in vars(module).values():
        if getattr(value, "__module__", None) == module.__name__ and (inspect.isclass(value) or callable(value)):
            things.append(value)
            if inspect.isclass(value):
                things.extend(member for member in vars(value).values() if callable(member))
    for thing in things:
        text = getattr(thing, "__doc__", None)
        if isinstance(text, str) and len(text.strip()) >= SHORTEST:
            yield inspect.cleandoc(text)
