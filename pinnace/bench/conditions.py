"""Under what a benchmark was measured, as frozen records: the machine, what was asked for, what the machine can do."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Machine:
    """The machine, as far as it explains a figure.

    Attributes:
        processor: its name.
        features: instruction sets that matter to kernels, such as ``avx2``.
        system: operating system and architecture.
        cpus: CPUs on which the benchmark may run.
        quota: CPUs that the container grants; None where there is no limit.
        memory_bytes: memory that the process may use.
        cache_bytes: cache that one core has to itself; None if unknown.
        load: average number of running processes in the minute before.
        energy: whether the machine tells its energy.
    """

    processor: str
    features: tuple[str, ...]
    system: str
    cpus: int
    quota: float | None
    memory_bytes: int | None
    cache_bytes: int | None
    load: float
    energy: bool


@dataclasses.dataclass(frozen=True)
class Settings:
    """What was asked for; two runs are alike where these agree.

    Attributes:
        task: of the bundle, such as ``feature-extraction``.
        scenarios: some of `pinnace.bench.results.SCENARIOS`.
        inputs: ``random ids`` of given lengths, or ``texts`` with the count and SHA-256 of a file.
        seed: of inputs, arrivals and bootstrap.
        rounds: measured rounds, in which the candidates take turns.
        starts: fresh processes of each candidate.
        round_s: seconds that one candidate's part of a round lasts at least.
        latency_bound_s: of the server scenario; None without it.
        percentile: share of queries (0 to 1) that must keep the bound.
        pinned: whether each process was held to as many CPUs as it has threads.
    """

    task: str
    scenarios: tuple[str, ...]
    inputs: str
    seed: int
    rounds: int
    starts: int
    round_s: float
    latency_bound_s: float | None
    percentile: float
    pinned: bool


@dataclasses.dataclass(frozen=True)
class Limit:
    """What the machine itself does with so many threads, measured in the rounds of the same run.

    Attributes:
        threads: of the measurement.
        gemm_flops: FLOP/s of one large fp32 matrix multiplication in ONNX Runtime: the median of the rounds.
        memory_bytes_s: bytes/s read from a buffer that no cache holds: the median of the rounds.
        gemm_blocks: FLOP/s of each round.
        memory_blocks: bytes/s of each round.
    """

    threads: int
    gemm_flops: float
    memory_bytes_s: float
    gemm_blocks: tuple[float, ...] = ()
    memory_blocks: tuple[float, ...] = ()
