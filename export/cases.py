"""The grid of inputs on which an export is checked: batch, length, padding side, past."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np

from pinnace.arrays import Array
from pinnace.compare import of_real_tokens
from pinnace.export.interface import CAPACITY, Interface
from pinnace.spec import PAST, Limits

PAST_KEY: Final = f"{PAST}.0.key"
CHOICES: Final = 3
PAST_TOKENS: Final = 5
FAR: Final = 9  # tokens of the row at the last positions
LONGEST: Final = 2048  # of a row that is checked: attention weights of a 65,536-token row would not fit in memory


@dataclasses.dataclass(frozen=True)
class Case:
    """One set of inputs.

    ``real`` is (rows, tokens): which new tokens are no padding; ``padding`` is its side. ``past`` holds how many past
    tokens each row has; it is empty where there are none.
    """

    name: str
    inputs: Mapping[str, Array]
    real: Array
    padding: str = "none"
    past: tuple[int, ...] = ()

    @property
    def real_keys(self) -> Array:
        """(rows, past + tokens): which keys are no padding."""
        mask = self.inputs["attention_mask"]
        return np.asarray(mask.reshape(-1, mask.shape[-1]) != 0)


def grid(interface: Interface, limits: Limits) -> Iterator[Case]:
    """Yield the cases for an interface, from one token to the model's limit, or `LONGEST` where that is lower.

    A graph with fixed shapes gets its one shape, with and without padding. A graph with a cache is given an empty past,
    a full one, and one that is as long as each row's own history. A graph that is told positions gets a short row at
    the last ones, where rotary scaling turns otherwise than at the first: a row of that length would not fit in memory.
    """
    generator = numbers()
    static, cache = interface.options.static, interface.cache
    past = static.get("past_sequence", PAST_TOKENS) if cache else 0
    longest = static.get("sequence", max(1, min(limits.sequence, LONGEST) - past))
    seen: set[tuple[int, int]] = set()
    for rows, length in ((1, 1), (1, 9), (3, 9), (2, 65), (1, longest)):
        B, T = static.get("batch", rows), static.get("sequence", min(length, longest))
        if (B, T) in seen:
            continue
        seen.add((B, T))
        whole = T == 1 or (longest == T and not static)
        for padding in ("none",) if whole else ("none", "right", "left"):
            histories = [past] * B
            # An in-place cache is filled by right-padded prompts; after that, many tokens at once only in a single row.
            if cache is not None and cache.in_place and T > 1 and (padding != "none" or B > 1):
                if padding == "left" or "past_sequence" in static:
                    continue
                histories = [0] * B
            yield make_case(interface, limits, generator, _lengths(B, T, padding), T, padding, histories)
    if cache is not None and static.get("sequence", 1) == 1 and "past_sequence" not in static:
        B = static.get("batch", 3)
        ragged = [(past, past - 2, 0)[row % 3] for row in range(B)]
        yield make_case(interface, limits, generator, [1] * B, 1, "none", ragged)
    if any(spec.name == "position_ids" for spec in interface.inputs) and not static and limits.sequence >= FAR:
        yield _at_the_end(make_case(interface, limits, generator, [FAR], FAR, "none"), limits)


def _at_the_end(case: Case, limits: Limits) -> Case:
    """The same row at the last positions that the model takes."""
    places = case.inputs["position_ids"] + limits.sequence - case.real.shape[1]
    return dataclasses.replace(case, name=f"{case.name}-last", inputs={**case.inputs, "position_ids": places})


def golden_case(interface: Interface, limits: Limits) -> Case:
    """A small case with rows of different length, or the one shape of a graph with fixed shapes."""
    static = interface.options.static
    if past := static.get("past_sequence", 0):
        T = static.get("sequence", 1)
        B = static.get("batch", 2 if T == 1 else 1)
        return make_case(interface, limits, numbers(), [T] * B, T, "none", [past] * B)
    B, T = static.get("batch", 2), static.get("sequence", min(6, limits.sequence))
    return make_case(interface, limits, numbers(), [max(1, T - 2 * row) for row in range(B)], T, "right")


def numbers() -> np.random.Generator:
    """The one source of random inputs: the same in every export."""
    return np.random.Generator(np.random.PCG64(7))


def _lengths(rows: int, tokens: int, padding: str) -> list[int]:
    if padding == "none":
        return [tokens] * rows
    return [max(1, tokens - (tokens // 3) * (row + (rows == 1)) - (row > 0)) for row in range(rows)]


def make_case(
    interface: Interface,
    limits: Limits,
    generator: np.random.Generator,
    lengths: Sequence[int],
    tokens: int,
    padding: str,
    past: Sequence[int] = (),
) -> Case:
    """Random rows of the given lengths, padded to ``tokens`` on the named side.

    Args:
        interface: whose inputs to make.
        limits: ranges of ids and positions.
        generator: source of randomness.
        lengths: real tokens of each row.
        tokens: T, width of the batch.
        padding: ``left``, ``right`` or ``none``.
        past: for a graph with a cache, how many past tokens each row has; missing means none.
    """
    names = {spec.name: spec for spec in interface.inputs}
    choices = interface.options.static.get("choices", CHOICES) if len(names["input_ids"].shape) == 3 else 1
    lengths = [n for n in lengths for _ in range(choices)]
    histories = np.array(past if past and interface.cache else [0] * len(lengths))
    B, T, P = len(lengths), tokens, int(histories.max())
    place = np.arange(T)
    kept = np.array([place >= T - n if padding == "left" else place < n for n in lengths])
    capacity = interface.options.static.get(CAPACITY)
    if capacity is None:
        mask = np.concatenate([np.arange(P) < histories[:, None], kept], 1)
    else:
        mask = np.arange(capacity) < (histories + kept.sum(1))[:, None]
    arrays: dict[str, Array] = {
        "input_ids": np.where(kept, generator.integers(0, limits.vocabulary, (B, T)), 0),
        "attention_mask": mask.astype(np.int64),
        "token_type_ids": np.where(kept, generator.integers(0, limits.token_types, (B, T)), 0),
        "position_ids": np.clip(histories[:, None] + np.cumsum(kept, 1) - 1, 0, limits.sequence - 1),
    }
    for name, spec in names.items():
        if name.startswith(PAST):
            heads, size = (int(spec.shape[axis]) for axis in (1, 3))
            arrays[name] = generator.standard_normal((B, heads, capacity or P, size), np.float32)
    inputs = {}
    for name, spec in names.items():
        array = arrays[name].reshape(B // choices, choices, T) if len(spec.shape) == 3 else arrays[name]
        inputs[name] = np.ascontiguousarray(array, dtype=spec.dtype)
    history = f"-past{'ragged' if len(set(histories.tolist())) > 1 else P}" if P else ""
    name = f"batch{B // choices}-length{T}-pad-{padding}{history}"
    return Case(name, inputs, kept, padding, tuple(histories.tolist()) if P else ())


def alone(case: Case, row: int) -> Case:
    """One row of a right-padded flat batch, without its padding."""
    n = int(case.real[row].sum())
    part = {name: array[row : row + 1] for name, array in case.inputs.items()}
    return Case(f"{case.name}-row{row}", first_tokens(part, n), case.real[row : row + 1, :n])


def first_tokens(inputs: Mapping[str, Array], count: int) -> dict[str, Array]:
    """Inputs of right-padded rows with their past and only the first ``count`` of their new tokens."""
    new, mask = inputs["input_ids"].shape[1], inputs["attention_mask"]
    found = {}
    for name, array in inputs.items():
        if name.startswith(PAST):
            found[name] = array
        elif array is mask and PAST_KEY in inputs and inputs[PAST_KEY].shape[2] == mask.shape[1]:
            # A cache of fixed capacity: the mask has a place for each of its slots.
            lengths = mask.sum(1, keepdims=True)
            kept = np.minimum(lengths, np.maximum(lengths - new, 0) + count)
            found[name] = (np.arange(mask.shape[1]) < kept).astype(mask.dtype)
        else:
            found[name] = np.ascontiguousarray(array[:, : array.shape[1] - (new - count)])
    return found


def real_part(case: Case, shape: Sequence[int | str], array: Array) -> Array:
    """The entries of an output (its axes named by ``shape``) that belong to real tokens: (entries, ...)."""
    return of_real_tokens(array, shape, case.real, case.real_keys)
