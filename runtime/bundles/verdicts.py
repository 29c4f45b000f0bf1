"""Remember, in the user's cache folder, which bundles were found whole, so that the next start need not read them."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pinnace.errors import MachineError
from pinnace.replacing import replacing
from pinnace.runtime.bundles.integrity import Identity

# Raised whenever the checks grow: older verdicts then count no more.
CHECKS_VERSION: Final = 1
# A clock tick: a file changed within one keeps its times, so files this fresh are checked again next time.
FRESH_NS: Final = 20_000_000


def cache_folder() -> Path | None:
    """Return ``XDG_CACHE_HOME/pinnace`` or ``~/.cache/pinnace``, for what may be lost; None where there is no home."""
    base = os.environ.get("XDG_CACHE_HOME")
    if base and Path(base).is_absolute():
        return Path(base) / "pinnace"
    try:
        home = Path.home()
    except RuntimeError:
        return None
    return home / ".cache" / "pinnace" if home.is_absolute() else None


def is_remembered(folder: Path, identities: Mapping[str, Identity]) -> bool:
    """Whether this folder with exactly these files was found whole before. Never an error."""
    place = _place(folder)
    if place is None:
        return False
    try:
        found = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return bool(found == _record(folder, identities))


def remember(folder: Path, identities: Mapping[str, Identity], started_ns: int) -> None:
    """Note that this folder with these files was found whole. Where nothing can be written, nothing happens.

    Args:
        folder: the bundle.
        identities: its files, as they were before the check.
        started_ns: wall clock in ns at the beginning of the check.
    """
    place = _place(folder)
    newest = max((max(i.mtime, i.ctime) for i in identities.values()), default=0)
    if place is None or newest > started_ns - FRESH_NS:
        return
    write_private(place, json.dumps(_record(folder, identities)))


def write_private(place: Path, text: str) -> None:
    """Write a file that only this user can read, whole or not at all; where that cannot be, nothing happens."""
    with contextlib.suppress(OSError, MachineError):
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with replacing(place, private=True, durable=False) as file:
            file.write(text.encode())


def now_ns() -> int:
    """Return the wall clock in ns, the clock that file times come from."""
    return time.time_ns()


def _place(folder: Path) -> Path | None:
    """The file for this folder; the folder's path stands in it, for another one may get the same number later."""
    base = cache_folder()
    try:
        facts = folder.stat()
    except OSError:
        return None
    return None if base is None else base / "verdicts" / f"{facts.st_dev:x}-{facts.st_ino:x}.json"


def _record(folder: Path, identities: Mapping[str, Identity]) -> dict[str, object]:
    return {
        "checks": CHECKS_VERSION,
        "folder": str(folder.resolve()),
        "files": {name: list(identity) for name, identity in sorted(identities.items())},
    }
