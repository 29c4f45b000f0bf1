"""Smaller and faster variants of a bundle, judged on data and timed on the machine at hand.

The module itself can be called: ``pinnace.quantize("bert-qa", precision="int8")``.
"""

from __future__ import annotations

import sys
import types
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # type checkers and editors see every argument
    from pinnace.quantize.builder import quantize as quantize
else:
    from pinnace.extras import behind_extra

    quantize = behind_extra(__name__, "pinnace.quantize.builder:quantize", "export", "quantizing", ("onnx", "onnx_ir"))


class QuantizeModule(types.ModuleType):
    """This module's type: a module that quantizes when it is called, so that its name serves as the command's."""

    __call__ = staticmethod(quantize)


sys.modules[__name__].__class__ = QuantizeModule
