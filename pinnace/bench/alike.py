"""Whether two results may be compared: only where nothing but the program or the model differs."""

from __future__ import annotations

from pinnace.bench.results import Result

_MACHINE = ("processor", "features", "system", "cpus", "quota", "memory_bytes")
_SETTINGS = ("task", "scenarios", "inputs", "seed", "latency_bound_s", "percentile", "pinned")


def differences(first: Result, second: Result) -> list[str]:
    """Name every field in which two runs are unlike, with both values; versions and models may differ."""
    found = []
    for part, names in (("machine", _MACHINE), ("settings", _SETTINGS)):
        for name in names:
            one, other = getattr(getattr(first, part), name), getattr(getattr(second, part), name)
            if one != other:
                found.append(f"{part}.{name}: {_said(one)} and {_said(other)}")
    for name, one, other in (
        ("threads", _threads(first), _threads(second)),
        ("devices", _devices(first), _devices(second)),
        ("places", _places(first), _places(second)),
    ):
        if one != other:
            found.append(f"{name}: {'; '.join(sorted(one))} and {'; '.join(sorted(other))}")
    return found


def _said(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _threads(result: Result) -> set[str]:
    return {str(candidate.threads) for candidate in result.candidates if not candidate.missing}


def _devices(result: Result) -> set[str]:
    return {candidate.device for candidate in result.candidates if not candidate.missing}


def _places(result: Result) -> set[str]:
    return {point.label for point in result.points}
