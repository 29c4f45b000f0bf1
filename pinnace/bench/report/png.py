"""Draws the same plots as PNG, through matplotlib (extra ``report``): for slides and documents."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from typing import Any, Final

from pinnace.bench.plots.data import Plot, RowsPlot, Ruler, XYPlot, values_of
from pinnace.bench.report.page import LIGHT
from pinnace.errors import MissingExtra

_INCHES: Final = (7.2, 4.9)
_DPI: Final = 130
_MARKERS: Final = ("o", "s", "D", "^")
_ARROWS: Final = {"less": "  ← better", "more": "  better →"}
_SOFT: Final = "#5b6570"
_MOST_LETTERS: Final = 36  # of a name


def draw_png(title: str, plots: Sequence[Plot]) -> bytes:
    """Return one PNG with all plots, two beside each other.

    Args:
        title: stands above all.
        plots: at least one.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra("report", "a PNG") from None
    columns = min(2, len(plots))
    lines = -(-len(plots) // columns)
    tall = max(1.0, max(len(plot.rows) for plot in plots if isinstance(plot, RowsPlot)) / 12) if _has_rows(plots) else 1
    figure = Figure(figsize=(_INCHES[0] * columns, _INCHES[1] * lines * tall + 0.6), dpi=_DPI)
    figure.set_layout_engine("constrained", hspace=0.08, wspace=0.06)
    FigureCanvasAgg(figure)
    figure.suptitle(_plain(title, 90), fontsize=17, fontweight="bold")
    for place, plot in enumerate(plots):
        axes = figure.add_subplot(lines, columns, place + 1)
        heading = "\n".join(textwrap.wrap(plot.title, 54))
        axes.set_title(_plain(heading, 200), fontsize=11.5, fontweight="bold", loc="left", pad=8)
        if isinstance(plot, RowsPlot):
            _draw_rows(axes, plot)
        else:
            _draw_points(axes, plot)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.set_axisbelow(True)
        axes.grid(True, color="#dfe3e8", linewidth=0.8, axis="x" if isinstance(plot, RowsPlot) else "both")
    made = io.BytesIO()
    figure.savefig(made, format="png", metadata={"Software": "pinnace"})
    return made.getvalue()


def _has_rows(plots: Sequence[Plot]) -> bool:
    return any(isinstance(plot, RowsPlot) for plot in plots)


def _plain(text: str, most: int = _MOST_LETTERS) -> str:
    """Text as it is, since a dollar sign would begin a formula; cut where it would push the plot aside."""
    cut = text if len(text) <= most else text[: most - 1] + "…"
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in cut).replace("$", r"\$")


def _colour(place: int) -> str:
    return LIGHT[place % len(LIGHT)]


def _rule(axes: Any, side: str, ruler: Ruler) -> None:
    """Give an axis of the picture the ends, ticks and title of a ruler."""
    if ruler.axis.log:
        getattr(axes, f"set_{side}scale")("log")
    getattr(axes, f"set_{side}lim")(ruler.low, ruler.high)
    own = getattr(axes, f"{side}axis")
    own.set_ticks(list(ruler.ticks), [ruler.tick_text(tick) for tick in ruler.ticks])
    own.set_ticks([], minor=True)
    own.set_label_text(_plain(ruler.title, 80) + _ARROWS.get(ruler.axis.better, ""), color=_SOFT)


def _draw_points(axes: Any, plot: XYPlot) -> None:
    across, up = values_of(plot)
    _rule(axes, "x", Ruler(plot.x, across))
    _rule(axes, "y", Ruler(plot.y, up))
    for guide in plot.guides:
        xs, ys = zip(*guide.points, strict=True)
        axes.plot(xs, ys, linestyle="--", linewidth=1.2, color=_SOFT)
        axes.annotate(_plain(guide.label, 80), guide.points[-1], xytext=(0, 5), textcoords="offset points", ha="right",
                      fontsize=8, color=_SOFT)  # fmt: skip
    for series in plot.series:
        colour = _colour(series.colour)
        style = "-" if series.line else "none"
        across, up = [mark.x for mark in series.marks], [mark.y for mark in series.marks]
        axes.plot(
            across, up, linestyle=style, marker=_MARKERS[series.colour % 4], color=colour, label=_plain(series.name)
        )
        for mark in series.marks:
            for interval, kind in ((mark.x_interval, "xerr"), (mark.y_interval, "yerr")):
                if interval:
                    middle = mark.x if kind == "xerr" else mark.y
                    below, above = max(0.0, middle - interval[0]), max(0.0, interval[1] - middle)
                    axes.errorbar(mark.x, mark.y, **{kind: [[below], [above]]}, color=colour, capsize=3, linewidth=1)
            if mark.label:
                axes.annotate(_plain(mark.label), (mark.x, mark.y), xytext=(6, -11), textcoords="offset points",
                              fontsize=8, color=_SOFT)  # fmt: skip
    axes.legend(fontsize=8.5, frameon=False)


def _draw_rows(axes: Any, plot: RowsPlot) -> None:
    ruler = Ruler(plot.axis, values_of(plot)[0])
    _rule(axes, "x", ruler)
    count = len(plot.rows)
    axes.set_ylim(-0.6, count - 0.2)
    names = [f"{row.group} · {row.label}" if row.group else row.label for row in plot.rows]
    axes.yaxis.set_ticks(range(count - 1, -1, -1), [_plain(name) for name in names])
    axes.tick_params(axis="y", length=0)
    for place, row in zip(range(count - 1, -1, -1), plot.rows, strict=True):
        for part in row.segments:
            axes.barh(place, part.end - part.start, left=part.start, height=0.56, color=_colour(part.colour))
        if row.outline:
            xs, ys = zip(*row.outline, strict=True)
            heights = [place + 0.72 * height for height in ys]
            axes.fill_between(xs, place, heights, color=_colour(row.colour), alpha=0.3, linewidth=0)
            axes.plot(xs, heights, color=_colour(row.colour), linewidth=1.2)
        for value, _ in row.quantiles:
            axes.plot([value, value], [place - 0.14, place + 0.3], color=_colour(row.colour), linewidth=2)
        if row.interval:
            axes.plot(row.interval, [place, place], color="#1b2027", linewidth=1.2, marker="|")
        axes.annotate(_plain(row.text, 60), (1, place), xycoords=("axes fraction", "data"), xytext=(6, 0),
                      textcoords="offset points", va="center", fontsize=8, annotation_clip=False)  # fmt: skip
    if plot.legend:
        from matplotlib.patches import Patch

        handles = [Patch(color=_colour(colour), label=_plain(name)) for name, colour in plot.legend]
        axes.legend(handles=handles, fontsize=8.5, frameon=False, loc="lower center", bbox_to_anchor=(0.5, -0.28),
                    ncols=len(handles))  # fmt: skip
