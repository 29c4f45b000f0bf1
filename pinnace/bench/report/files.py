"""Files of results: looked at before the work, written whole or not at all behind it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from pinnace.errors import MachineError, UsageError
from pinnace.replacing import replacing


def check_places(files: Mapping[str, str | None]) -> None:
    """Check that files can be written, before the work that makes them.

    Args:
        files: flag, without dashes, -> the path that it gave, or None.

    Raises:
        UsageError: a folder in a file's place, ``-``, or a folder that is not there or cannot be written.
    """
    for flag, name in files.items():
        if name is None:
            continue
        path = Path(name)
        if name == "-" or path.is_dir():
            what = "standard output, where the result is shown" if name == "-" else "a folder"
            raise UsageError(f"--{flag} {name} is {what}; give a file")
        if not path.parent.is_dir():
            raise UsageError(f"cannot write --{flag} {name}: there is no folder {path.parent}; make it first")
        if not os.access(path if _is_special(path) else path.parent, os.W_OK):
            raise UsageError(f"cannot write --{flag} {name}: no permission; give another place")


def write_whole(path: str | Path, content: bytes | str) -> None:
    """Write a file beside its place and move it there, so that nobody sees half of it.

    A pipe or a device, which cannot be replaced, is written directly.

    Raises:
        MachineError: the folder is not there or cannot be written, or the disk is full.
    """
    path = Path(path)
    data = content.encode("utf-8") if isinstance(content, str) else content
    if _is_special(path):
        try:
            path.write_bytes(data)
        except OSError as error:
            raise MachineError(f"cannot write {path}: {error.strerror}") from None
        return
    with replacing(path) as file:
        file.write(data)


def _is_special(path: Path) -> bool:
    """Whether a path is there and is no regular file."""
    return path.exists() and not path.is_file()
