"""Remember, in the user's cache folder, how fast variants were measured to be on this machine.

Times belong to a machine and a moment, so no bundle holds them: the same command gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Final

from pinnace.runtime.bundles.verdicts import cache_folder, write_private
from pinnace.runtime.machine.cpu import Cpu
from pinnace.spec import Manifest

_FORMAT: Final = 1


def remember(manifest: Manifest, precision: str, cpu: Cpu, speedup: float) -> None:
    """Note how many times as fast as fp32 a variant is here. Where nothing can be written, nothing happens.

    Args:
        manifest: of the bundle as it was published.
        precision: the variant.
        cpu: the processor.
        speedup: fp32's time divided by the variant's.
    """
    if (place := _place(manifest, precision, cpu)) is not None:
        write_private(place, json.dumps({"format": _FORMAT, "speedup": speedup}))


def recall(manifest: Manifest, precision: str, cpu: Cpu) -> float | None:
    """Return what was measured of exactly these files on this processor; None where nothing was. Never an error."""
    place = _place(manifest, precision, cpu)
    if place is None:
        return None
    try:
        found = json.loads(place.read_text(encoding="utf-8"))
        speedup = float(found["speedup"]) if found["format"] == _FORMAT else math.nan
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return None
    return speedup if math.isfinite(speedup) and speedup > 0 else None


def _place(manifest: Manifest, precision: str, cpu: Cpu) -> Path | None:
    base = cache_folder()
    if base is None:
        return None
    variant = manifest.variants[precision]
    facts = [manifest.files[name].sha256 for name in (variant.graph, *variant.weights)]
    key = hashlib.sha256(json.dumps([facts, cpu.to_dict()]).encode()).hexdigest()[:32]
    return base / "speeds" / f"{key}.json"
