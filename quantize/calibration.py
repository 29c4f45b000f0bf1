"""Observe what the projections of a graph read: ranges by channel, means, and a sample of rows.

The fp32 graph is run on calibration data with the groups' activations as further outputs. Padding is left out: what
stands there is read by nobody and would stretch the ranges.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import onnx_ir as ir

from pinnace.arrays import Array
from pinnace.errors import InputError, NumericalError
from pinnace.quantize.histogram import Histogram
from pinnace.quantize.rounding.gptq import Hessian
from pinnace.runtime.engine.ort import plain_session

SAMPLE_ROWS: Final = 2048
GATHERED_ROWS: Final = 2048
FADING: Final = 0.05  # weight of the latest run in the averaged ends
RUN_BYTES: Final = 256 << 20  # most bytes of observed activations that one run may give


@dataclasses.dataclass
class Activations:
    """What one group of projections reads, over all calibration data.

    Attributes:
        low: smallest number of each channel, float32 ``(K,)``.
        high: largest number of each channel.
        mean: mean of each channel, float64 ``(K,)``.
        count: rows seen.
        sample: some of them, spread over the data, float32 ``(rows, K)``.
        hessian: of all of them, where it was asked for.
        usual: smallest and largest number of a run, averaged with weights that fade for earlier runs.
        histogram: of all numbers, where it was asked for.
    """

    low: Array
    high: Array
    mean: Array
    count: int
    sample: Array
    hessian: Hessian | None = None
    usual: tuple[float, float] = (0.0, 0.0)
    histogram: Histogram | None = None

    @property
    def peak(self) -> Array:
        """Largest magnitude of each channel, ``(K,)``."""
        return np.maximum(np.abs(self.low), np.abs(self.high))


class _Observer:
    """Gathers one group's rows as they come."""

    def __init__(self, quota: int, hessian: Hessian | None, histogram: Histogram | None = None) -> None:
        self._quota = quota
        self._hessian = hessian
        self._histogram = histogram
        self._usual: Array | None = None
        self._waiting: list[Array] = []
        self._kept: list[Array] = []
        self._low: Array | None = None
        self._high: Array | None = None
        self._sum: Array | None = None
        self._count = 0

    def see(self, rows: Array) -> None:
        """Take rows ``(n, K)``.

        Raises:
            NumericalError: a number is NaN or infinite.
        """
        if not len(rows):
            return
        low, high, total = rows.min(0), rows.max(0), rows.sum(0, dtype=np.float64)
        if not (np.isfinite(low).all() and np.isfinite(high).all()):  # NaN is both least and largest
            raise NumericalError("a calibration input is NaN or infinite; the fp32 model must run cleanly on the data")
        self._low = low if self._low is None else np.minimum(self._low, low)
        self._high = high if self._high is None else np.maximum(self._high, high)
        self._sum = total if self._sum is None else self._sum + total
        ends = np.array([low.min(), high.max()], np.float64)
        self._usual = ends if self._usual is None else self._usual + FADING * (ends - self._usual)
        if self._histogram is not None:
            self._histogram.add(rows)
        # Evenly spaced rows of every run: the sample knows the beginnings and the ends of texts.
        places = np.unique(np.linspace(0, len(rows) - 1, min(self._quota, len(rows))).astype(int))
        self._kept.append(rows[places])
        self._count += len(rows)
        if self._hessian is not None:
            self._waiting.append(rows)
            if sum(map(len, self._waiting)) >= GATHERED_ROWS:
                self._gather()

    def _gather(self) -> None:
        """Many rows at once: a product of few rows would spend its time on reading and writing the Hessian."""
        if self._hessian is not None and self._waiting:
            self._hessian.add(np.concatenate(self._waiting))
            self._waiting.clear()

    def result(self, name: str) -> Activations:
        if self._low is None or self._high is None or self._sum is None or self._usual is None:
            raise InputError(f"the calibration data never reaches {name}; give more or longer texts")
        self._gather()
        sample = spread(np.concatenate(self._kept), SAMPLE_ROWS)
        mean = self._sum / self._count
        usual = (float(self._usual[0]), float(self._usual[1]))
        return Activations(self._low, self._high, mean, self._count, sample, self._hessian, usual, self._histogram)


def spread(rows: Array, most: int) -> Array:
    """At most so many of the rows, evenly spaced from the first to the last."""
    places = np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int)
    return np.asarray(rows[places])


def observe(
    model: ir.Model,
    folder: Path,
    values: Mapping[str, ir.Value],
    feeds: Sequence[Mapping[str, Array]],
    *,
    hessians: bool = False,
    histograms: bool = False,
) -> dict[str, Activations]:
    """Run a graph and observe some of its values.

    Args:
        model: a bound graph; left as it was.
        folder: where the graph's weights lie; a probe is written there for a moment.
        values: name for the result -> value of ``model``, float32 ``(..., K)``.
        feeds: inputs of the graph, one mapping for each run; a cache among them is empty.
        hessians: gather the Hessian of each value too, ``4 * K * K`` bytes.
        histograms: gather the histogram of each value too.

    Raises:
        InputError: no data, or a value that the data never reaches.
        NumericalError: a value is NaN or infinite on the data.
    """
    if not feeds:
        raise InputError("there is no calibration data; give at least one text")
    quota = max(1, -(-SAMPLE_ROWS // len(feeds)))
    observers = {
        name: _Observer(quota, Hessian(_width(value)) if hessians else None, Histogram() if histograms else None)
        for name, value in values.items()
    }
    names = {name: str(value.name) for name, value in values.items()}
    given = [value for value in values.values() if not value.is_graph_output()]
    path = folder / f"observe-{os.getpid()}.onnx"  # other processes may observe the same bundle
    outputs = model.graph.outputs
    kept = len(outputs)
    try:
        outputs.extend(dict.fromkeys(given))  # a dict keeps each once, in order
        ir.save(model, path)
        session = plain_session(path)
    finally:
        while len(outputs) > kept:
            outputs.pop()  # a deleted slice would leave its values marked as outputs
        path.unlink(missing_ok=True)
    for feed in feeds:
        for part in _parts(values, names, feed):
            results = session.run([names[name] for name in part], dict(feed))
            for name, array in zip(part, results, strict=True):
                observers[name].see(_real_rows(array, feed))
    return {name: observer.result(name) for name, observer in observers.items()}


def _parts(values: Mapping[str, ir.Value], names: Mapping[str, str], feed: Mapping[str, Array]) -> Iterable[list[str]]:
    """Names in groups whose activations together stay within `RUN_BYTES`."""
    tokens = int(feed["input_ids"].size)
    part: list[str] = []
    size = 0
    for name in names:
        width = _width(values[name])
        if part and size + 4 * tokens * width > RUN_BYTES:
            yield part
            part, size = [], 0
        part.append(name)
        size += 4 * tokens * width
    yield part


def _width(value: ir.Value) -> int:
    shape = value.shape
    assert shape is not None and isinstance(shape[-1], int)  # widths are fixed by the configuration
    return int(shape[-1])


def _real_rows(array: Array, feed: Mapping[str, Array]) -> Array:
    """Rows ``(n, K)`` of an activation without those of padding."""
    mask = feed.get("attention_mask")
    if mask is not None and array.ndim == 3:
        # Behind an empty cache the tokens come first, also in a mask as wide as a cache of fixed capacity.
        own = mask.reshape(-1, mask.shape[-1])[:, : array.shape[1]]
        if own.shape == array.shape[:2]:
            return array[own > 0]
    return array.reshape(-1, array.shape[-1])
