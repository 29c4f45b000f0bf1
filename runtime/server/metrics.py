"""Counts of a service in Prometheus's text format."""

from __future__ import annotations

import bisect
import collections
import itertools
from collections.abc import Iterable, Mapping
from typing import Final, TypeAlias

Labels: TypeAlias = Mapping[str, str]
_Key: TypeAlias = tuple[tuple[str, str], ...]

BOUNDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Upper bounds of the latency histogram, in seconds."""


class Counter:
    """Numbers that only grow, one for each set of labels. For one thread at a time.

    Args:
        name: as Prometheus shows it.
        about: one sentence without its full stop.
    """

    def __init__(self, name: str, about: str) -> None:
        self.name, self.about = name, about
        self._values: collections.Counter[_Key] = collections.Counter()

    def add(self, count: int, **labels: str) -> None:
        """Add to the number of these labels; adding 0 makes it appear."""
        self._values[tuple(labels.items())] += count

    def lines(self) -> list[str]:
        """The metric as text."""
        return _render(self.name, "counter", self.about, ((dict(key), value) for key, value in self._values.items()))


class Histogram:
    """How often a time fell below each of `BOUNDS`, for each set of labels. For one thread at a time.

    Args:
        name: as Prometheus shows it.
        about: one sentence without its full stop.
    """

    def __init__(self, name: str, about: str) -> None:
        self.name, self.about = name, about
        self._counts: dict[_Key, list[int]] = {}
        self._sums: collections.Counter[_Key] = collections.Counter()

    def add(self, seconds: float, **labels: str) -> None:
        """Count one time."""
        key = tuple(labels.items())
        self._counts.setdefault(key, [0] * (len(BOUNDS) + 1))[bisect.bisect_left(BOUNDS, seconds)] += 1
        self._sums[key] += seconds  # type: ignore[assignment]  # Counter is typed for whole numbers only

    def lines(self) -> list[str]:
        """The metric as text."""
        lines = [f"# HELP {self.name} {self.about}", f"# TYPE {self.name} histogram"]
        for key, counts in self._counts.items():
            labels = dict(key)
            below = list(itertools.accumulate(counts))
            for bound, count in zip([*map(str, BOUNDS), "+Inf"], below, strict=True):
                lines.append(f"{self.name}_bucket{_shown({**labels, 'le': bound})} {count}")
            lines.append(f"{self.name}_sum{_shown(labels)} {self._sums[key]:.6f}")
            lines.append(f"{self.name}_count{_shown(labels)} {below[-1]}")
        return lines


class Metrics:
    """All that a service counts.

    Args:
        models: names of its models; their counts appear from the beginning.
    """

    def __init__(self, models: Iterable[str] = ()) -> None:
        self.requests = Counter("pinnace_requests_total", "Requests by route, model and status; 499: the client left")
        self.seconds = Histogram("pinnace_request_seconds", "Time from a request's arrival to the end of its answer")
        self.tokens_in = Counter("pinnace_tokens_in_total", "Tokens that requests gave to a model")
        self.tokens_out = Counter("pinnace_tokens_out_total", "Tokens that a model generated")
        self.numerical_errors = Counter(
            "pinnace_numerical_errors_total", "Requests without an answer because of NaN, infinity or no possible token"
        )
        for model in models:
            for counter in (self.tokens_in, self.tokens_out, self.numerical_errors):
                counter.add(0, model=model)

    def text(self, gauges: Iterable[tuple[str, str, Mapping[str, int]]]) -> str:
        """Everything, as Prometheus reads it.

        Args:
            gauges: name, meaning and value by model of what is measured now.
        """
        counted = (self.requests, self.seconds, self.tokens_in, self.tokens_out, self.numerical_errors)
        lines = [line for metric in counted for line in metric.lines()]
        for name, about, values in gauges:
            lines += _render(name, "gauge", about, (({"model": model}, value) for model, value in values.items()))
        return "\n".join([*lines, ""])


def _render(name: str, kind: str, about: str, values: Iterable[tuple[Labels, int]]) -> list[str]:
    """One metric as text."""
    return [f"# HELP {name} {about}", f"# TYPE {name} {kind}", *(f"{name}{_shown(labels)} {v}" for labels, v in values)]


def _shown(labels: Labels) -> str:
    escaped = {
        name: value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n") for name, value in labels.items()
    }
    return "{" + ",".join(f'{name}="{value}"' for name, value in escaped.items()) + "}" if labels else ""
