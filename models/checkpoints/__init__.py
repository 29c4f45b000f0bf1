"""Checkpoints on disk and on the Hub: which file holds which weight, under which name."""
