"""Make a scheme pass its gate: the weights that lose most are kept nearer to fp32, as few of them as it takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Final

from pinnace.quantize.recipe import KEEP, TIED, Recipe
from pinnace.quantize.schemes import Scheme
from pinnace.quantize.workshop import UNJUDGED, Candidate, Workshop

NAMED: Final = 5  # weights that a miss names


@dataclasses.dataclass(frozen=True)
class Attempt:
    """The best that a scheme reached, and the weights that lose most, worst first; empty where nobody asked."""

    candidate: Candidate
    worst: tuple[str, ...]


def satisfy(workshop: Workshop, scheme: Scheme, recipe: Recipe) -> Attempt:
    """Judge a recipe, and relieve as few of its weights as the gate needs.

    The effect of each weight alone orders them. For each way of relief, from the cheapest, all weights are tried; where
    that passes, bisection finds how few of the worst suffice.

    Args:
        workshop: makes and judges.
        scheme: names the ways of relief.
        recipe: what the scheme begins with.

    Returns:
        A candidate that passes, or the last one, which does not; its ``miss`` tells.
    """

    def make(tried: Recipe) -> Candidate:
        made = workshop.make(scheme.name, scheme.precision, tried)
        relieved = sum(tried.groups[g] != recipe.groups[g] for g in recipe.groups)
        relieved += sum(tried.tables[t] != recipe.tables[t] for t in recipe.tables)
        workshop.say(f"{scheme.name}, {relieved} relieved: {made.miss or 'passes'}")
        return made

    best = make(recipe)
    ways = (*recipe.groups.items(), *recipe.tables.items())
    changing = list(dict.fromkeys(name for name, way in ways if way != KEEP))  # a tied weight is in both
    if not best.miss or best.miss == UNJUDGED or not changing:
        return Attempt(best, ())
    order = tuple(workshop.effects(scheme.name, recipe, changing))
    base = recipe
    for way in scheme.relief:

        def relieve(count: int, base: Recipe = base, way: str = way) -> Recipe:
            return _relieved(base, order[:count], way)

        whole = make(relieve(len(order)))
        if whole.miss:
            best, base = whole, relieve(len(order))
            continue
        return Attempt(_fewest(make, relieve, whole, len(order)), order[:NAMED])
    return Attempt(best, order[:NAMED])


def _relieved(recipe: Recipe, names: Sequence[str], way: str) -> Recipe:
    """The recipe with some projections gone to a way of relief, and some tables as they are."""
    # A tied table goes where its projection goes.
    tables = {t: KEEP if t in names and old != TIED else old for t, old in recipe.tables.items()}
    return dataclasses.replace(recipe.changed(names, way), tables=tables)


def _fewest(
    make: Callable[[Recipe], Candidate], relieve: Callable[[int], Recipe], whole: Candidate, most: int
) -> Candidate:
    """The candidate that relieves the fewest weights and passes, between none, which fails, and all, which pass."""
    low, high, best = 0, most, whole
    while high - low > 1:
        middle = (low + high) // 2 if high < most else max(low + 1, most // 4)
        tried = make(relieve(middle))
        if tried.miss:
            low = middle
        else:
            high, best = middle, tried
    return best
