"""How fast variants are here: interleaved runs of the work that the task does, fp32 among them.

A decoder reads a prompt and writes tokens; every other model takes one short row and one full batch,
or the only batch that a graph of fixed shape takes.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from pinnace.quantize.examples.random_inputs import random_inputs
from pinnace.runtime.bundles.bundle import Bundle
from pinnace.runtime.engine.cancellation import RunLimit
from pinnace.runtime.engine.session import Session
from pinnace.runtime.generation.decoder import Decoder

ROUNDS: Final = 9
ROUND_SECONDS: Final = 0.05  # quick work is repeated within a round
SEED: Final = 0
SHORT: Final = 16  # tokens of the short row
BATCH: Final = (4, 128)  # rows and tokens of the batch
PROMPT: Final = 256
STEPS: Final = 16
NEW_TOKENS: Final = 128


@dataclasses.dataclass(frozen=True)
class Latency:
    """How long one variant takes, by kind of work.

    Attributes:
        milliseconds: medians.
        speedup: ratios of fp32's times to its own in the same rounds.
        counts: how often each kind occurs in one request; empty where each kind is a request of its own.
    """

    milliseconds: Mapping[str, float]
    speedup: Mapping[str, float]
    counts: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def overall(self) -> float:
        """One number to choose by: the speed-up of a whole request, or the geometric mean; NaN where nothing ran."""
        if not self.speedup:
            return float("nan")
        if self.counts:
            own = {kind: count * self.milliseconds[kind] for kind, count in self.counts.items()}
            return sum(time * self.speedup[kind] for kind, time in own.items()) / sum(own.values())
        return float(np.exp(np.mean(np.log(list(self.speedup.values())))))


UNTIMED: Final = Latency({}, {})  # of what was not run


@dataclasses.dataclass(frozen=True)
class Work:
    """What is timed, and `Latency.counts` of it."""

    kinds: Mapping[str, Callable[[], Any]]
    counts: Mapping[str, float] = dataclasses.field(default_factory=dict)


def measure(
    bundle: Bundle,
    precisions: Sequence[str],
    *,
    threads: int | None,
    rounds: int = ROUNDS,
    new_tokens: int = NEW_TOKENS,
) -> dict[str, Latency]:
    """Time variants of a bundle in turn, so that a slow moment of the machine hits all of them.

    Args:
        bundle: has all the variants.
        precisions: the first is what the others are compared with.
        threads: threads of a run; None takes what the machine grants.
        rounds: measured rounds, after one that only warms up.
        new_tokens: how many a decoder writes in one request.
    """
    works = {precision: _work(bundle, precision, threads, new_tokens) for precision in precisions}
    kinds, counts = list(works[precisions[0]].kinds), works[precisions[0]].counts
    times: dict[tuple[str, str], list[float]] = {(p, kind): [] for p in precisions for kind in kinds}
    for turn in range(rounds + 1):
        for kind in kinds:
            for precision, work in works.items():
                spent = _timed(work.kinds[kind])
                if turn:
                    times[precision, kind].append(spent)
    base = precisions[0]
    return {
        precision: Latency(
            {kind: 1e3 * statistics.median(times[precision, kind]) for kind in kinds},
            {kind: _ratio(times[base, kind], times[precision, kind]) for kind in kinds},
            counts,
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


def _work(bundle: Bundle, precision: str, threads: int | None, new_tokens: int) -> Work:
    if bundle.manifest.cache is not None:
        return _decoding(bundle, precision, threads, new_tokens)
    session = Session(bundle, precision, threads=threads)
    generator = np.random.default_rng(SEED)
    short = random_inputs(bundle.manifest, generator, 1, SHORT)
    batch = random_inputs(bundle.manifest, generator, *BATCH)
    if short["input_ids"].shape == batch["input_ids"].shape:  # the graph fixes both
        return Work({"fixed batch": lambda: session.run(batch)})
    return Work({"short row": lambda: session.run(short), "batch": lambda: session.run(batch)})


def _decoding(bundle: Bundle, precision: str, threads: int | None, new_tokens: int) -> Work:
    decoder = Decoder(Session(bundle, precision, threads=threads))
    steps = max(1, min(STEPS, decoder.limit // 2))
    length = min(PROMPT, decoder.limit - steps)
    ids = np.random.default_rng(SEED).integers(0, decoder.vocabulary, length)
    batch, _ = decoder.prompt([ids], RunLimit(), tokens=length + steps)

    def prompt() -> None:
        decoder.prompt([ids], RunLimit(), tokens=length)

    def step() -> None:
        limit = RunLimit()
        for token in ids[:steps]:
            batch.step(np.array([token]), limit)
        batch.cache.shorten(0, length)

    reading, writing = f"prompt of {length}", f"{steps} steps"
    return Work({reading: prompt, writing: step}, {reading: 1, writing: new_tokens / steps})
