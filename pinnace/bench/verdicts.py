"""Faster, slower or no difference: two candidates' rounds compared, with a confidence that noise cannot talk up.

Everything is done on logarithms of the rounds' values, so that a change is a factor.

1. Rounds of one run are compared pair by pair: a slow minute hits both. Rounds of two runs are compared as two groups,
   after the machine's own rates of the same rounds have explained what they can.
2. The change is the 20 % trimmed mean, its error Yuen's: a few rounds in which the machine was busy elsewhere do not
   move it.
3. Neighbouring rounds resemble each other, and so do rounds of one process. The interval is therefore the wider of
   two: of as many fewer rounds as their correlation says, and of the starts, with one degree of freedom less than
   there are starts. Fewer than three starts are not judged: they do not tell how much processes differ. Nor are
   fewer than five values: rounds, or starts where each gives one value.
4. A change is told only where it is certainly larger than the smallest effect that matters, and the level is shared
   among all that is judged (Holm): the whole comparison, and not each line of it, errs 1 time in 20.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from pinnace.bench.measures import LESS, MEASURES, START
from pinnace.bench.rate_search import PRECISION
from pinnace.bench.results import Candidate, Measure, Point, Result
from pinnace.bench.shifts import Shift, drawn_in, explained, shift_of_one, shift_of_two
from pinnace.errors import UsageError

FASTER, SLOWER, SAME = "faster", "slower", "no difference"
_OPEN: Final = "open"
LESS_WORD, MORE_WORD = "less", "more"
LEVEL: Final = 0.05
MIN_EFFECT: Final = 0.01
FEWEST_ROUNDS: Final = 5
FEWEST_STARTS: Final = 3
# A search ends anywhere within its last step: the standard deviation of a uniform distribution.
RATE_ERROR: Final = PRECISION / math.sqrt(12)
# What is judged; the other measures of a query's time say the same in other words, and would only dilute the level.
JUDGED: Final = (
    "latency_p50_s", "texts_per_s", "first_token_s", "inter_token_s", "highest_rate", "load_s", "settled_bytes",
)  # fmt: skip
# These follow from other measures: a throughput of single queries is the inverse of their time.
IMPLIED: Final = {"texts_per_s": "latency_p50_s"}
EXACT: Final = ("bundle_bytes", "install_bytes")


@dataclasses.dataclass(frozen=True)
class Row:
    """One judged measure.

    Attributes:
        candidate: name of the second; ``other`` that of the first.
        place: of the sweep, in words; empty for a measure of the whole candidate.
        measure: its name.
        before, after: values of the first and the second.
        change: how much worse the second is, as a share: 0.1 is a tenth slower, -0.1 a tenth faster.
        low, high: its 95 % interval; None where it was not judged.
        verdict: `FASTER`, `SLOWER`, `SAME`, for sizes ``less`` and ``more``, or why it was not judged.
        chance: how likely noise alone shows as much; 1 minus it is the confidence.
        paired: whether the rounds were those of one run.
    """

    candidate: str
    other: str
    place: str
    measure: str
    before: float
    after: float
    change: float
    low: float | None
    high: float | None
    verdict: str
    chance: float
    paired: bool

    @property
    def worse(self) -> bool:
        """Whether the second is worse with confidence."""
        return self.verdict in (SLOWER, MORE_WORD)

    @property
    def better(self) -> bool:
        """Whether the second is better with confidence."""
        return self.verdict in (FASTER, LESS_WORD)


@dataclasses.dataclass(frozen=True)
class Pair:
    """A measure of both, before it is judged; ``before_limits`` and ``after_limits`` are the machine's own rates."""

    candidate: str
    other: str
    place: str
    measure: str
    before: Measure
    after: Measure
    before_limits: Sequence[Sequence[float]]
    after_limits: Sequence[Sequence[float]]
    starts: tuple[int, int]
    paired: bool


def judge(first: Result, second: Result, min_effect: float = MIN_EFFECT) -> list[Row]:
    """Compare all that two results share: candidates of the same name, at the same places.

    Args:
        first, second: the results before and after.
        min_effect: share below which a change does not matter.

    Raises:
        UsageError: they share nothing.
    """
    pairs = list(_shared(first, second))
    if not pairs:
        raise UsageError(
            "the two results have no candidate and place in common.\n"
            f"  first: {', '.join(c.name for c in first.candidates)}; "
            f"second: {', '.join(c.name for c in second.candidates)}"
        )
    return judge_pairs(pairs, min_effect)


def judge_pairs(pairs: Sequence[Pair], min_effect: float = MIN_EFFECT) -> list[Row]:
    """Judge measures that were brought together, at a level that they share."""
    rows = [_row(pair, min_effect) for pair in pairs]
    open_rows = sorted((row for row in rows if row.verdict == _OPEN), key=lambda row: row.chance)
    verdicts: dict[int, str] = {}
    for place, row in enumerate(open_rows):
        if row.chance > LEVEL / (len(open_rows) - place):
            break  # Holm: what is less certain than this is not told either
        verdicts[id(row)] = _words(row.measure)[row.change > 0]
    return [
        dataclasses.replace(row, verdict=verdicts.get(id(row), SAME)) if row.verdict == _OPEN else row for row in rows
    ]


def pair_up(first: tuple[Result, Candidate], second: tuple[Result, Candidate]) -> Iterator[Pair]:
    """Bring the judged measures of two candidates together, of one result or of two."""
    (result, candidate), (later, other) = first, second
    # The same rounds are those of one run; starts are then paired too.
    paired = result.run == later.run
    starts = (result.settings.starts, later.settings.starts)
    common = (other.name, candidate.name)
    for name in (*JUDGED, *EXACT):
        if name in candidate.measures and name in other.measures:
            before, after = candidate.measures[name], other.measures[name]
            if before.value is not None and after.value is not None:
                yield Pair(*common, "", name, before, after, (), (), starts, paired)
    places = {point.place: point for point in later.points if point.candidate == other.name}
    limits = [_rates(result, candidate), _rates(later, other)]
    for point in result.points:
        if point.candidate != candidate.name or point.place not in places:
            continue
        for name, before, after in _measures(point, places[point.place]):
            yield Pair(*common, point.label, name, before, after, limits[0], limits[1], starts, paired)


def _measures(point: Point, other: Point) -> Iterator[tuple[str, Measure, Measure]]:
    for name in JUDGED:
        before, after = point.measures.get(name), other.measures.get(name)
        if IMPLIED.get(name) in point.measures or before is None or after is None:
            continue
        if before.value is not None and after.value is not None:
            yield name, before, after


def _rates(result: Result, candidate: Candidate) -> tuple[tuple[float, ...], ...]:
    limit = result.limit(candidate.threads)
    return (limit.gemm_blocks, limit.memory_blocks) if limit is not None and candidate.device == "cpu" else ()


def _shared(first: Result, second: Result) -> Iterator[Pair]:
    later = {candidate.name: candidate for candidate in second.candidates}
    for candidate in first.candidates:
        if candidate.name in later:
            yield from pair_up((first, candidate), (second, later[candidate.name]))


def _words(measure: str) -> tuple[str, str]:
    """What better and worse are called."""
    return (FASTER, SLOWER) if MEASURES[measure].unit != "bytes" else (LESS_WORD, MORE_WORD)


def _row(pair: Pair, min_effect: float) -> Row:
    before, after = pair.before.value, pair.after.value
    assert before is not None
    assert after is not None
    sign = 1.0 if MEASURES[pair.measure].better == LESS else -1.0
    plain = math.expm1(sign * math.log(after / before)) if before > 0 and after > 0 else 0.0

    def row(change: float, low: float | None, high: float | None, verdict: str, chance: float) -> Row:
        facts = (pair.candidate, pair.other, pair.place, pair.measure, before, after)
        return Row(*facts, change, low, high, verdict, chance, pair.paired)

    if pair.measure in EXACT:
        verdict = SAME if abs(plain) <= min_effect else _words(pair.measure)[plain > 0]
        return row(plain, plain, plain, verdict, 0.0)
    if too_few := _too_few(pair):
        return row(plain, None, None, f"not judged: {too_few}", 1.0)
    shift = shift_of(pair, sign)
    low, high = shift.interval(LEVEL)
    chance = shift.chance(math.log1p(min_effect))
    return row(math.expm1(shift.value), math.expm1(low), math.expm1(high), _OPEN, chance)


def shift_of(pair: Pair, sign: float = 1.0) -> Shift:
    """The change of the second against the first; ``sign`` is -1 where more is better."""
    measures = zip((pair.before, pair.after), pair.starts, strict=True)
    before, after = (drawn_in(sign * np.log(np.array(m.blocks)), starts) for m, starts in measures)
    if pair.paired and len(before) == len(after):
        shift = shift_of_one(drawn_in(after - before, pair.starts[0]), pair.starts[0])
    else:
        before, after, unexplained = explained(before, after, pair.before_limits, pair.after_limits)
        shift = shift_of_two(before, after, pair.starts, unexplained)
    if pair.measure == "highest_rate":
        shift = dataclasses.replace(shift, error=math.hypot(shift.error, RATE_ERROR))
    return shift


def once_a_start(measure: str) -> bool:
    """Whether each fresh process gives one value of a measure, or none."""
    return measure in START or measure == "highest_rate"


def _too_few(pair: Pair) -> str:
    """What there is too little of to judge, in words; empty where there is enough."""
    starts, values = min(pair.starts), min(len(pair.before.blocks), len(pair.after.blocks))
    if once_a_start(pair.measure):
        return "" if values >= FEWEST_ROUNDS else f"values of {_counted(values, 'start')}, needs {FEWEST_ROUNDS}"
    if starts < FEWEST_STARTS:
        return f"{_counted(starts, 'start')}, needs {FEWEST_STARTS}"
    return "" if values >= FEWEST_ROUNDS else f"{_counted(values, 'round')}, needs {FEWEST_ROUNDS}"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"
