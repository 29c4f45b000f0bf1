"""Configurations of checkpoints: read in every dialect, checked field by field, written back."""
