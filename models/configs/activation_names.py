"""The words that ``hidden_act`` may hold. Their meaning in PyTorch stands elsewhere; this file needs no torch."""

from __future__ import annotations

from typing import Final

# The first four are the documented ones of BERT; the others occur in published configurations.
ACTIVATIONS: Final = (
    "gelu",
    "relu",
    "silu",
    "gelu_new",
    "gelu_accurate",
    "gelu_fast",
    "gelu_python",
    "gelu_pytorch_tanh",
    "leaky_relu",
    "linear",
    "mish",
    "quick_gelu",
    "relu2",
    "relu6",
    "sigmoid",
    "swish",
    "tanh",
)
