"""Rotary positions: how fast each pair of a head's numbers turns, for every type of scaling.

Only ``dynamic`` depends on the input; of the others one short list of numbers is left, fixed by the configuration.

Source: Su et al. 2021 (arXiv 2104.09864); yarn: Peng et al. 2023 (arXiv 2309.00071); llama3 and dynamic:
transformers/modeling_rope_utils.py, 5.23. The arithmetic is fp32 in the same order as there: at position 60,000 a
different last bit turns a pair by a visible angle.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily


@dataclass(frozen=True)
class Frequencies:
    """The speeds of a model.

    Attributes:
        inverse: radians a position for each of the D / 2 pairs.
        scale: factor of cosine and sine.
        stretch: empty, or for ``dynamic`` its ``base`` (theta), ``factor`` and ``positions``: a row longer than
            ``positions`` has slower pairs.
    """

    inverse: tuple[float, ...]
    scale: float = 1.0
    stretch: Mapping[str, float] = field(default_factory=dict)

    def attributes(self) -> dict[str, Any]:
        """The same as plain data."""
        return {"inverse": list(self.inverse), "scale": self.scale, **self.stretch}


def frequencies(parameters: Mapping[str, Any], head_size: int, positions: int) -> Frequencies:
    """Work out the speeds.

    Args:
        parameters: checked ``rope_parameters``.
        head_size: D.
        positions: ``max_position_embeddings``.
    """
    # The numbers are needed also while a model is built without memory, for a trace.
    with unset_fake_temporarily(), torch.device("cpu"):
        plain = 1.0 / parameters["rope_theta"] ** _exponents(head_size)
        inverse, scale = _SCALINGS[parameters["rope_type"]](plain, parameters, positions)
        stretch: dict[str, float] = {}
        if parameters["rope_type"] == "dynamic":
            stretch = {
                "base": float(parameters["rope_theta"]),
                "factor": float(parameters["factor"]),
                "positions": float(positions),
            }
        return Frequencies(tuple(inverse.tolist()), scale, stretch)


def angles(position_ids: Tensor, speeds: Frequencies) -> tuple[Tensor, Tensor]:
    """Cosine and sine, fp32: (B, T) -> two of (B, T, D / 2)."""
    D = 2 * len(speeds.inverse)
    if speeds.stretch:
        base, factor, positions = (speeds.stretch[key] for key in ("base", "factor", "positions"))
        # Each row by its own length, so that no row depends on those beside it.
        longest = (position_ids.amax(1, keepdim=True) + 1).clamp(min=int(positions))  # (B, 1)
        theta = base * (factor * longest / positions - (factor - 1)) ** (D / (D - 2))
        inverse = 1.0 / theta[..., None] ** _exponents(D).to(position_ids.device)  # (B, 1, D / 2)
    else:
        inverse = torch.tensor(speeds.inverse, device=position_ids.device)
    turned = position_ids[..., None].float() * inverse
    return turned.cos() * speeds.scale, turned.sin() * speeds.scale


def _exponents(head_size: int) -> Tensor:
    return torch.arange(0, head_size, 2, dtype=torch.float32) / head_size  # (D / 2,)


def _plain(inverse: Tensor, _parameters: Mapping[str, Any], _positions: int) -> tuple[Tensor, float]:
    return inverse, 1.0


def _linear(inverse: Tensor, parameters: Mapping[str, Any], _positions: int) -> tuple[Tensor, float]:
    return inverse / parameters["factor"], 1.0


def _llama3(inverse: Tensor, parameters: Mapping[str, Any], _positions: int) -> tuple[Tensor, float]:
    """Pairs that turn often within the first training's rows stay, rare ones are slowed, between them it is blended."""
    factor, low, high = (parameters[key] for key in ("factor", "low_freq_factor", "high_freq_factor"))
    trained = parameters["original_max_position_embeddings"]
    wavelength = 2 * math.pi / inverse
    slowed = torch.where(wavelength > trained / low, inverse / factor, inverse)
    share = (trained / wavelength - low) / (high - low)
    blended = (1 - share) * slowed / factor + share * slowed
    between = ~(wavelength < trained / high) & ~(wavelength > trained / low)
    return torch.where(between, blended, slowed), 1.0


def _yarn(inverse: Tensor, parameters: Mapping[str, Any], positions: int) -> tuple[Tensor, float]:
    """As llama3, with a straight ramp over the pairs; the scores are sharpened by a factor of cosine and sine."""
    trained, theta = parameters["original_max_position_embeddings"], parameters["rope_theta"]
    factor = parameters.get("factor") or positions / trained
    pairs = len(inverse)
    speeds = theta ** _exponents(2 * pairs)

    def pair_turning(times: float) -> float:
        return 2 * pairs * math.log(trained / (times * 2 * math.pi)) / (2 * math.log(theta))

    first = pair_turning(parameters.get("beta_fast") or 32)
    last = pair_turning(parameters.get("beta_slow") or 1)
    if parameters.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * pairs - 1)
    width = last - first if last != first else 0.001
    kept = 1 - ((torch.arange(pairs, dtype=torch.float32) - first) / width).clamp(0, 1)
    return 1.0 / (factor * speeds) * (1 - kept) + inverse * kept, _yarn_scale(parameters, factor)


def _yarn_scale(parameters: Mapping[str, Any], factor: float) -> float:
    given, both = parameters.get("attention_factor"), (parameters.get("mscale"), parameters.get("mscale_all_dim"))
    if given is not None:
        return float(given)

    def sharpened(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    return sharpened(both[0]) / sharpened(both[1]) if both[0] and both[1] else sharpened(1)


_Scaling = Callable[[Tensor, Mapping[str, Any], int], tuple[Tensor, float]]
_SCALINGS: Final[Mapping[str, _Scaling]] = types.MappingProxyType(
    {"default": _plain, "dynamic": _plain, "linear": _linear, "llama3": _llama3, "yarn": _yarn}
)
