"""Reference models in PyTorch: configuration, checkpoints, semantic operators, architectures.

Heads and configurations can be imported from here: ``from pinnace.models import AutoConfig, BertModel``. Nothing is
imported before it is asked for.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    # Not `from pinnace.models import registry`, which would look for the module's name here first.
    from pinnace.models.registry import HOMES, imported

    if name not in HOMES:
        raise AttributeError(f"module 'pinnace.models' has no attribute {name!r}; it has: {', '.join(HOMES)}")
    return imported(HOMES[name])


def __dir__() -> list[str]:
    from pinnace.models.registry import HOMES

    return sorted({*globals(), *HOMES})
