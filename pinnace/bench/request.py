"""What a user asks of a benchmark, and whether a bundle can do it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from pinnace.bench.results import SCENARIOS
from pinnace.bench.worker import PEERS
from pinnace.errors import UsageError, unknown_word
from pinnace.runtime.bundles.bundle import Bundle


@dataclasses.dataclass(frozen=True)
class Request:
    """What the user asked for. Empty tuples and None take what suits the bundle.

    Attributes:
        scenarios: some of `SCENARIOS`; by default single-stream.
        precisions: variants; by default all that the bundle has.
        devices: such as ``cpu``.
        threads: of one run; by default what the machine grants.
        batches: rows of a query.
        lengths: tokens of a row, none where texts are given.
        prompts: tokens of a decoder's prompt.
        output_tokens: new tokens behind it.
        concurrency: queries at work at once.
        texts: inputs of the pipeline, in place of random tokens; with ``tokens`` of each.
        tokens: of each text.
        options: of the pipeline's call.
        inputs: what the texts are, in words.
        latency_bound_s: of the server scenario.
        percentile: share of its queries that must keep the bound.
        rounds: in which the candidates take turns.
        starts: fresh processes of each candidate, among which the rounds are shared.
        round_s: seconds of a candidate's part of a round.
        seed: of inputs and arrivals.
        peers: program -> Python of its environment.
        peer_models: program -> folder or file in place of the bundle.
        against: a second bundle, measured in the same rounds.
        data: file of examples that the task's metric is measured on.
    """

    scenarios: tuple[str, ...] = ("single-stream",)
    precisions: tuple[str, ...] = ()
    devices: tuple[str, ...] = ("cpu",)
    threads: tuple[int, ...] = ()
    batches: tuple[int, ...] = (1,)
    lengths: tuple[int, ...] = ()
    prompts: tuple[int, ...] = ()
    output_tokens: tuple[int, ...] = ()
    concurrency: tuple[int, ...] = (1,)
    texts: tuple[Any, ...] = ()
    tokens: tuple[int, ...] = ()
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    inputs: str = ""
    latency_bound_s: float | None = None
    percentile: float = 0.99
    rounds: int = 20
    starts: int = 5
    round_s: float = 0.5
    seed: int = 0
    peers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    peer_models: Mapping[str, str] = dataclasses.field(default_factory=dict)
    against: str | None = None
    data: str | None = None


def check_request(bundle: Bundle, request: Request) -> None:
    """Check what a bundle is asked for.

    Raises:
        UsageError: sizes that it does not take, an unknown scenario or peer, a server scenario without its bound, or a
            model for a peer that is not measured.
    """
    _check_words(request)
    _check_sizes(bundle, request)
    _check_fixed(bundle, request)


def _check_words(request: Request) -> None:
    for scenario in request.scenarios:
        if scenario not in SCENARIOS:
            raise unknown_word("scenario", scenario, SCENARIOS)
    if "server" in request.scenarios and request.latency_bound_s is None:
        raise UsageError("the server scenario needs the time that its answers must keep, such as --latency-bound 100ms")
    for peer in {**request.peers, **request.peer_models}:
        if peer not in PEERS:
            raise unknown_word("peer", peer, PEERS)
    if alone := [peer for peer in request.peer_models if peer not in request.peers]:
        raise UsageError(f"--peer-model {alone[0]} is for a peer that is not measured; add --peers {alone[0]}=PYTHON")


def _check_sizes(bundle: Bundle, request: Request) -> None:
    decoder = bundle.manifest.cache is not None
    if decoder and (request.lengths or request.texts):
        raise UsageError(f"{bundle.path.name} generates; give --prompt and --output-tokens, not --length or --input")
    if not decoder and (request.prompts or request.output_tokens):
        raise UsageError(f"{bundle.path.name} is for {bundle.manifest.task} and has no prompt; give --length")
    longest = bundle.manifest.limits.sequence
    sizes = sum(map(max, decoder_sizes(bundle, request))) if decoder else max(request.lengths, default=0)
    if sizes > longest:
        raise UsageError(f"{sizes:,} tokens are more than {bundle.path.name} takes: {longest:,}. Ask for fewer")


def _check_fixed(bundle: Bundle, request: Request) -> None:
    shape = next(spec.shape for spec in bundle.manifest.inputs if spec.name == "input_ids")
    for asked, size, flag in ((request.batches, shape[0], "batch"), (request.lengths, shape[-1], "length")):
        wrong = [value for value in asked if isinstance(size, int) and value != size]
        if wrong:
            raise UsageError(f"this bundle was exported with a fixed {flag} of {size}, got --{flag} {wrong[0]}")


def decoder_sizes(bundle: Bundle, request: Request) -> tuple[Sequence[int], Sequence[int]]:
    """Tokens of a decoder's prompts and new tokens, as asked or as suits it."""
    longest = bundle.manifest.limits.sequence
    prompts = request.prompts or (min(128, longest // 2),)
    room = max(1, longest - max(prompts))
    return prompts, request.output_tokens or (min(32, room),)
