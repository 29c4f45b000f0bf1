"""What an interrupted quantization had found out, kept in the user's cache folder, so that the next run goes on there.

Kept is what takes long: judged candidates, their times, effects of single weights. Calibration is done again.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from pinnace.errors import CheckFailed, PinnaceError
from pinnace.runtime.bundles.bundle import Bundle
from pinnace.runtime.bundles.verdicts import cache_folder, write_private
from pinnace.runtime.engine.ort import CPU_PACKAGE, GPU_PACKAGE
from pinnace.runtime.machine.cpu import Cpu
from pinnace.spec import MANIFEST_NAME

T = TypeVar("T")

_KEEP_SECONDS: Final = 30 * 24 * 3600  # what nobody came back for is removed
_PACKAGES: Final = ("numpy", CPU_PACKAGE, GPU_PACKAGE, "onnx-ir", "tokenizers")


class Kept:
    """Results by what they are results of.

    Args:
        place: the file; None keeps nothing.
    """

    def __init__(self, place: Path | None = None) -> None:
        self._place = place
        self._found = {} if place is None else _read(place)

    def __len__(self) -> int:
        """How many results there are."""
        return len(self._found)

    def recall(self, about: Any, read: Callable[[Any], T]) -> T | None:
        """Return a result, or None where there is none that can be read.

        Args:
            about: what it is a result of, plain data.
            read: from plain data to the result.
        """
        if (key := _digest(about)) not in self._found:
            return None
        try:
            return read(self._found[key])
        except (KeyError, TypeError, ValueError, AttributeError, PinnaceError):
            return None  # somebody else's or damaged: found out again

    def note(self, about: Any, result: Any) -> None:
        """Keep a result, plain data. Where nothing can be written, it is kept for this process alone."""
        self._found[_digest(about)] = json.loads(json.dumps(result))
        if self._place is not None:
            write_private(self._place, json.dumps(self._found))

    def forget(self) -> None:
        """Remove the file: the quantization has come to its end."""
        if self._place is not None:
            with contextlib.suppress(OSError):
                self._place.unlink()


@contextlib.contextmanager
def resuming(source: Bundle, data: Path | None, settings: Mapping[str, Any], cpu: Cpu) -> Iterator[Kept]:
    """Give what a run of the same quantization kept; it is forgotten when the block ends or a gate was missed.

    Args:
        source: the bundle.
        data: file of examples; None for the package's own.
        settings: what was asked for, plain data.
        cpu: the processor.
    """
    base = cache_folder()
    if base is not None:
        _clean_up(base / "quantize")
    manifest = (source.path / MANIFEST_NAME).read_bytes()
    facts = {
        "bundle": hashlib.sha256(manifest).hexdigest(),
        "data": "" if data is None else hashlib.sha256(data.read_bytes()).hexdigest(),
        "settings": dict(settings),
        "cpu": cpu.to_dict(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES if _installed(name)},
        # Another quantizer finds other results, and its version may be the same while it is worked on.
        "code": [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(Path(__file__).parent.rglob("*.py"))],
    }
    kept = Kept(None if base is None else base / "quantize" / f"{_digest(facts)}.json")
    try:
        yield kept
    except CheckFailed:
        kept.forget()
        raise
    kept.forget()


def _read(place: Path) -> dict[str, Any]:
    try:
        found = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _clean_up(folder: Path) -> None:
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if time.time() - path.stat().st_mtime > _KEEP_SECONDS:
                path.unlink()


def _digest(about: Any) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
