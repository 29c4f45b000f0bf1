"""Files that appear whole: written beside their place, and moved there when they are complete and on the disk."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from pinnace.errors import MachineError


@contextlib.contextmanager
def replacing(path: Path, *, private: bool = False, durable: bool = True) -> Iterator[IO[bytes]]:
    """Give a file that takes the place of ``path`` when the block ends without an error: readers see old or new.

    Args:
        path: of the file, in a folder that is there.
        private: only this user may read it; otherwise the umask decides.
        durable: wait until it is on the disk, so that a crash of the machine leaves the old or the new one, too.

    Raises:
        MachineError: the folder is not there or cannot be written, or the disk is full; nothing was changed.
    """
    # Not tempfile.mkstemp: its files are private, and the umask can only be asked by changing it for all threads.
    scratch = path.parent / f".new-{os.urandom(8).hex()}"
    try:
        handle = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666)
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        scratch.replace(path)
    except OSError as error:
        raise MachineError(f"cannot write {path}: {error.strerror or error}; nothing was changed") from None
    finally:
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)
