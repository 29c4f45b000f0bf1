"""What calibration found, and what follows from it: ranges, bias corrections and Hessians, each worked out once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from pinnace.arrays import Array
from pinnace.quantize.calibration import Activations
from pinnace.quantize.int8 import stored_weight, weight_rows
from pinnace.quantize.projections import Group
from pinnace.quantize.ranges import (
    Range,
    choose_range,
    joined,
    plain_tokens,
    rounded_fixed,
    rounded_tokens,
    rounded_weight,
)
from pinnace.quantize.rounding.gptq import Hessian
from pinnace.quantize.rounding.nearest import row_chunks
from pinnace.quantize.thresholds import fixed_range

LEAST_ROWS: int = 256  # fewer rows say little of a mean


@dataclasses.dataclass
class Observed:
    """Activations by group, empty where nothing was calibrated, and nodes too large for fp16, None until asked for."""

    activations: Mapping[str, Activations]
    islands: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        self._ranges: dict[tuple[str, bool, bool, bool], Range] = {}

    def range_of(self, group: Group, *, per_token: bool, reduced: bool, smoothing: bool) -> Range:
        """How a group's activations are quantized; without calibration, one scale for each token and no smoothing."""
        key = (group.name, per_token, reduced, smoothing)
        if key not in self._ranges:
            seen = self.activations.get(group.name)
            if seen is None:
                assert per_token and not smoothing  # recipes that need calibration say so
                self._ranges[key] = plain_tokens()
            else:
                weight = joined([stored_weight(member) for member in group.members])
                self._ranges[key] = choose_range(
                    seen, weight, per_token=per_token, reduced=reduced, smoothing=smoothing
                )
        return self._ranges[key]

    def tensor_range(self, group: Group, method: str, *, signed: bool) -> Range:
        """One scale for all of a group's activations, by a method of calibration; symmetric around zero if signed."""
        return fixed_range(self.activations[group.name], method, signed=signed)

    def corrections(self, group: Group, how: Range, *, reduced: bool) -> dict[str, Array]:
        """Projection -> what its bias needs so that the mean of the product over the sample is fp32's.

        A fixed scale cuts off rare large numbers, always the same way; that is what this gives back. Projections
        without a bias are left without one where the scale is the token's own.
        """
        seen = self.activations.get(group.name)
        if seen is None or len(seen.sample) < LEAST_ROWS:
            return {}
        x = seen.sample if how.smooth is None else seen.sample / how.smooth
        codes = rounded_tokens(x, how.zero) if how.per_token else rounded_fixed(x, how.scale, how.zero)
        before, after = seen.sample.mean(0, dtype=np.float64), codes.mean(0, dtype=np.float64)
        found: dict[str, Array] = {}
        for member in group.members:
            if member.bias is None and how.per_token:
                continue
            weight, found[member.name] = weight_rows(member), np.empty(member.outputs, np.float32)
            for rows in row_chunks(weight.shape):
                part = np.asarray(weight[rows], np.float32)
                rounded = rounded_weight(part if how.smooth is None else part * how.smooth, reduced)
                found[member.name][rows] = part @ before - rounded @ after
        return found

    def hessian_of(self, group: Group) -> Hessian:
        """The group's Hessian, from the whole of the calibration data."""
        hessian = self.activations[group.name].hessian
        assert hessian is not None  # asked for when the graph was observed
        return hessian
