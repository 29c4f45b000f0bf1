"""Outputs with NaN or infinity are an error, never an answer."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pinnace.arrays import Array
from pinnace.errors import NumericalError


def check_finite(outputs: Mapping[str, Array], path: object) -> None:
    """Check that every number of every float output is finite.

    Args:
        outputs: output name to array.
        path: the bundle's folder, for the message.

    Raises:
        NumericalError: an output holds NaN or infinity; the text says how many, and the first row that does.
    """
    for name, array in outputs.items():
        if array.dtype.kind != "f":
            continue
        with np.errstate(all="ignore"):
            # One pass without a temporary array; a sum that overflows is looked at closely.
            total = float(array.sum(dtype=np.float32 if array.dtype.itemsize < 4 else None))
        if np.isfinite(total) or np.isfinite(array).all():
            continue
        nans, infinite = int(np.isnan(array).sum()), int(np.isinf(array).sum())
        row = int(np.argwhere(~np.isfinite(array))[0][0]) if array.ndim else 0
        raise NumericalError(
            f"the output {name!r} holds {nans:,} NaN and {infinite:,} infinite of {array.size:,} numbers, first in "
            f"row {row}. Check the bundle with: pinnace verify {path}"
        )
