"""Texts in, answers out: one class for each task, and what all of them share."""
