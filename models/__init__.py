"""Reference models in PyTorch: configuration, checkpoints, semantic operators, architectures."""
