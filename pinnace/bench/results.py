"""The result of a benchmark as frozen records, and the same as JSON: the schema that ``docs/bench.md`` describes.

All values are in base units: seconds, bytes, FLOP/s, bytes/s, joules, shares of one.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pinnace.bench.conditions import Limit as Limit
from pinnace.bench.conditions import Machine as Machine
from pinnace.bench.conditions import Settings as Settings
from pinnace.errors import UsageError
from pinnace.records import build

RESULTS_FORMAT: Final = 1
SCENARIOS: Final = ("single-stream", "offline", "server")
MAX_SAMPLES: Final = 2000
FEWEST_ROWS: Final = 20  # a share of fewer rows is one or two of them, whatever its digits
MAX_BYTES: Final = 256 << 20


@dataclasses.dataclass(frozen=True)
class Measure:
    """One measured quantity; its unit and sense are those of its name in `pinnace.bench.measures.MEASURES`.

    Attributes:
        value: None where it is absent.
        low, high: 95 % bootstrap interval; None where there is none (one value only).
        blocks: the value of each round (or of each start), in order: what `compare` judges.
        absent: why there is no value; empty where there is one.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    blocks: tuple[float, ...] = ()
    absent: str = ""


@dataclasses.dataclass(frozen=True)
class Samples:
    """Single times of one kind, in seconds.

    Attributes:
        count: how many were measured.
        values: these, sorted; where there were more than `MAX_SAMPLES`, as many quantiles at even distances, the
            least and the most among them.
    """

    count: int
    values: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """How a candidate's outputs differ from those of the reference on the same inputs, compared after the clock.

    Attributes:
        reference: the name of the candidate that was compared with; its own name where it is the reference.
        rows: vectors compared.
        cosine_mean, cosine_min: between the vectors of a row; None for a generator's tokens.
        top1: share of rows whose largest entry, or new token, is the same.
        max_abs: largest difference of a number; None for tokens.
        metric: name of the task's metric on given data, such as ``f1``; empty without data.
        value: the metric, larger is better; None where the variant gave NaN or infinity.
        reference_value: the metric of the bundle's fp32 variant.
        data: what the metric was measured on, in words.
    """

    reference: str
    rows: int
    cosine_mean: float | None
    cosine_min: float | None
    top1: float | None
    max_abs: float | None
    metric: str = ""
    value: float | None = None
    reference_value: float | None = None
    data: str = ""

    @property
    def shown_top1(self) -> float | None:
        """``top1`` where it is of `FEWEST_ROWS` rows or more: what tables, plots and reports show."""
        return self.top1 if self.rows >= FEWEST_ROWS else None

    @property
    def no_top1(self) -> str:
        """Why ``top1`` is not shown; empty where it is, or where there is none."""
        if self.top1 is None or self.shown_top1 is not None:
            return ""
        return f"{self.rows} row{'s' * (self.rows != 1)} compared, a top-1 needs {FEWEST_ROWS}"


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One program with one model, variant, device and number of threads: a process of its own.

    Attributes:
        name: unique in the result, and short: what tables and plots show.
        program: ``pinnace`` or a peer, such as ``transformers``.
        model: name of the bundle's or checkpoint's folder, without its path.
        precision: ``fp32``, ``fp16``, ``int8`` or ``int4``.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        threads: of one run.
        versions: of the program and its packages.
        missing: why it was not measured, empty where it was: a peer that is not installed, a failed start.
        measures: by the names of `measures.START`.
        accuracy: None where nothing could be compared.
    """

    name: str
    program: str
    model: str
    precision: str
    device: str
    threads: int
    versions: dict[str, str]
    missing: str = ""
    measures: dict[str, Measure] = dataclasses.field(default_factory=dict)
    accuracy: Accuracy | None = None


@dataclasses.dataclass(frozen=True)
class QueryWork:
    """What one query costs, counted from the graph and its inputs; None in `Point` where the graph is not ours.

    Attributes:
        flops: of matrix multiplications, two for each multiplied and added number. For a generator: of the prompt.
        bytes: weights read at least once. For a generator: weights, keys and values that one new token reads.
        tokens: of one query, padding not counted; for a generator those of the prompt.
    """

    flops: float
    bytes: float
    tokens: int


@dataclasses.dataclass(frozen=True)
class RatePoint:
    """One rate of arrivals that the server scenario tried.

    Attributes:
        rate: queries/s asked for, all in all.
        achieved: queries/s answered.
        latency_s: time from arrival to answer at the percentile of the settings.
        queries: how many arrived.
        held: whether the bound was kept.
    """

    rate: float
    achieved: float
    latency_s: float
    queries: int
    held: bool


@dataclasses.dataclass(frozen=True)
class Point:
    """One candidate under one scenario at one place of the sweep.

    Attributes:
        candidate: a `Candidate.name`.
        scenario: one of `SCENARIOS`.
        batch: rows of a query.
        length: tokens of a row; None for given texts and for generators.
        prompt: tokens of the prompt; None for encoders.
        output_tokens: new tokens of a row; None for encoders.
        concurrency: queries at work at once.
        measures: by the names of `measures.RUN`.
        samples: by ``latency``, ``first_token``, ``inter_token``.
        work: of one query.
        curve: rates that were tried, lowest first; the server scenario alone has some.
    """

    candidate: str
    scenario: str
    batch: int
    length: int | None
    prompt: int | None
    output_tokens: int | None
    concurrency: int
    measures: dict[str, Measure]
    samples: dict[str, Samples] = dataclasses.field(default_factory=dict)
    work: QueryWork | None = None
    curve: tuple[RatePoint, ...] = ()

    @property
    def place(self) -> tuple[Any, ...]:
        """What tells this point from the others of its candidate."""
        return (self.scenario, self.batch, self.length, self.prompt, self.output_tokens, self.concurrency)

    @property
    def label(self) -> str:
        """The place in words, for tables and plots: ``single-stream, batch 1, length 128``."""
        named = {
            "batch": self.batch,
            "length": self.length,
            "prompt": self.prompt,
            "output": self.output_tokens,
            "concurrency": self.concurrency if self.concurrency > 1 else None,
        }
        return ", ".join([self.scenario, *(f"{name} {value}" for name, value in named.items() if value is not None)])


@dataclasses.dataclass(frozen=True)
class Result:
    """A whole run of ``pinnace bench``.

    Attributes:
        format: of this schema; `RESULTS_FORMAT`.
        run: a random name of the run: results with the same one were measured in the same rounds.
        started: UTC, ISO 8601.
        seconds: how long the run took.
        machine, versions, settings: under which all was measured; versions of Python and of packages by name.
        limits: one for each number of threads.
        candidates, points: what was measured.
        checks: what was compared after the clock, and whether it agreed.
    """

    format: int
    run: str
    started: str
    seconds: float
    machine: Machine
    versions: dict[str, str]
    settings: Settings
    limits: tuple[Limit, ...]
    candidates: tuple[Candidate, ...]
    points: tuple[Point, ...]
    checks: dict[str, bool] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Give plain data, fit for JSON."""
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        """Serialize with a closing newline."""
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_dict(cls, data: Any, where: str = "the result") -> Result:
        """Read plain data and check every field's type.

        Raises:
            UsageError: another format, a missing or unknown field, or a wrong type.
        """
        if not isinstance(data, Mapping) or data.get("format") != RESULTS_FORMAT:
            found = data.get("format") if isinstance(data, Mapping) else type(data).__name__
            raise UsageError(
                f"{where} is no benchmark result of format {RESULTS_FORMAT}: its format is {found!r}. "
                "Give a file that pinnace bench --output wrote, or measure again"
            )
        return build(cls, dict(data), where, UsageError)

    @classmethod
    def read(cls, path: str | Path) -> Result:
        """Read the file that ``pinnace bench --output`` wrote.

        Raises:
            UsageError: no such file, not JSON, or as `from_dict`.
        """
        path = Path(path)
        try:
            if path.stat().st_size > MAX_BYTES:
                raise UsageError(f"{path} is larger than {MAX_BYTES:,} bytes; expected a benchmark result")
            data = json.loads(path.read_text("utf-8"))
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror}") from None
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{path} is not JSON: {str(error)[:200]}") from None
        return cls.from_dict(data, path.name)

    def candidate(self, name: str) -> Candidate:
        """Give the candidate of a name that stands in the result."""
        return next(candidate for candidate in self.candidates if candidate.name == name)

    def limit(self, threads: int) -> Limit | None:
        """Give the machine's limit with so many threads, None where it was not measured."""
        return next((limit for limit in self.limits if limit.threads == threads), None)
