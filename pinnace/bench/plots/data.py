"""What a plot shows, as data: points on two axes, or rows on one; `svg` and `report.png` draw it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Final

from pinnace.units import scale_for

XY = tuple[float, float]
_STEPS: Final = (1.0, 2.0, 2.5, 5.0, 10.0)
_WANTED_TICKS: Final = 6


@dataclasses.dataclass(frozen=True)
class Axis:
    """One axis.

    Attributes:
        title: what stands on it, without the unit.
        unit: of the values: one that `pinnace.units` knows, empty for a share of one, or any other word.
        log: a logarithmic axis; all values are above zero.
        ticks: where to put ticks; empty for round numbers.
        low, high: what the axis must reach at least; None leaves it to the values.
        better: ``less`` or ``more`` where one direction is better, which an arrow then tells.
    """

    title: str
    unit: str
    log: bool = False
    ticks: tuple[float, ...] = ()
    low: float | None = None
    high: float | None = None
    better: str = ""


@dataclasses.dataclass(frozen=True)
class Mark:
    """A point, with 95 % intervals where they are known, a label beside it, and what a pointer over it tells."""

    x: float
    y: float
    x_interval: XY | None = None
    y_interval: XY | None = None
    label: str = ""
    detail: str = ""


@dataclasses.dataclass(frozen=True)
class Series:
    """Points of one colour, joined by a line or not; the name stands at the last one."""

    name: str
    colour: int
    marks: tuple[Mark, ...]
    line: bool = True


@dataclasses.dataclass(frozen=True)
class Guide:
    """A dashed line that is no measurement of a candidate: a limit, a bound. The label stands at its last point."""

    label: str
    points: tuple[XY, ...]


@dataclasses.dataclass(frozen=True)
class XYPlot:
    """Points on two axes.

    Attributes:
        key: a word that is unique in a report.
        title: a few words.
        caption: what is shown and how to read it; also the text for who cannot see it.
        message: what the plot says here, in a sentence with numbers.
    """

    key: str
    title: str
    caption: str
    message: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    guides: tuple[Guide, ...] = ()


@dataclasses.dataclass(frozen=True)
class Segment:
    """A stretch of a bar, from ``start`` to ``end`` on the axis."""

    name: str
    colour: int
    start: float
    end: float


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a plot: a bar of segments, or the outline of a distribution with its quantiles.

    Attributes:
        label: at the left.
        group: rows of one group stand together under its name; empty for none.
        colour: of the outline.
        segments: of the bar.
        outline: (value, height 0 to 1) of the distribution.
        quantiles: (value, word) of ticks on the row.
        interval: 95 % interval of the bar's end.
        text: at the right end, the row's numbers.
        detail: what a pointer over it tells.
    """

    label: str
    text: str
    group: str = ""
    colour: int = 0
    segments: tuple[Segment, ...] = ()
    outline: tuple[XY, ...] = ()
    quantiles: tuple[tuple[float, str], ...] = ()
    interval: XY | None = None
    detail: str = ""


@dataclasses.dataclass(frozen=True)
class RowsPlot:
    """Rows on one horizontal axis; the first four attributes are those of `XYPlot`.

    Attributes:
        legend: name and colour of segments that several rows have.
    """

    key: str
    title: str
    caption: str
    message: str
    axis: Axis
    rows: tuple[Row, ...]
    legend: tuple[tuple[str, int], ...] = ()


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """A plot that would show nothing, and why."""

    key: str
    title: str
    reason: str


Plot = XYPlot | RowsPlot


class Ruler:
    """An axis with its ends, its ticks and its unit for a reader.

    Args:
        axis: what the axis is.
        values: everything that it must show.
    """

    def __init__(self, axis: Axis, values: Sequence[float]) -> None:
        self.axis = axis
        given = [value for value in (*values, *axis.ticks, axis.low, axis.high) if value is not None]
        if axis.log:  # the low end of an interval may be below zero
            given = [value for value in given if value > 0]
        low, high = min(given), max(given)
        if axis.log:
            room = max(math.log10(high / low), 0.3) * 0.06
            self.low, self.high = low / 10**room, high * 10**room
        else:
            room = (high - low or abs(high) or 1.0) * 0.06
            # Room on both sides, but never beyond what was asked for, such as a zero.
            self.low = low if low == axis.low else low - room
            self.high = high if high == axis.high else high + room
        self.scale = scale_for(high, axis.unit)
        self.ticks = axis.ticks or (_log_ticks if axis.log else _even_ticks)(self.low, self.high, self.scale.factor)

    @property
    def title(self) -> str:
        """The axis' title with its unit."""
        word = self.scale.word
        return self.axis.title if not word or word in self.axis.title.split() else f"{self.axis.title} ({word})"

    def place(self, value: float) -> float:
        """Where a value lies, from 0 at the low end to 1 at the high end."""
        value = min(max(value, self.low), self.high)
        if self.axis.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def tick_text(self, value: float) -> str:
        """A tick's number, in the unit of the title."""
        number = value * self.scale.factor
        if self.axis.log or len(self.ticks) < 2:
            return f"{number:,.10g}"
        step = min(b - a for a, b in zip(self.ticks, self.ticks[1:], strict=False)) * self.scale.factor
        return f"{number:,.{max(0, -math.floor(math.log10(step) + 1e-9) + _extra(step))}f}"


def _even_ticks(low: float, high: float, factor: float) -> tuple[float, ...]:
    low, high = low * factor, high * factor
    rough = (high - low) / _WANTED_TICKS
    unit = 10 ** math.floor(math.log10(rough))
    step = next(unit * wide for wide in _STEPS if unit * wide >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return tuple(count * step / factor for count in range(first, math.floor(high / step + 1e-9) + 1))


def _log_ticks(low: float, high: float, factor: float) -> tuple[float, ...]:
    low, high = low * factor, high * factor
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for wide in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)):
        ticks = tuple(w * 10.0**decade / factor for decade in decades for w in wide if low <= w * 10.0**decade <= high)
        if len(ticks) >= 4:
            return ticks
    return ticks if len(ticks) > 1 else _even_ticks(low / factor, high / factor, factor)


def _extra(step: float) -> int:
    """A step of 2.5 needs one more place than one of 2."""
    lead = step / 10 ** math.floor(math.log10(step) + 1e-9)
    return int(abs(lead - round(lead)) > 1e-6)


def values_of(plot: Plot) -> tuple[list[float], list[float]]:
    """All values on the first axis, and on the second (none for rows)."""
    if isinstance(plot, RowsPlot):
        found = [end for row in plot.rows for part in row.segments for end in (part.start, part.end)]
        found += [value for row in plot.rows for value, _ in (*row.outline, *row.quantiles)]
        return [*found, *(end for row in plot.rows for end in row.interval or ())], []
    marks = [mark for series in plot.series for mark in series.marks]
    lines = [point for guide in plot.guides for point in guide.points]
    across = [mark.x for mark in marks] + [end for mark in marks for end in mark.x_interval or ()]
    up = [mark.y for mark in marks] + [end for mark in marks for end in mark.y_interval or ()]
    return across + [x for x, _ in lines], up + [y for _, y in lines]
