"""From a checkpoint to a verified bundle: trace, lower, bind weights, validate, publish.

The module itself can be called: ``pinnace.export("bert", task="qa")`` is ``pinnace.export.export("bert", task="qa")``.
"""

from __future__ import annotations

import sys
import types
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # type checkers and editors see every argument
    from pinnace.export.builder import export as export
else:
    from pinnace.extras import behind_extra

    export = behind_extra(
        __name__, "pinnace.export.builder:export", "export", "exporting", ("torch", "onnx", "onnx_ir")
    )


class ExportModule(types.ModuleType):
    """This module's type: a module that exports when it is called, so that its name serves as the command's."""

    __call__ = staticmethod(export)


sys.modules[__name__].__class__ = ExportModule
