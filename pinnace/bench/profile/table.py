"""A profile as one table for a terminal: by layer, by part of the model, by operator; each section is the whole run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from pinnace.bench.profile.records import NOT_LAYERS, Cost, Phase, Profile, group
from pinnace.units import digits, in_unit

HEADS: Final = ("share", "ms a run", "calls", "GFLOP/s", "of GEMM", "of memory")
# Rows below this share of a run are one row, but for those of layers.
_SMALL: Final = 0.002
_REST: Final = "smaller ones"
# A profiler that costs this share of a run distorts it.
_MUCH: Final = 0.25
SECTIONS: Final[Mapping[str, Callable[[Cost], str]]] = {
    "by layer": lambda cost: cost.layer,
    "by part": lambda cost: cost.place,
    "by operator": lambda cost: cost.operator,
}


def render(profile: Profile) -> str:
    """Return the table, with what was run above it and what to know below it."""
    return "\n\n".join("\n".join(_phase(profile, phase)) for phase in profile.phases)


def headline(profile: Profile, phase: Phase) -> list[str]:
    """What was run, how long it takes, and what the profiler adds."""
    sizes = ", ".join(f"{name.replace('_', ' ')} {size}" for name, size in profile.sizes.items())
    threads = f"{profile.threads} thread{'s' * (profile.threads > 1)}"
    kind = {"prompt": "the prompt: ", "step": "one step: "}.get(phase.name, "")
    return [
        f"{profile.bundle} {profile.precision}, {sizes}, {threads}",
        f"{kind}{in_unit(phase.plain_seconds, 's')} a run, {in_unit(phase.seconds, 's')} under the profiler, "
        f"which adds {in_unit(phase.overhead, '')} (middle half of {phase.runs} runs)",
    ]


def notes(profile: Profile, phase: Phase) -> list[str]:
    """What to know before reading the numbers."""
    found = []
    if phase.overhead > _MUCH:
        found.append(
            "The nodes are so short that the profiler costs much beside them, most of it between nodes: "
            "read the shares of nodes beside each other, not the times."
        )
    if profile.gemm_flops and profile.memory_bytes_s:
        found.append(
            f"GEMM: {in_unit(profile.gemm_flops, 'FLOP/s')}, the fastest large fp32 multiplication measured here. "
            f"Memory: {in_unit(profile.memory_bytes_s, 'bytes/s')} read; above 100 % the weights come from a cache."
        )
    if not profile.fused:
        found.append("ONNX Runtime's own graph could not be read: what it renamed stands outside the model.")
    if phase.outside:
        kinds = ", ".join(f"{kind} x{count}" for kind, count in phase.outside.items())
        found.append(f"outside the model: {kinds}")
    present = {cost.layer for cost in phase.costs}
    return [*found, *(f"{name}: {meaning}" for name, meaning in NOT_LAYERS.items() if name in present)]


def rows(profile: Profile, phase: Phase) -> Iterator[tuple[str, list[tuple[str, list[str]]]]]:
    """Yield each section's name and its rows: a name and its cells, in the order of `HEADS`."""
    for title, key in SECTIONS.items():
        groups = group(phase.costs, key)
        if title != "by layer":
            groups = _without_small(groups, phase)
        yield title, [(name, cells(profile, phase, cost)) for name, cost in groups.items()]


def cells(profile: Profile, phase: Phase, cost: Cost) -> list[str]:
    """The numbers of a row, in the order of `HEADS`; what does not apply is empty."""
    rate = cost.flops / cost.seconds if cost.flops and cost.seconds > 0 else 0.0
    read = cost.weight_bytes / cost.seconds if cost.weight_bytes and cost.seconds > 0 else 0.0
    return [
        in_unit(cost.seconds / phase.seconds, ""),
        f"{cost.seconds * 1e3:.3f}",
        f"{cost.calls:.0f}" if cost.calls else "",
        digits(rate / 1e9) if rate else "",
        f"{rate / profile.gemm_flops * 100:.0f} %" if rate and profile.gemm_flops else "",
        f"{read / profile.memory_bytes_s * 100:.0f} %" if read and profile.memory_bytes_s else "",
    ]


def _without_small(groups: Mapping[str, Cost], phase: Phase) -> dict[str, Cost]:
    """Largest first, the small ones added up; what is no part of the model stands last."""
    small = {n for n, c in groups.items() if c.seconds < _SMALL * phase.seconds and n not in NOT_LAYERS}
    rest = [cost for name, cost in groups.items() if name in small]
    kept = sorted(
        ((name, cost) for name, cost in groups.items() if name not in small),
        key=lambda item: (item[0] in NOT_LAYERS, -item[1].seconds),
    )
    model = {name: cost for name, cost in kept if name not in NOT_LAYERS}
    if rest:
        model |= group(rest, lambda _cost: f"{_REST} ({len(rest)})")
    return model | {name: cost for name, cost in kept if name in NOT_LAYERS}


def _phase(profile: Profile, phase: Phase) -> Iterator[str]:
    yield from headline(profile, phase)
    sections = list(rows(profile, phase))
    total = group(phase.costs, lambda _cost: "all")["all"]
    wide = max(len(name) for _, listed in sections for name, _ in listed)
    for title, listed in sections:
        yield ""
        yield _line(title, HEADS, wide)
        for name, values in listed:
            yield _line(f"  {name}", values, wide)
    yield ""
    yield _line("a run", cells(profile, phase, total), wide)
    yield ""
    yield from notes(profile, phase)


def _line(name: str, values: Sequence[str], wide: int) -> str:
    columns = "".join(f"{value:>{max(9, len(head) + 2)}}" for head, value in zip(HEADS, values, strict=True))
    return f"{name:<{wide + 2}}{columns}".rstrip()
