"""xIELU as a layer: an activation with two trained numbers, as Apertus's checkpoints keep them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pinnace.models import ops
from pinnace.models.checkpoints.names import XIELU_START


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
        for name, start in XIELU_START.items():
            getattr(self, name).fill_(start)

    def forward(self, x: Tensor) -> Tensor:
        return ops.xielu(x, self.alpha_p, self.alpha_n, self.beta, self.eps)
