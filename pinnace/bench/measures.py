"""MEASURES: every quantity that a benchmark can give, with its unit, which way is better, and what it means."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from typing import Final

LESS: Final = "less"
MORE: Final = "more"


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a measure is.

    Attributes:
        unit: of the stored value: ``s``, ``bytes``, ``texts/s``, ``tokens/s``, ``queries/s``, ``J``, or ``""`` for
            a share of one.
        better: ``less`` or ``more``.
        title: a few words for a table's head.
        meaning: one sentence for the documents.
    """

    unit: str
    better: str
    title: str
    meaning: str


# Measured once for a candidate, whatever it is asked later.
START: Final[Mapping[str, Kind]] = types.MappingProxyType(
    {
        "install_bytes": Kind("bytes", LESS, "install", "Files of the program and of all packages that it needs."),
        "bundle_bytes": Kind("bytes", LESS, "on disk", "Files of the variant: its graph and weights."),
        "import_s": Kind("s", LESS, "import", "Importing the program in a fresh process."),
        "cold_start_s": Kind("s", LESS, "cold start", "From the start of a fresh process to its first answer."),
        "load_s": Kind("s", LESS, "load", "Opening the model and its tokenizer."),
        "first_inference_s": Kind("s", LESS, "first run", "The first inference after loading."),
        "settled_bytes": Kind("bytes", LESS, "memory", "Resident memory after the runs, at rest."),
        "peak_bytes": Kind("bytes", LESS, "peak", "Most resident memory at any time, as the kernel counts it."),
        "idle_cpu": Kind("", LESS, "idle CPU", "Share of one CPU that the process uses at rest, after the runs."),
    }
)
# Measured for a candidate at one point of the sweep.
RUN: Final[Mapping[str, Kind]] = types.MappingProxyType(
    {
        "latency_mean_s": Kind("s", LESS, "mean", "Mean time of a query."),
        "latency_p50_s": Kind("s", LESS, "p50", "Median time of a query."),
        "latency_p90_s": Kind("s", LESS, "p90", "Time that 90 of 100 queries keep."),
        "latency_p95_s": Kind("s", LESS, "p95", "Time that 95 of 100 queries keep."),
        "latency_p99_s": Kind("s", LESS, "p99", "Time that 99 of 100 queries keep; needs 1,000 queries."),
        "texts_per_s": Kind("texts/s", MORE, "texts/s", "Texts (rows) answered in a second."),
        "tokens_per_s": Kind("tokens/s", MORE, "tokens/s", "Tokens read in a second, padding not counted."),
        "first_token_s": Kind("s", LESS, "first token", "From the prompt to the first new token (median)."),
        "inter_token_s": Kind("s", LESS, "per token", "Between one new token and the next (median)."),
        "prompt_tokens_per_s": Kind("tokens/s", MORE, "prompt tok/s", "Tokens of the prompt read in a second."),
        "decode_tokens_per_s": Kind("tokens/s", MORE, "decode tok/s", "New tokens in a second, after the first."),
        "highest_rate": Kind("queries/s", MORE, "rate held", "Highest Poisson rate that keeps the latency bound."),
        "cpu_s": Kind("s", LESS, "CPU/query", "CPU time of all threads for a query."),
        "energy_j": Kind("J", LESS, "energy", "Energy of the processor's packages for a query."),
        "gemm_fraction": Kind("", MORE, "of GEMM", "Rate of multiplications as a share of the machine's own."),
        "memory_fraction": Kind("", MORE, "of memory", "Rate of reading weights as a share of the machine's own."),
    }
)
MEASURES: Final[Mapping[str, Kind]] = types.MappingProxyType({**START, **RUN})
