"""What the caller hands to a model, checked against the manifest before anything is computed or allocated."""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from pinnace.arrays import Array
from pinnace.errors import InputError, nearest_word
from pinnace.spec import Limits, Manifest, TensorSpec

# Input -> one past the largest value that it may hold.
VALUE_LIMITS: Final[Mapping[str, Callable[[Limits], int]]] = types.MappingProxyType(
    {
        "input_ids": lambda limits: limits.vocabulary,
        "token_type_ids": lambda limits: limits.token_types,
        "position_ids": lambda limits: limits.sequence,
        "attention_mask": lambda limits: 2,
    }
)
_VALUE_REMEDIES: Final[Mapping[str, str]] = types.MappingProxyType(
    {
        "input_ids": "Use the tokenizer of this bundle",
        "token_type_ids": "A token type is the number of the text in a pair, from 0",
        "position_ids": "Send shorter rows",
        "attention_mask": "1 marks a token, 0 padding",
    }
)
# A cache may be empty; everything else has at least one of each.
_MAY_BE_ZERO: Final = "past_sequence"
# Keys and values after a run are the past ones and the new ones, unless they share a buffer that is larger than both.
_TOTAL: Final = "total_sequence"
_TOTAL_PARTS: Final = ("past_sequence", "sequence")


def check_inputs(
    manifest: Manifest, given: Mapping[str, Any], dtypes: Mapping[str, str], memory: int | None
) -> dict[str, Array]:
    """Check all inputs of one run and return them as the arrays that the graph takes.

    Args:
        manifest: names, shapes and limits of the model.
        given: arrays or nested lists of ints, by input name. Smaller integers and booleans are widened to int64.
        dtypes: the numpy type name of every input of the graph.
        memory: bytes that the process may use, None if unknown.

    Raises:
        InputError: an unknown or missing name, a wrong type, rank or size, sizes that disagree between inputs, a row
            longer than the model takes, a value out of range, or outputs larger than the memory.
    """
    if not isinstance(given, Mapping):
        raise InputError(f"inputs must be a mapping from names to arrays, got {type(given).__name__}")
    specs = {spec.name: spec for spec in manifest.inputs}
    _check_names(specs, given)
    arrays = {name: _as_array(name, given[name]) for name in specs}
    sizes: dict[str, tuple[int, str]] = {}
    for name, spec in specs.items():
        _check_shape(spec, arrays[name].shape, sizes)
    if manifest.cache is None or not manifest.cache.in_place:
        _check_total(sizes)
    _check_length(specs, arrays, manifest.limits)
    _check_memory(manifest.outputs, arrays, sizes, memory)
    ready = {name: _cast(name, array, dtypes[name]) for name, array in arrays.items()}
    for name, array in ready.items():
        if name in VALUE_LIMITS:
            _check_values(name, array, VALUE_LIMITS[name](manifest.limits))
    return ready


def example_inputs(manifest: Manifest, dtypes: Mapping[str, str]) -> dict[str, Array]:
    """Return the smallest inputs that the model takes: one row of a few tokens, an empty cache."""
    tokens = min(8, manifest.limits.sequence)
    sizes = {"batch": 1, "sequence": tokens, _MAY_BE_ZERO: 0, _TOTAL: tokens}
    arrays = {}
    for spec in manifest.inputs:
        shape = [dim if isinstance(dim, int) else sizes.get(dim, 2) for dim in spec.shape]
        arrays[spec.name] = np.full(shape, 1 if spec.name == "attention_mask" else 0, dtypes[spec.name])
    return arrays


def _check_names(specs: Mapping[str, TensorSpec], given: Mapping[str, Any]) -> None:
    for name in given:
        if name not in specs:
            near = nearest_word(str(name), specs)
            hint = f" Did you mean {near!r}?" if near else ""
            raise InputError(f"the model has no input {name!r}.{hint}\n  its inputs: {', '.join(specs)}")
    if missing := [name for name in specs if name not in given]:
        shape = specs[missing[0]].shape
        raise InputError(
            f"the input {missing[0]!r} is missing: {specs[missing[0]].dtype} of shape {_show(shape)}\n"
            f"  got: {', '.join(map(str, given)) or 'nothing'}; expected: {', '.join(specs)}"
        )


def _as_array(name: str, value: Any) -> Array:
    if isinstance(value, np.ndarray):
        return np.asarray(value)
    if not isinstance(value, list | tuple):
        raise InputError(f"{name} must be a numpy array, got {type(value).__name__}")
    try:
        return np.asarray(value)
    except (ValueError, OverflowError) as error:
        reason = "a number does not fit 64 bits" if isinstance(error, OverflowError) else "its rows differ in length"
        raise InputError(f"{name} is not an array: {reason}. Pad the rows to one length") from None


def _check_shape(spec: TensorSpec, shape: tuple[int, ...], sizes: dict[str, tuple[int, str]]) -> None:
    """Check rank and sizes of one input; ``sizes`` gathers what each symbolic size is, and which input said so."""
    if len(shape) != len(spec.shape):
        raise InputError(
            f"{spec.name} has {len(shape)} dimensions, shape {_show(shape)}; expected {len(spec.shape)}: "
            f"{_show(spec.shape)}"
        )
    for got, dim in zip(shape, spec.shape, strict=True):
        if isinstance(dim, int):
            if got != dim:
                raise InputError(f"{spec.name} has shape {_show(shape)}; expected {_show(spec.shape)}")
            continue
        if got == 0 and dim != _MAY_BE_ZERO:
            raise InputError(f"{spec.name} has shape {_show(shape)}: {dim} is 0; send at least one")
        known, where = sizes.setdefault(dim, (got, spec.name))
        if known != got:
            raise InputError(f"{dim} is {got} in {spec.name} and {known} in {where}; they must be equal")


def _check_total(sizes: Mapping[str, tuple[int, str]]) -> None:
    if not {_TOTAL, *_TOTAL_PARTS} <= set(sizes):
        return
    total, name = sizes[_TOTAL]
    past, new = (sizes[part][0] for part in _TOTAL_PARTS)
    if total != past + new:
        raise InputError(
            f"{name} covers {total} positions, expected {past + new}: {past} in the cache and {new} new. "
            "It must speak of the cached tokens too"
        )


def _check_length(specs: Mapping[str, TensorSpec], arrays: Mapping[str, Array], limits: Limits) -> None:
    for name, spec in specs.items():
        if name in VALUE_LIMITS and arrays[name].shape[-1] > limits.sequence and isinstance(spec.shape[-1], str):
            raise InputError(
                f"{name} has {arrays[name].shape[-1]:,} tokens a row, the model takes {limits.sequence:,}. "
                "Truncate the text, or split it into windows"
            )


def _check_memory(
    outputs: Sequence[TensorSpec],
    arrays: Mapping[str, Array],
    sizes: Mapping[str, tuple[int, str]],
    memory: int | None,
) -> None:
    if memory is None:
        return
    needed = sum(array.size * 8 for array in arrays.values())
    for spec in outputs:
        dims = [dim if isinstance(dim, int) else sizes.get(dim, (1, ""))[0] for dim in spec.shape]
        needed += math.prod(dims) * np.dtype(spec.dtype).itemsize
    if needed > memory:
        shapes = ", ".join(f"{name} {_show(array.shape)}" for name, array in arrays.items())
        raise InputError(
            f"this request needs at least {needed / 1e9:,.1f} GB for its inputs and outputs, the process may use "
            f"{memory / 1e9:,.1f} GB. Send fewer rows at once\n  got: {shapes}"
        )


def _cast(name: str, array: Array, dtype: str) -> Array:
    wanted = np.dtype(dtype)
    if array.dtype.kind not in "biuf" or not np.can_cast(array.dtype, wanted, "safe"):
        raise InputError(
            f"{name} has the type {array.dtype}, expected {wanted}. "
            f"Where that is right, convert it: {name}.astype('{wanted}')"
        )
    return np.ascontiguousarray(array, wanted)


def _check_values(name: str, array: Array, limit: int) -> None:
    if array.size == 0:
        return
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= limit:
        wrong = np.argwhere((array < 0) | (array >= limit))[0]
        place = _show(tuple(int(i) for i in wrong))
        raise InputError(
            f"{name}{place} is {int(array[tuple(wrong)])}; expected 0 to {limit - 1:,}. {_VALUE_REMEDIES[name]}"
        )


def _show(shape: Sequence[int | str]) -> str:
    return f"[{', '.join(map(str, shape))}]"
