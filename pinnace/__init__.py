"""Pinnace carries BERT and Apertus checkpoints to machines without PyTorch: export, verify, run.

Nothing is imported before it is used: ``import pinnace`` costs next to nothing, and serving never meets PyTorch.
"""

from __future__ import annotations

import importlib
import types
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pinnace import errors, models, runtime
    from pinnace.errors import PinnaceError
    from pinnace.export import ExportModule
    from pinnace.quantize import QuantizeModule
    from pinnace.runtime.bundles.bundle import Bundle
    from pinnace.runtime.checks.verify import verify_bundle as verify
    from pinnace.runtime.engine.cancellation import Cancellation
    from pinnace.runtime.engine.session import Session, load
    from pinnace.runtime.engine.shared_threads import share_threads
    from pinnace.runtime.pipelines.base import Pipeline
    from pinnace.runtime.pipelines.table import pipeline

    export: ExportModule
    quantize: QuantizeModule

__version__ = "0.1.0"
__all__ = [
    "export", "load", "pipeline", "share_threads", "verify",
    "Bundle", "Cancellation", "Pipeline", "PinnaceError", "Session",
    "errors", "models", "quantize", "runtime",
]  # fmt: skip

# Public name -> where it stands, as ``module:name`` or a module. `export` is a module that can be called.
_HOMES: Final[Mapping[str, str]] = types.MappingProxyType(
    {
        "export": "pinnace.export",
        "load": "pinnace.runtime.engine.session:load",
        "pipeline": "pinnace.runtime.pipelines.table:pipeline",
        "share_threads": "pinnace.runtime.engine.shared_threads:share_threads",
        "verify": "pinnace.runtime.checks.verify:verify_bundle",
        "Bundle": "pinnace.runtime.bundles.bundle:Bundle",
        "Cancellation": "pinnace.runtime.engine.cancellation:Cancellation",
        "Pipeline": "pinnace.runtime.pipelines.base:Pipeline",
        "PinnaceError": "pinnace.errors:PinnaceError",
        "Session": "pinnace.runtime.engine.session:Session",
        "errors": "pinnace.errors",
        "models": "pinnace.models",
        "quantize": "pinnace.quantize",
        "runtime": "pinnace.runtime",
    }
)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pinnace' has no attribute {name!r}; it has: {', '.join(__all__)}")
    module, _, inside = _HOMES[name].partition(":")
    found = importlib.import_module(module)
    value = getattr(found, inside) if inside else found
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
