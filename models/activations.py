"""The activation functions of published BERT configurations, in PyTorch. Source: transformers/activations.py, 5.23."""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

_SQRT_2_OVER_PI: Final = math.sqrt(2.0 / math.pi)


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _gelu_fast(x: Tensor) -> Tensor:
    # The rounded constant is part of the definition that checkpoints were trained with.
    return 0.5 * x * (1.0 + torch.tanh(x * 0.7978845608 * (1.0 + 0.044715 * x * x)))


def _gelu_new(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.tanh(_SQRT_2_OVER_PI * (x + 0.044715 * x**3)))


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def _relu2(x: Tensor) -> Tensor:
    return F.relu(x).square()


def _linear(x: Tensor) -> Tensor:
    return x


# ``*_python`` and ``*_accurate`` are other spellings of the same mathematics in old configurations.
ACTIVATIONS: Final[Mapping[str, Callable[[Tensor], Tensor]]] = types.MappingProxyType(
    {
        "gelu": F.gelu,
        "gelu_accurate": _gelu_new,
        "gelu_fast": _gelu_fast,
        "gelu_new": _gelu_new,
        "gelu_python": F.gelu,
        "gelu_pytorch_tanh": _gelu_tanh,
        "leaky_relu": F.leaky_relu,
        "linear": _linear,
        "mish": F.mish,
        "quick_gelu": _quick_gelu,
        "relu": F.relu,
        "relu2": _relu2,
        "relu6": F.relu6,
        "sigmoid": torch.sigmoid,
        "silu": F.silu,
        "swish": F.silu,
        "tanh": torch.tanh,
    }
)
