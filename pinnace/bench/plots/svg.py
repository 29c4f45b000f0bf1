"""Draws a plot as SVG: text stays text, colours come from the page's style, and labels keep out of each other's way."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Final

from pinnace.bench.plots.data import Guide, Plot, Row, RowsPlot, Ruler, Series, XYPlot, values_of

WIDTH: Final = 600
COLOURS: Final = 8
_HEIGHT: Final = 360
_TOP, _BOTTOM, _RIGHT = 18, 50, 22
_ROW, _RIDGE, _GROUP = 30, 40, 30
_LETTER: Final = 7.1  # width of a letter at 12 px; a guess that errs on the wide side
_BOLD: Final = 1.1
_NAME: Final = 24  # letters of a name beside a point; tooltips and tables have all
_LINE: Final = 15
_Place = Callable[[float, float], tuple[float, float]]
Box = tuple[float, float, float, float]


def draw(plot: Plot) -> str:
    """Return an ``<svg>`` element. It loads nothing, and what it shows is also in its title and description."""
    body, height = _rows(plot) if isinstance(plot, RowsPlot) else (_points(plot), _HEIGHT)
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-labelledby="{plot.key}-t {plot.key}-d">'
        f'<title id="{plot.key}-t">{escape(plot.title)}</title>'
        f'<desc id="{plot.key}-d">{escape(f"{plot.caption} {plot.message}")}</desc>{"".join(body)}</svg>'
    )


def escape(text: str) -> str:
    """Text for HTML and SVG, in attributes too; characters that no document may hold become visible ones."""
    return html.escape("".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text))


def _points(plot: XYPlot) -> Iterator[str]:
    across, up = values_of(plot)
    x_ruler, y_ruler = Ruler(plot.x, across), Ruler(plot.y, up)
    names = max([min(len(s.name), _NAME) for s in plot.series if s.line and len(s.marks) > 1], default=0)
    right = WIDTH - max(_RIGHT, names * _LETTER * _BOLD + 22 if names else _RIGHT)
    bottom = _HEIGHT - _BOTTOM
    left = 36 + max(len(y_ruler.tick_text(tick)) for tick in y_ruler.ticks) * _LETTER

    def at(x: float, y: float) -> tuple[float, float]:
        return left + x_ruler.place(x) * (right - left), bottom - y_ruler.place(y) * (bottom - _TOP)

    yield from _frame_x(x_ruler, left, right, _TOP, bottom)
    for value in y_ruler.ticks:
        y = at(x_ruler.low, value)[1]
        yield f'<path class="grid" d="M{left:.1f} {y:.1f}H{right:.1f}"/>'
        yield _text(left - 8, y + 4, y_ruler.tick_text(value), "tick", "end")
    middle = (_TOP + bottom) / 2
    turn = f' transform="rotate(-90 16 {middle:.1f})"'
    yield _text(16, middle, y_ruler.title + _arrow(plot.y.better, "↓", "↑"), "axis", "middle", turn)
    labels = _Labels((left, _TOP - 12, WIDTH, bottom))
    for series in plot.series:
        places = [at(mark.x, mark.y) for mark in series.marks]
        labels.block_all(places)
        for mark in series.marks:
            ends = [at(x, mark.y) for x in mark.x_interval or ()] + [at(mark.x, y) for y in mark.y_interval or ()]
            labels.block_all(ends)
        labels.block_line(places if series.line else ())
    for guide in plot.guides:
        labels.block_line([at(x, y) for x, y in guide.points])
    for guide in plot.guides:
        yield from _guide(guide, at, labels, right)
    for series in plot.series:
        yield from _series(series, at)
    # The names first: they may not be missing.
    for series in plot.series:
        yield labels.name(series, *at(series.marks[-1].x, series.marks[-1].y))
    for series in plot.series:
        for mark in series.marks:
            yield labels.beside(mark.label, *at(mark.x, mark.y))


def _series(series: Series, at: _Place) -> Iterator[str]:
    colour = f"c{series.colour % COLOURS}"
    places = [at(mark.x, mark.y) for mark in series.marks]
    if series.line and len(places) > 1:
        yield f'<path class="line {colour}" d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in places)}"/>'
    for mark, (x, y) in zip(series.marks, places, strict=True):
        yield f'<g class="{colour}"><title>{escape(mark.detail or f"{series.name} {mark.label}")}</title>'
        if mark.y_interval:
            (_, low), (_, high) = at(mark.x, mark.y_interval[0]), at(mark.x, mark.y_interval[1])
            yield f'<path class="interval" d="M{x - 4:.1f} {low:.1f}h8M{x:.1f} {low:.1f}V{high:.1f}m-4 0h8"/>'
        if mark.x_interval:
            (low, _), (high, _) = at(mark.x_interval[0], mark.y), at(mark.x_interval[1], mark.y)
            yield f'<path class="interval" d="M{low:.1f} {y - 4:.1f}v8M{low:.1f} {y:.1f}H{high:.1f}m0 -4v8"/>'
        yield f"{_symbol(series.colour, x, y)}</g>"


def _symbol(colour: int, x: float, y: float) -> str:
    """A filled circle, square, diamond or triangle: colours are not the only thing that tells candidates apart."""
    if colour % 4 == 0:
        return f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="5"/>'
    shape = ("", "m-4.5 -4.5h9v9h-9z", "m0 -6.2l6.2 6.2l-6.2 6.2l-6.2 -6.2z", "m0 -6l5.8 10.2h-11.6z")[colour % 4]
    return f'<path class="dot" d="M{x:.1f} {y:.1f}{shape}"/>'


def _guide(guide: Guide, at: _Place, labels: _Labels, right: float) -> Iterator[str]:
    places = [at(x, y) for x, y in guide.points]
    yield f'<path class="guide" d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in places)}"/>'
    (first, _), (last, y) = places[-2:]
    yield labels.along(guide.label, first, min(last, right), y)


def _frame_x(ruler: Ruler, left: float, right: float, top: float, bottom: float) -> Iterator[str]:
    for value in ruler.ticks:
        x = left + ruler.place(value) * (right - left)
        yield f'<path class="grid" d="M{x:.1f} {top:.1f}V{bottom:.1f}"/>'
        yield _text(x, bottom + 18, ruler.tick_text(value), "tick", "middle")
    title = ruler.title + _arrow(ruler.axis.better, "←", "→")
    yield _text((left + right) / 2, bottom + 40, title, "axis", "middle")
    yield f'<path class="base" d="M{left:.1f} {bottom:.1f}H{right:.1f}"/>'


def _arrow(better: str, less: str, more: str) -> str:
    return {"less": f"   {less} better", "more": f"   better {more}"}.get(better, "")


def _rows(plot: RowsPlot) -> tuple[Iterable[str], float]:
    ruler = Ruler(plot.axis, values_of(plot)[0])
    left = min(220.0, max(len(row.label) for row in plot.rows) * _LETTER + 20)
    right = WIDTH - min(200.0, max(len(row.text) for row in plot.rows) * _LETTER + 16)
    parts: list[str] = []
    y = float(_TOP)
    if plot.legend:
        y += _legend(plot.legend, left, parts)
    top, group = y, ""
    for row in plot.rows:
        if row.group and row.group != group:
            y += _GROUP
            parts.append(_text(6, y - 9, row.group, "group"))
        group = row.group
        height = _RIDGE if row.outline else _ROW
        parts += _row(row, ruler, left, right, y, y + height)
        y += height
    return [*_frame_x(ruler, left, right, top, y + 4), *parts], y + 4 + _BOTTOM


def _row(row: Row, ruler: Ruler, left: float, right: float, top: float, bottom: float) -> Iterator[str]:
    def at(value: float) -> float:
        return left + ruler.place(value) * (right - left)

    middle = (top + bottom) / 2
    base = bottom - 8 if row.outline else middle
    yield f"<g><title>{escape(row.detail or f'{row.label}: {row.text}')}</title>"
    yield _text(left - 10, base + 4 - 4 * bool(row.outline), _cut(row.label, left - 14), "label", "end")
    for part in row.segments:
        start, end = at(part.start), at(part.end)
        yield (
            f'<rect class="bar c{part.colour % COLOURS}" x="{start:.1f}" y="{top + 6:.1f}" '
            f'width="{max(0.0, end - start):.1f}" height="{bottom - top - 12:.1f}"/>'
        )
    if row.outline:
        high = bottom - top - 12
        path = "L".join(f"{at(value):.1f} {base - share * high:.1f}" for value, share in row.outline)
        first, last = at(row.outline[0][0]), at(row.outline[-1][0])
        yield f'<path class="ridge c{row.colour % COLOURS}" d="M{first:.1f} {base:.1f}L{path}L{last:.1f} {base:.1f}z"/>'
    for value, _ in row.quantiles:
        yield f'<path class="quantile c{row.colour % COLOURS}" d="M{at(value):.1f} {base + 4:.1f}v-13"/>'
    if row.interval:
        low, high = at(row.interval[0]), at(row.interval[1])
        yield f'<path class="interval ink" d="M{low:.1f} {middle - 4:.1f}v8m0 -4H{high:.1f}m0 -4v8"/>'
    yield _text(right + 10, base + 4 - 4 * bool(row.outline), row.text, "value")
    yield "</g>"


def _legend(entries: Iterable[tuple[str, int]], left: float, parts: list[str]) -> float:
    x, y = left, float(_TOP)
    for name, colour in entries:
        wide = len(name) * _LETTER + 34
        if x > left and x + wide > WIDTH - 10:
            x, y = left, y + 20
        parts.append(f'<rect class="bar c{colour % COLOURS}" x="{x:.1f}" y="{y - 10:.1f}" width="12" height="12"/>')
        parts.append(_text(x + 18, y, name, "label"))
        x += wide
    return y - _TOP + 18


def _cut(text: str, room: float) -> str:
    most = int(room / _LETTER)
    return text if len(text) <= most else text[: most - 1] + "…"


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start", more: str = "") -> str:
    place = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}"{place}{more}>{escape(text)}</text>' if text else ""


class _Labels:
    """Finds a free place for each label; what finds none is left to the tooltip and the table."""

    def __init__(self, room: Box) -> None:
        self._room = room
        self._taken: list[Box] = []
        self._lines: list[Box] = []

    def block(self, box: Box) -> None:
        """Take a place."""
        self._taken.append(box)

    def block_line(self, places: Sequence[tuple[float, float]]) -> None:
        """Take the places along a line; names may cross it where nothing else is free."""
        for (x, y), (to_x, to_y) in pairwise(places):
            steps = max(1, round(math.hypot(to_x - x, to_y - y) / 8))
            for step in range(steps + 1):
                at_x, at_y = x + (to_x - x) * step / steps, y + (to_y - y) * step / steps
                self._lines.append((at_x - 2, at_y - 2, at_x + 2, at_y + 2))

    def block_all(self, places: Iterable[tuple[float, float]]) -> None:
        """Take the places of symbols."""
        self._taken += [(x - 6, y - 6, x + 6, y + 6) for x, y in places]

    def name(self, series: Series, x: float, y: float) -> str:
        """Write a series' name beside its last point, moved up or down until it stands free."""
        said = _cut(series.name, _NAME * _LETTER)
        wide = len(said) * _LETTER * _BOLD
        # A line ends at the right, where the margin is kept free for names.
        near = 40 if series.line and len(series.marks) > 1 else 4
        right, left = x + 11, x - 11 - wide
        steps = [0.0, *(sign * step * _LINE * 0.5 for step in range(1, 40) for sign in (-1, 1))]
        places = [(right, step) for step in steps[:near]]
        places += [(start, step) for step in steps for start in (left, right)]
        for taken in (self._taken + self._lines, self._taken):
            for start, shift in places:
                box = (start, y + shift - 7, start + wide, y + shift + 7)
                if self._free(box, taken):
                    self.block(box)
                    edge = start - 2 if start > x else start + wide + 2
                    far = abs(shift) > _LINE * 0.6
                    leader = f'<path class="leader" d="M{x:.1f} {y:.1f}L{edge:.1f} {y + shift:.1f}"/>' if far else ""
                    return leader + _text(start, y + shift + 4, said, f"name t{series.colour % COLOURS}")
        return ""

    def along(self, text: str, first: float, last: float, y: float) -> str:
        """Write a label on a level line, as far right as it stands free, above it or else below it."""
        wide = len(text) * _LETTER
        for base in (y - 6, y + 15):
            for share in range(0, 101, 4):
                end = last - max(0.0, last - first - wide) * share / 100
                box = (end - wide, base - 10, end, base + 3)
                if self._free(box, self._taken + self._lines):
                    self.block(box)
                    return _text(end, base, text, "note", "end")
        return _text(last, y - 6, text, "note", "end")

    def beside(self, text: str, x: float, y: float) -> str:
        """Write a label above, below, left or right of a point."""
        wide = len(text) * _LETTER * 0.95
        for start, base in (
            (x - wide / 2, y - 11), (x - wide / 2, y + 19), (x + 10, y + 14), (x - wide - 10, y - 6), (x + 10, y - 6),
        ):  # fmt: skip
            box = (start, base - 10, start + wide, base + 3)
            if text and self._free(box, self._taken + self._lines):
                self.block(box)
                return _text(start, base, text, "note")
        return ""

    def _free(self, box: Box, taken: Iterable[Box]) -> bool:
        left, top, right, bottom = self._room
        inside = left <= box[0] and top <= box[1] and box[2] <= right and box[3] <= bottom
        return inside and not any(
            box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3] for other in taken
        )
