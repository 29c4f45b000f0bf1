"""xIELU as a layer: an activation with two trained numbers, as Apertus's checkpoints keep them."""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor, nn

from pinnace.models import ops

# Where training starts: slope 0.5 at 0 and curvature 0.8 on both sides.
_START: Final = {"alpha_p": math.log(math.expm1(0.8)), "alpha_n": math.log(math.expm1(0.3)), "beta": 0.5, "eps": -1e-6}


class XIELU(nn.Module):
    """xIELU: (..., C) -> (..., C). ``alpha_p`` and ``alpha_n`` are stored before softplus; see `ops.xielu`."""

    def __init__(self) -> None:
        super().__init__()
        self.alpha_p = nn.Parameter(torch.empty(1))
        self.alpha_n = nn.Parameter(torch.empty(1))
        self.beta = nn.Buffer(torch.empty(()))
        self.eps = nn.Buffer(torch.empty(()))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start as published."""
        for name, start in _START.items():
            getattr(self, name).fill_(start)

    def forward(self, x: Tensor) -> Tensor:
        return ops.xielu(x, self.alpha_p, self.alpha_n, self.beta, self.eps)
