"""Pinnace carries BERT and Apertus checkpoints to machines without PyTorch: export, verify, run."""

from __future__ import annotations

__version__ = "0.1.0"
