"""Precisions of a bundle: schemes that turn fp32 graphs into smaller ones."""
