"""From a checkpoint to a verified bundle: trace, lower, bind weights, validate, publish."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pinnace.export.builder import Exported

_PACKAGES = ("torch", "onnx", "onnx_ir", "onnxscript")


def export(model: str, **options: Any) -> Exported:
    """Export a checkpoint into a verified bundle; see `pinnace.export.builder.export` for the arguments.

    Raises:
        MissingExtra: the packages of the ``export`` extra are not installed.
    """
    from pinnace.errors import MissingExtra

    try:
        from pinnace.export import builder
    except ImportError as error:
        if (error.name or "").partition(".")[0] in _PACKAGES:
            raise MissingExtra("export", "exporting") from None
        raise
    return builder.export(model, **options)
