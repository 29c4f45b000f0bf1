"""Inputs that calibrate and judge: a user's file, the package's own texts, or random numbers."""
