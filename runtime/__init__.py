"""Serving without PyTorch: bundles, sessions, tokenizers, pipelines."""
