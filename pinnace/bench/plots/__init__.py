"""Plots as data, and as SVG."""
