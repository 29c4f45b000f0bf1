"""A benchmark's result as plots need it: colours by candidate, points by place, and the place that stands for all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from pinnace.bench.measures import LESS, MEASURES
from pinnace.bench.results import SCENARIOS, Candidate, Measure, Point, Result
from pinnace.units import digits, in_unit, scale_for

SINGLE: Final = "single-stream"
# The measure that says how much work is done, the first that a point has.
THROUGHPUT: Final = ("decode_tokens_per_s", "texts_per_s", "tokens_per_s")
# The same where one stream stands beside several, whose tokens are counted over another time.
THROUGHPUT_OF_STREAMS: Final = THROUGHPUT[1:]
_USUAL_LENGTH: Final = 128
_NEAR: Final = 0.05


class View:
    """A result, arranged.

    Args:
        result: with at least one candidate.

    Attributes:
        main: a point of the place that the most candidates have: the one by which they are compared. None where
            nothing was measured.
    """

    def __init__(self, result: Result) -> None:
        self.result = result
        self._colours = {candidate.name: place for place, candidate in enumerate(result.candidates)}
        counts = Counter(point.place for point in result.points)
        self.main: Point | None = min(
            result.points, key=lambda point: (-counts[point.place], *_unusual(point)), default=None
        )

    def colour(self, name: str) -> int:
        """The colour of a candidate, the same in all plots."""
        return self._colours[name]

    @property
    def measured(self) -> list[Candidate]:
        """Candidates that are not missing."""
        return [candidate for candidate in self.result.candidates if not candidate.missing]

    def places(self) -> list[list[Point]]:
        """Points that share a place, the main place first."""
        found: dict[tuple[object, ...], list[Point]] = {}
        for point in sorted(self.result.points, key=_ordinal):
            found.setdefault(point.place, []).append(point)
        rows = list(found.values())
        return sorted(rows, key=lambda points: self.main is not None and points[0].place != self.main.place)

    def at_main(self) -> list[Point]:
        """The points of the main place, in the candidates' order."""
        rows = self.places()
        return sorted(rows[0], key=lambda point: self.colour(point.candidate)) if rows else []

    def beside_main(self, *free: str) -> dict[str, list[Point]]:
        """Points that differ from the main place in the named fields alone, by candidate."""
        kept: dict[str, list[Point]] = {}
        fields = ("scenario", "batch", "length", "prompt", "output_tokens", "concurrency")
        for point in self.result.points:
            if all(getattr(point, field) == getattr(self.main, field) for field in fields if field not in free):
                kept.setdefault(point.candidate, []).append(point)
        return dict(sorted(kept.items(), key=lambda item: self.colour(item[0])))


def value(owner: Point | Candidate, *names: str) -> float | None:
    """The first of these measures that the point or candidate has a value of."""
    found = measure(owner, *names)
    return None if found is None else found.value


def measure(owner: Point | Candidate, *names: str) -> Measure | None:
    """The first of these measures that has a value."""
    return next((m for name in names if (m := owner.measures.get(name)) and m.value is not None), None)


def interval(found: Measure | None) -> tuple[float, float] | None:
    """The measure's interval, None where it has none."""
    if found is None or found.low is None or found.high is None:
        return None
    return found.low, found.high


def shown(name: str, found: Measure) -> str:
    """A measure for a reader: ``12.3 ms``."""
    return "" if found.value is None else in_unit(found.value, MEASURES[name].unit)


def spread(name: str, found: Measure) -> str:
    """Its interval for a reader, in the unit of the value: ``12.1–12.6``; empty where it has none."""
    ends = interval(found)
    if ends is None or found.value is None:
        return ""
    factor = scale_for(found.value, MEASURES[name].unit).factor
    return "–".join(digits(end * factor) for end in ends)


Known = tuple[str, Measure, float]  # whose it is, the measure, and its value


def ranked(name: str, rows: Iterable[tuple[str, Measure]]) -> tuple[list[Known], list[str]]:
    """Candidates from the best in a measure to the worst, and those that cannot be told from the best."""
    known = [(owner, m, m.value) for owner, m in rows if m.value is not None]
    ordered = sorted(known, key=lambda row: row[2], reverse=MEASURES[name].better != LESS)
    return ordered, [owner for owner, m, _ in ordered[1:] if _overlap(ordered[0][1], m)]


def comparison(name: str, rows: Iterable[tuple[str, Measure]]) -> str:
    """Say in a sentence which candidate is best in a measure, by how much, and whom it cannot be told from."""
    ordered, equal = ranked(name, rows)
    if not ordered:
        return ""
    best, first, _ = ordered[0]
    if len(ordered) == 1:
        return f"{best}: {shown(name, first)}."
    if len(equal) == len(ordered) - 1:
        return f"{shown(name, first)}; {listed([best, *equal])} cannot be told apart."
    verb = "lead" if equal else "leads"
    return f"{listed([best, *equal])} {verb} with {shown(name, first)}, {lead(name, ordered)}."


def lead(name: str, ordered: Sequence[Known]) -> str:
    """How far the best is ahead of the worst."""
    best, (worst, last, value) = ordered[0][2], ordered[-1]
    if min(best, value) <= 0:
        return f"{worst} has {shown(name, last)}"
    return f"{digits(max(best, value) / min(best, value))} times better than {worst} ({shown(name, last)})"


def listed(words: Iterable[str]) -> str:
    """Words in a row: ``a, b and c``."""
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def _overlap(one: Measure, other: Measure) -> bool:
    """Whether two measures cannot be told apart: their intervals overlap, or without those they are near."""
    a, b = interval(one), interval(other)
    if a is not None and b is not None:
        return a[0] <= b[1] and b[0] <= a[1]
    return abs((one.value or 0.0) - (other.value or 0.0)) <= _NEAR * abs(one.value or 0.0)


def _unusual(point: Point) -> tuple[float, ...]:
    """Sort key: single stream before the rest, small batches first, lengths near the usual one first."""
    tokens = point.length or point.prompt or _USUAL_LENGTH
    return (
        point.scenario != SINGLE,
        point.batch,
        point.concurrency,
        abs(tokens - _USUAL_LENGTH),
        point.output_tokens or 0,
    )


def _ordinal(point: Point) -> tuple[float | str, ...]:
    """Sort key of a table: by scenario, then by size."""
    sizes = (point.batch, point.concurrency, point.length, point.prompt, point.output_tokens)
    return (str(SCENARIOS.index(point.scenario)), *(size or 0 for size in sizes))
