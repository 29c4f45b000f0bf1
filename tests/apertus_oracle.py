"""transformers beside our Apertus: pairs of models with the same weights, and inputs for both."""

from __future__ import annotations

from typing import Any, Final

import torch
import transformers
from torch import Tensor

from pinnace.models.registry import ARCHS, head_class

ATOL: Final = 1e-5
SMALL: Final = {
    "vocab_size": 41, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 64,
}  # fmt: skip
ROTARY: Final = {
    "default": {"rope_type": "default", "rope_theta": 1e4},
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
    "llama3": {
        "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "yarn": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16},
    "yarn-mscale": {
        "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16,
        "beta_fast": 16, "beta_slow": 2, "mscale": 0.7, "mscale_all_dim": 1.3, "truncate": False,
    },
    "yarn-factor": {
        "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16,
        "attention_factor": 1.25,
    },
}  # fmt: skip


def pair(head: str, **settings: Any) -> tuple[Any, Any]:
    """The same random weights in both: (transformers' model, ours), in evaluation mode."""
    arch = ARCHS["apertus"]
    settings = {**SMALL, **settings}
    config = transformers.ApertusConfig(**settings)
    config._attn_implementation = "eager"
    theirs = getattr(transformers, head)(config).eval()
    with torch.no_grad():
        for weight in theirs.parameters():  # norms start at 1 and xIELU alike everywhere, where mistakes would not show
            weight.add_(torch.randn_like(weight) * 0.2)
    ours = head_class(arch, head)(arch.config_class()(**settings)).eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def text_inputs(batch: int = 3, length: int = 7, *, padding: str = "right", vocabulary: int = 41) -> dict[str, Tensor]:
    """Random ids and a mask in which every row but the first is padded; positions count the real tokens."""
    ids = torch.randint(4, vocabulary, (batch, length))
    mask = torch.ones(batch, length, dtype=torch.long)
    for row in range(1, batch):
        mask[row, slice(length - row, None) if padding == "right" else slice(0, row)] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
