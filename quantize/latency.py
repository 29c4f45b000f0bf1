"""How fast variants are here: interleaved runs of the work that the task does, fp32 among them.

A decoder reads a prompt and writes tokens; every other model takes one short row and one full batch.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from pinnace.quantize.random_inputs import random_inputs
from pinnace.runtime.bundle import Bundle
from pinnace.runtime.cancellation import RunLimit
from pinnace.runtime.decoder import Decoder
from pinnace.runtime.session import Session

ROUNDS: Final = 9
ROUND_SECONDS: Final = 0.05  # quick work is repeated within a round
SEED: Final = 0
SHORT: Final = 16  # tokens of the short row
BATCH: Final = (4, 128)  # rows and tokens of the batch
PROMPT: Final = 256
STEPS: Final = 16


@dataclasses.dataclass(frozen=True)
class Latency:
    """Medians of one variant, in ms, by kind of work, and their ratios to fp32's in the same rounds."""

    milliseconds: Mapping[str, float]
    speedup: Mapping[str, float]

    @property
    def overall(self) -> float:
        """One number to choose by: the geometric mean of the speed-ups; NaN where nothing was timed."""
        if not self.speedup:
            return float("nan")
        return float(np.exp(np.mean(np.log(list(self.speedup.values())))))


UNTIMED: Final = Latency({}, {})  # of what was not run

Work = Mapping[str, Callable[[], Any]]


def measure(
    bundle: Bundle, precisions: Sequence[str], *, threads: int | None, rounds: int = ROUNDS
) -> dict[str, Latency]:
    """Time variants of a bundle in turn, so that a slow moment of the machine hits all of them.

    Args:
        bundle: has all the variants.
        precisions: the first is what the others are compared with.
        threads: threads of a run; None takes what the machine grants.
        rounds: measured rounds, after one that only warms up.
    """
    works = {precision: _work(bundle, precision, threads) for precision in precisions}
    kinds = list(next(iter(works.values())))
    times: dict[tuple[str, str], list[float]] = {(p, kind): [] for p in precisions for kind in kinds}
    for turn in range(rounds + 1):
        for kind in kinds:
            for precision, work in works.items():
                spent = _timed(work[kind])
                if turn:
                    times[precision, kind].append(spent)
    base = precisions[0]
    return {
        precision: Latency(
            {kind: 1e3 * statistics.median(times[precision, kind]) for kind in kinds},
            {kind: _ratio(times[base, kind], times[precision, kind]) for kind in kinds},
        )
        for precision in precisions
    }


def _timed(work: Callable[[], Any]) -> float:
    """Seconds of one run, repeated until a round has its length."""
    done, begun = 0, time.perf_counter()
    while True:
        work()
        done += 1
        spent = time.perf_counter() - begun
        if spent >= ROUND_SECONDS:
            return spent / done


def _ratio(base: Sequence[float], other: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(base, other, strict=True))


def _work(bundle: Bundle, precision: str, threads: int | None) -> Work:
    if bundle.manifest.cache is not None:
        return _decoding(bundle, precision, threads)
    session = Session(bundle, precision, threads=threads)
    generator = np.random.default_rng(SEED)
    short = random_inputs(bundle.manifest, generator, 1, SHORT)
    batch = random_inputs(bundle.manifest, generator, *BATCH)
    return types.MappingProxyType({"short row": lambda: session.run(short), "batch": lambda: session.run(batch)})


def _decoding(bundle: Bundle, precision: str, threads: int | None) -> Work:
    decoder = Decoder(Session(bundle, precision, threads=threads))
    length = min(PROMPT, decoder.limit - STEPS)
    ids = np.random.default_rng(SEED).integers(0, decoder.vocabulary, length)
    batch, _ = decoder.prompt([ids], RunLimit(), tokens=length + STEPS)

    def prompt() -> None:
        decoder.prompt([ids], RunLimit(), tokens=length)

    def step() -> None:
        limit = RunLimit()
        for token in ids[:STEPS]:
            batch.step(np.array([token]), limit)
        batch.cache.shorten(0, length)

    return types.MappingProxyType({f"prompt of {length}": prompt, f"{STEPS} steps": step})
