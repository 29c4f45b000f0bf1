"""Smaller and faster variants of a bundle, judged on data and timed on the machine at hand.

The module itself can be called: ``pinnace.quantize("bert-qa", precision="int8")``.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pinnace.quantize.report import Report

_PACKAGES = ("onnx", "onnx_ir")


def quantize(bundle: str | Path, **options: Any) -> Report:
    """Quantize a bundle; see `pinnace.quantize.builder.quantize` for the arguments.

    Raises:
        MissingExtra: the packages of the ``export`` extra are not installed.
    """
    from pinnace.errors import MissingExtra

    try:
        from pinnace.quantize import builder
    except ImportError as error:
        if (error.name or "").partition(".")[0] in _PACKAGES:
            raise MissingExtra("export", "quantizing") from None
        raise
    return builder.quantize(bundle, **options)


class QuantizeModule(types.ModuleType):
    """This module's type: a module that quantizes when it is called, so that its name serves as the command's."""

    def __call__(self, bundle: str | Path, **options: Any) -> Report:
        """Quantize a bundle; see `pinnace.quantize.builder.quantize`."""
        return quantize(bundle, **options)


sys.modules[__name__].__class__ = QuantizeModule
