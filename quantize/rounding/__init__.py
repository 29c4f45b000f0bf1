"""Numbers to few bits: the ways to round a weight, and the layouts that kernels read."""
