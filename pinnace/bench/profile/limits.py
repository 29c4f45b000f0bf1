"""What this machine reaches at best, measured in a second or two: a large multiplication, and reading memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from pinnace.bench.limits import SHAPES, buffer_bytes, gemm, read_all

_SECONDS: Final = 0.4
_LEAST: Final = 5


def measure_limits(threads: int) -> tuple[float, float]:
    """Measure FLOP/s of the fastest of a few fp32 multiplications, and bytes/s read from memory.

    Args:
        threads: of each measurement, as of the run that is compared with it.
    """
    flops = max(2.0 * np.prod(shape) / _median(gemm(*shape, threads)) for shape in SHAPES)
    buffer = np.ones(buffer_bytes() // 4, np.float32)
    return float(flops), buffer.nbytes / _median(lambda: read_all(buffer, threads))


def _median(act: Callable[[], Any]) -> float:
    """Seconds of a call: the median of as many as fit, after one to warm up."""
    act()
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < _LEAST or time.perf_counter() - start < _SECONDS:
        before = time.perf_counter()
        act()
        times.append(time.perf_counter() - before)
    return statistics.median(times)
