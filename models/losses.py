"""The losses that labels give, as the heads of transformers define them.

Source: models/bert/modeling_bert.py and loss/loss_utils.py, 5.23.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def class_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy: logits (..., L), labels (...) int64 with -100 ignored."""
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1))


def causal_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of each token with the prediction made one token before: (B, T, V) and (B, T)."""
    following = F.pad(labels, (0, 1), value=-100)[..., 1:]
    return class_loss(logits.float(), following)


def problem_type_of(num_labels: int, labels: Tensor) -> str:
    """What kind of classification the labels are for."""
    if num_labels == 1:
        return "regression"
    whole = labels.dtype in (torch.long, torch.int)
    return "single_label_classification" if whole else "multi_label_classification"


def classification_loss(problem_type: str, logits: Tensor, labels: Tensor) -> Tensor:
    """Loss of a whole sequence: logits (B, L); labels (B,), or (B, L) for several labels or numbers."""
    if problem_type == "regression":
        return F.mse_loss(logits.squeeze(), labels.squeeze()) if logits.shape[-1] == 1 else F.mse_loss(logits, labels)
    if problem_type == "single_label_classification":
        return class_loss(logits, labels)
    return F.binary_cross_entropy_with_logits(logits, labels)


def span_loss(start: Tensor, end: Tensor, start_positions: Tensor, end_positions: Tensor) -> Tensor:
    """Mean of both cross entropies: logits (B, T), positions (B,) or (B, 1); those past the end are ignored."""
    T = start.shape[1]
    pairs = ((start, start_positions), (end, end_positions))
    losses = [F.cross_entropy(x, at.reshape(-1).clamp(0, T), ignore_index=T) for x, at in pairs]
    return (losses[0] + losses[1]) / 2
