"""The page of a report: one HTML file that loads nothing, in light and dark, on a screen and on paper."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Final

from pinnace.bench.plots.data import LeftOut, Plot
from pinnace.bench.plots.svg import draw, escape

# Eight colours that stay apart for all common kinds of colour blindness (after Okabe and Ito), for light and for dark.
LIGHT: Final = ("#0072b2", "#d55e00", "#00855f", "#b0508f", "#a87600", "#2a8fc9", "#5a5a5a", "#7b4fb3")
_DARK: Final = ("#56b4e9", "#ff8a3c", "#2fd0a0", "#e48cc4", "#f0c040", "#9ad4ff", "#c4c4c4", "#b99cf0")

_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

_STYLE: Final = """
:root { color-scheme: light dark; --ink: #1b2027; --soft: #5b6570; --paper: #f5f6f8; --card: #fff; --rule: #dfe3e8;
  --good: #00694b; --tint: #eef4fa; LIGHT }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --soft: #a3adb8; --paper: #14171b; --card: #1d2126;
  --rule: #343a42; --good: #4fdcae; --tint: #222b35; DARK } }
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", "Liberation Sans", Arial, sans-serif }
main, header, footer { max-width: 1220px; margin: 0 auto; padding: 0 24px }
header { padding-top: 36px } footer { padding-bottom: 40px; color: var(--soft); font-size: 14px }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 6px; overflow-wrap: anywhere }
h2 { font-size: 21px; margin: 40px 0 12px }
h3 { font-size: 17px; line-height: 1.3; margin: 0 0 4px }
p { margin: 0 0 10px } .lead { color: var(--soft); margin-bottom: 22px }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(215px, 1fr)); gap: 14px; margin: 0; padding: 0 }
.fact, figure, .table, .box { background: var(--card); border: 1px solid var(--rule); border-radius: 10px }
.fact { padding: 14px 18px } .fact dt { color: var(--soft); font-size: 14px } .fact dd { margin: 0 }
.fact .number { font-size: 27px; font-weight: 650; letter-spacing: -.01em; font-variant-numeric: tabular-nums }
.fact .who { font-weight: 600; overflow-wrap: anywhere } .fact .more { color: var(--soft); font-size: 14px }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(500px, 100%), 1fr)); gap: 18px;
  align-items: stretch }
figure { margin: 0; padding: 18px 20px 14px } figure svg { display: block; width: 100%; max-width: 800px; height: auto;
  margin: 10px auto 0 }
figcaption { color: var(--soft); font-size: 14px; margin-top: 6px } .message { margin: 0 }
.box { padding: 14px 20px } .box ul { margin: 0; padding-left: 20px }
.table { overflow-x: auto; margin-bottom: 16px } table { border-collapse: collapse; width: 100%; font-size: 14px }
th, td { padding: 6px 9px; text-align: left; border-bottom: 1px solid var(--rule); vertical-align: top }
thead th { color: var(--soft); font-weight: 600; vertical-align: bottom; white-space: nowrap }
tbody tr:last-child > * { border-bottom: 0 } tbody th { font-weight: 600; white-space: nowrap }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
td .spread { display: block; color: var(--soft); font-size: 12px } td.best { color: var(--good); font-weight: 650 }
tr.group th { background: var(--tint); color: var(--soft); font-weight: 600 } .none { color: var(--soft) }
caption { text-align: left; padding: 12px; color: var(--soft) }
dl.pairs { display: grid; grid-template-columns: max-content 1fr; gap: 4px 20px; margin: 0; font-size: 14px }
dl.pairs dt { color: var(--soft) } dl.pairs dd { margin: 0; overflow-wrap: anywhere }
.halves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr)); gap: 18px }
.swatch { display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 8px }
svg text { font-family: inherit; font-size: 12.5px; fill: var(--ink) }
svg .tick, svg .note, svg .axis { fill: var(--soft) } svg .axis, svg .group { font-size: 13px }
svg .group, svg .name { font-weight: 600 } svg .tick, svg .value { font-variant-numeric: tabular-nums }
svg .grid, svg .base, svg .leader { stroke: var(--rule); stroke-width: 1; fill: none } svg .base { stroke: var(--soft) }
svg .leader { stroke: var(--soft) }
svg .guide { stroke: var(--soft); stroke-width: 1.6; stroke-dasharray: 6 4; fill: none }
svg .line { stroke-width: 2.4; stroke-linejoin: round; fill: none } svg .interval { stroke-width: 1.4; fill: none }
svg .ink { stroke: var(--ink) } svg .dot { stroke: var(--card); stroke-width: 1.2 } svg .bar { rx: 2px }
svg .ridge { fill-opacity: .3; stroke-width: 1.6 } svg .quantile { stroke-width: 2.2 }
CLASSES
@media print { body { background: #fff; font-size: 12px } main, header, footer { max-width: none; padding: 0 }
  figure, .fact, .box, tr { break-inside: avoid } .plots { display: block } figure { margin-bottom: 14px }
  h2, h3 { break-after: avoid } .table { overflow: visible } table { font-size: 8px }
  th, td { padding: 3px 4px } td .spread { font-size: 7px } thead th, tbody th, td.n { white-space: normal } }
"""


@dataclasses.dataclass(frozen=True)
class Fact:
    """A number that stands at the top: what it is, the number, whose it is, and a line more."""

    title: str
    number: str
    who: str
    more: str = ""


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell of a table: its text, a smaller line below it, and whether it is the best of its kind."""

    text: str
    below: str = ""
    best: bool = False
    why: str = ""


@dataclasses.dataclass(frozen=True)
class TableRow:
    """A row: its name, a colour's number (None for none) and its cells. Without cells it heads a group of rows."""

    name: str
    cells: tuple[Cell, ...] = ()
    colour: int | None = None


def page(title: str, lead: str, body: Iterable[str], footer: str) -> str:
    """Return a whole HTML document.

    Args:
        title: of the document; plain text.
        lead: a line below it; plain text.
        body: finished HTML, section by section.
        footer: plain text.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>\n'
        # Whatever a name in the data may try, the page loads and runs nothing.
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}"/>\n'
        '<meta name="generator" content="pinnace"/>\n<link rel="icon" href="data:,"/>\n'
        f"<title>{escape(title)}</title>\n<style>{_style()}</style>\n</head>\n<body>\n"
        f'<header><h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p></header>\n'
        f"<main>\n{chr(10).join(part for part in body if part)}\n</main>\n"
        f"<footer><p>{escape(footer)}</p></footer>\n</body>\n</html>\n"
    )


def facts(items: Sequence[Fact]) -> str:
    """The numbers at the top."""
    if not items:
        return ""
    boxes = "".join(
        f'<div class="fact"><dt>{escape(one.title)}</dt><dd><div class="number">{escape(one.number)}</div>'
        f'<div class="who">{escape(one.who)}</div><div class="more">{escape(one.more)}</div></dd></div>'
        for one in items
    )
    return f'<dl class="facts">{boxes}</dl>'


def figures(plots: Iterable[Plot | LeftOut]) -> str:
    """Every plot as a figure, and a list of those that would be empty, with their reasons."""
    listed = list(plots)
    drawn = [plot for plot in listed if not isinstance(plot, LeftOut)]
    absent = [plot for plot in listed if isinstance(plot, LeftOut)]
    parts = [_figure(plot) for plot in drawn]
    text = f'<div class="plots">{"".join(parts)}</div>' if parts else ""
    if absent:
        items = "".join(f"<li>{escape(one.title)}: {escape(one.reason)}.</li>" for one in absent)
        text += f'<h2>Not drawn</h2><div class="box"><ul>{items}</ul></div>'
    return text


def table(name: str, heads: Sequence[str], rows: Sequence[TableRow], caption: str = "") -> str:
    """A table: the first head stands above the rows' names."""
    first, *others = heads
    top = f'<th scope="col">{escape(first)}</th>' + "".join(
        f'<th class="n" scope="col">{escape(h)}</th>' for h in others
    )
    lines = "".join(_line(row, len(heads)) for row in rows)
    said = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="table" role="region" tabindex="0" aria-label="{escape(name)}"><table>{said}<thead><tr>{top}</tr>'
        f"</thead><tbody>{lines}</tbody></table></div>"
    )


def pairs(items: Iterable[tuple[str, str]]) -> str:
    """Names and what they are."""
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in items if text)
    return f'<div class="box"><dl class="pairs">{listed}</dl></div>'


def section(title: str, *parts: str) -> str:
    """A heading and what stands below it; nothing where that is nothing."""
    return f"<section><h2>{escape(title)}</h2>{''.join(parts)}</section>" if any(parts) else ""


def bullets(items: Iterable[str]) -> str:
    """A list of sentences."""
    listed = "".join(f"<li>{escape(item)}</li>" for item in items)
    return f'<div class="box"><ul>{listed}</ul></div>' if listed else ""


def halves(*parts: str) -> str:
    """Parts beside each other where there is room."""
    return f'<div class="halves">{"".join(f"<div>{part}</div>" for part in parts if part)}</div>'


def _figure(plot: Plot) -> str:
    message = f'<p class="message">{escape(plot.message)}</p>' if plot.message else ""
    return (
        f'<figure id="{plot.key}"><h3>{escape(plot.title)}</h3>{message}{draw(plot)}'
        f"<figcaption>{escape(plot.caption)}</figcaption></figure>"
    )


def _line(row: TableRow, columns: int) -> str:
    if not row.cells:
        return f'<tr class="group"><th scope="rowgroup" colspan="{columns}">{escape(row.name)}</th></tr>'
    swatch = "" if row.colour is None else f'<span class="swatch b{row.colour % len(LIGHT)}"></span>'
    return f'<tr><th scope="row">{swatch}{escape(row.name)}</th>{"".join(map(_cell, row.cells))}</tr>'


def _cell(cell: Cell) -> str:
    kind = "n best" if cell.best else "n"
    why = f' title="{escape(cell.why)}"' if cell.why else ""
    if not cell.text:
        return f'<td class="{kind}"{why}><span class="none">–</span></td>'
    below = f'<span class="spread">{escape(cell.below)}</span>' if cell.below else ""
    return f'<td class="{kind}"{why}>{escape(cell.text)}{below}</td>'


def _style() -> str:
    def named(colours: Sequence[str]) -> str:
        return " ".join(f"--c{place}: {colour};" for place, colour in enumerate(colours))

    classes = "\n".join(
        f"svg .c{n}.line, svg .c{n}.ridge, svg .c{n}.quantile, svg .c{n} .interval {{ stroke: var(--c{n}) }} "
        f"svg .c{n}.bar, svg .c{n}.ridge, svg .c{n} .dot, svg .t{n} {{ fill: var(--c{n}) }} "
        f".b{n} {{ background: var(--c{n}) }}"
        for n in range(len(LIGHT))
    )
    return _STYLE.replace("LIGHT", named(LIGHT)).replace("DARK", named(_DARK)).replace("CLASSES", classes)
