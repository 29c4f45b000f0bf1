"""Comparing runs: no difference where there is none, however the machine drifts, and a planted slow-down is found."""

from __future__ import annotations

import math
import random as random_numbers
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from pinnace.bench.rate_search import search_from
from pinnace.bench.results import Measure
from pinnace.bench.shifts import effective_share, t_probability, t_quantile, trimmed_mean
from pinnace.bench.verdicts import MORE_WORD, SAME, SLOWER, Pair, Row, judge_pairs

ROUNDS, STARTS, TRIALS = 20, 5, 200
Array = np.ndarray[Any, np.dtype[np.float64]]


def drifting(random: np.random.Generator) -> Array:
    """How slow a shared machine is in each round, as a logarithm: a trend, and noise that lasts for some rounds."""
    noise = random.normal(0, 0.04, ROUNDS)
    for place in range(1, ROUNDS):
        noise[place] = 0.6 * noise[place - 1] + 0.8 * noise[place]
    trend: Array = noise + np.linspace(0, random.normal(0, 0.08), ROUNDS) + random.normal(0, 0.04)
    return trend


def measured(random: np.random.Generator, machine: Array, factor: float) -> Measure:
    """Times of a program on that machine: its own noise, that of each start, and rounds in which something else ran."""
    times = machine + random.normal(0, 0.02, ROUNDS) + np.repeat(random.normal(0, 0.01, STARTS), ROUNDS // STARTS)
    times += (random.random(ROUNDS) < 0.08) * random.exponential(0.5, ROUNDS)
    blocks = tuple(float(value) for value in 0.01 * factor * np.exp(times))
    return Measure(float(np.median(blocks)), blocks=blocks)


def rates(random: np.random.Generator, machine: Array) -> tuple[Sequence[float], Sequence[float]]:
    """What the machine itself reaches: its multiplication slows down as programs do, its memory does not."""
    return list(1e11 * np.exp(random.normal(0, 0.02, ROUNDS) - machine)), list(
        1e10 * np.exp(random.normal(0, 0.03, ROUNDS))
    )


def runs(factor: float, *, one_run: bool, measures: int = 1, seed: int = 0) -> list[list[Row]]:
    """Simulated comparisons of a program with itself, made slower by a factor."""
    random, found = np.random.default_rng(seed), []
    for _ in range(TRIALS):
        before = drifting(random)
        after = before if one_run else drifting(random)
        pairs = [
            Pair(
                "a", "a", str(place), "latency_p50_s", measured(random, before, 1), measured(random, after, factor),
                rates(random, before), rates(random, after), (STARTS, STARTS), one_run,
            )
            for place in range(measures)
        ]  # fmt: skip
        found.append(judge_pairs(pairs))
    return found


@pytest.mark.parametrize("one_run", [True, False])
@pytest.mark.parametrize("measures", [1, 4])
def test_a_program_does_not_differ_from_itself(one_run: bool, measures: int) -> None:
    """A comparison errs in any of its lines at most 1 time in 20."""
    alarms = sum(any(row.verdict != SAME for row in rows) for rows in runs(1.0, one_run=one_run, measures=measures))
    assert alarms <= 0.05 * TRIALS


@pytest.mark.parametrize("measures", [1, 4])
def test_a_tenth_slower_is_found_in_one_run(measures: int) -> None:
    found = [rows[0] for rows in runs(1.1, one_run=True, measures=measures, seed=1)]
    hits = [row for row in found if row.verdict == SLOWER and row.change > 0.05]
    assert len(hits) >= 0.95 * TRIALS
    assert np.median([row.change for row in hits]) == pytest.approx(0.1, abs=0.02)


def test_a_fifth_slower_is_found_at_another_time() -> None:
    """The machine itself may have changed between two runs, so that less certainty is left."""
    found = [rows[0] for rows in runs(1.2, one_run=False, seed=2)]
    assert sum(row.verdict == SLOWER for row in found) >= 0.9 * TRIALS


def test_a_rate_is_worse_where_it_falls() -> None:
    random = np.random.default_rng(3)
    before = tuple(float(v) for v in random.normal(100, 1, ROUNDS))
    after = tuple(0.8 * v for v in before)
    pair = Pair(
        "a", "a", "", "texts_per_s", Measure(100, blocks=before), Measure(80, blocks=after),
        (), (), (STARTS, STARTS), True,
    )  # fmt: skip
    (row,) = judge_pairs([pair])
    assert (row.verdict, row.worse) == (SLOWER, True)
    assert row.change == pytest.approx(0.25)
    (same,) = judge_pairs([Pair(**{**vars(pair), "after": pair.before})])
    assert same.verdict == SAME


def test_sizes_are_exact_and_few_rounds_are_not_judged() -> None:
    def pair(name: str, before: Measure, after: Measure) -> Pair:
        return Pair("a", "a", "", name, before, after, (), (), (STARTS, STARTS), False)

    few = Measure(1.0, blocks=(1.0, 1.0))
    size, time = judge_pairs([pair("bundle_bytes", Measure(100.0), Measure(110.0)), pair("latency_p50_s", few, few)])
    assert (size.verdict, size.worse) == (MORE_WORD, True)
    assert size.change == pytest.approx(0.1)
    assert time.verdict == "not judged: 2 rounds, needs 5"


def processes(random: np.random.Generator, starts: int, spread: float) -> Measure:
    """Times of a program whose processes differ by so much, as a logarithm, and whose rounds hardly do."""
    parts = np.array_split(np.arange(ROUNDS), starts)
    levels = np.concatenate([np.full(len(part), random.normal(0, spread)) for part in parts])
    blocks = tuple(float(value) for value in np.exp(levels + random.normal(0, 0.005, ROUNDS)))
    return Measure(float(np.median(blocks)), blocks=blocks)


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("starts", [3, 5])
def test_processes_that_differ_are_no_difference_of_programs(starts: int, paired: bool) -> None:
    random, alarms = np.random.default_rng(4), 0
    for _ in range(TRIALS):
        before, after = (processes(random, starts, 0.05) for _ in range(2))
        (row,) = judge_pairs(
            [Pair("a", "a", "", "latency_p50_s", before, after, (), (), (starts, starts), paired)], min_effect=0.0
        )
        alarms += row.worse or row.better
    assert alarms <= 0.07 * TRIALS


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize(("starts", "said"), [((1, 1), "1 start"), ((2, 5), "2 starts")])
def test_few_starts_are_not_judged(starts: tuple[int, int], said: str, paired: bool) -> None:
    random = np.random.default_rng(5)
    before, after = (processes(random, 1, 0.05) for _ in range(2))
    (row,) = judge_pairs([Pair("a", "a", "", "latency_p50_s", before, after, (), (), starts, paired)])
    assert (row.verdict, row.low, row.chance) == (f"not judged: {said}, needs 3", None, 1.0)


@pytest.mark.parametrize("measure", ["load_s", "settled_bytes", "highest_rate"])
@pytest.mark.parametrize(("starts", "said"), [(1, "1 start"), (3, "3 starts")])
def test_what_a_start_gives_once_is_counted_in_starts(measure: str, starts: int, said: str) -> None:
    """More rounds would not give more of these values."""
    few = Measure(1.0, blocks=(1.0,) * starts)
    (row,) = judge_pairs([Pair("a", "a", "", measure, few, few, (), (), (starts, starts), True)])
    assert (row.verdict, row.low) == (f"not judged: values of {said}, needs 5", None)


def rates_found(highest: float, noise: float, seed: str) -> Measure:
    """What the searches of some starts find, each start and each trial being a little off."""
    found: list[float] = []
    for start in range(STARTS):
        draw = random_numbers.Random(f"{seed}/{start}")
        here = highest * math.exp(draw.gauss(0, noise))
        search = search_from(100 * math.exp(draw.gauss(0, 0.05)), found, draw)
        while not search.done:
            search.tell(search.rate <= here * math.exp(draw.gauss(0, noise)))
        assert search.found is not None
        found.append(search.found)
    return Measure(float(np.median(found)), blocks=tuple(found))


@pytest.mark.parametrize("noise", [0.0, 0.005, 0.02])
@pytest.mark.parametrize("factor", [1.0, 0.85])
def test_rates_that_were_searched(noise: float, factor: float) -> None:
    """Searches of one program end at unlike rates, but do not differ; a rate of 15 % less does."""
    told = 0
    for trial in range(TRIALS):
        before, after = rates_found(90, noise, f"a{trial}"), rates_found(90 * factor, noise, f"b{trial}")
        (row,) = judge_pairs(
            [Pair("a", "a", "", "highest_rate", before, after, (), (), (STARTS, STARTS), True)], min_effect=0.0
        )
        told += row.worse or row.better
    assert told <= 0.07 * TRIALS if factor == 1 else told >= 0.85 * TRIALS


def test_statistics() -> None:
    assert t_quantile(0.975, 10) == pytest.approx(2.228139, abs=1e-5)  # of printed tables
    assert t_quantile(0.95, 3) == pytest.approx(2.353363, abs=1e-5)
    assert t_probability(-1.0, 1) == pytest.approx(0.25, abs=1e-6)  # Cauchy's: 1/2 - atan(1)/pi
    assert t_probability(math.inf, 5) == 1.0
    assert trimmed_mean(np.array([1.0, 2, 3, 4, 1000])) == 3.0
    random = np.random.default_rng(0)
    assert effective_share(random.normal(size=200)) > 0.7
    assert effective_share(np.cumsum(random.normal(size=200))) < 0.2
