"""Which function rounds a weight into blocks: the rounding that a recipe names, with what it needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from pinnace.arrays import Array
from pinnace.quantize.rounding.gptq import Hessian, compensated_blocks
from pinnace.quantize.rounding.half_quadratic import half_quadratic_blocks
from pinnace.quantize.rounding.nearest import Blocks, block_codes

Rounding = Callable[[Array], Blocks]


class BlockSettings(Protocol):
    """The part of a recipe that says how blocks are made."""

    @property
    def block(self) -> int: ...
    @property
    def rounding(self) -> str: ...


def rounding_for(settings: BlockSettings, bits: int, hessian: Hessian | None) -> Rounding:
    """Return the function that makes blocks of a weight ``(N, K)``.

    Args:
        settings: block size, and the rounding's name.
        bits: 4 or 8.
        hessian: of the weight's inputs, for ``compensated``; without one (an embedding table) the nearest codes with
            the best scales are taken.
    """
    if settings.rounding == "compensated" and hessian is not None:
        return lambda w: compensated_blocks(w, hessian, bits, settings.block)
    if settings.rounding == "half-quadratic":
        return lambda w: half_quadratic_blocks(w, bits, settings.block)
    search = settings.rounding != "nearest"
    return lambda w: block_codes(w, bits, settings.block, search=search)
