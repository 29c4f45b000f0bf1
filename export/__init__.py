"""From a checkpoint to a verified bundle: trace, lower, bind weights, validate, publish.

The module itself can be called: ``pinnace.export("bert", task="qa")`` is ``pinnace.export.export("bert", task="qa")``.
"""

from __future__ import annotations

import sys
import types
from typing import TYPE_CHECKING, Any

_PACKAGES = ("torch", "onnx", "onnx_ir")

if TYPE_CHECKING:  # type checkers and editors see every argument
    from pinnace.export.builder import export as export
else:

    def export(*arguments: Any, **options: Any) -> Any:
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
        return builder.export(*arguments, **options)


class ExportModule(types.ModuleType):
    """This module's type: a module that exports when it is called, so that its name serves as the command's."""

    __call__ = staticmethod(export)


sys.modules[__name__].__class__ = ExportModule
