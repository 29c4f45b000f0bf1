"""Smaller and faster variants of a bundle, judged on data and timed on the machine at hand.

The module itself can be called: ``pinnace.quantize("bert-qa", precision="int8")``.
"""

from __future__ import annotations

import sys
import types
from typing import TYPE_CHECKING, Any

_PACKAGES = ("onnx", "onnx_ir")

if TYPE_CHECKING:  # type checkers and editors see every argument
    from pinnace.quantize.builder import quantize as quantize
else:

    def quantize(*arguments: Any, **options: Any) -> Any:
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
        return builder.quantize(*arguments, **options)


class QuantizeModule(types.ModuleType):
    """This module's type: a module that quantizes when it is called, so that its name serves as the command's."""

    __call__ = staticmethod(quantize)


sys.modules[__name__].__class__ = QuantizeModule
