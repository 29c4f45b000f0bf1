"""Write a report's file whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from pinnace.errors import MachineError


def write_whole(path: str | Path, content: bytes | str) -> None:
    """Write a file beside its place and move it there, so that nobody sees half of it.

    Raises:
        MachineError: the folder is not there or cannot be written, or the disk is full.
    """
    path = Path(path)
    data = content.encode("utf-8") if isinstance(content, str) else content
    scratch: Path | None = None
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        scratch = Path(name)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        scratch.chmod(0o644)
        scratch.replace(path)
    except OSError as error:
        if scratch is not None:
            with contextlib.suppress(OSError):
                scratch.unlink()
        raise MachineError(f"cannot write {path}: {error.strerror}") from None
