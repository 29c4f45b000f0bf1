"""What a call of the generator asks for, checked before anything is allocated or run."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from pinnace.arrays import Array
from pinnace.errors import InputError, MachineError, UsageError
from pinnace.runtime.arguments import check_count
from pinnace.runtime.generation.config import GenerationConfig
from pinnace.runtime.generation.decoder import Decoder
from pinnace.runtime.generation.prefix import Prefix
from pinnace.runtime.generation.row import MAX_LOGPROBS
from pinnace.runtime.generation.speculation import check_positions
from pinnace.runtime.generation.streaming import RowDecoder

# Rows that run together unless the call says otherwise; more would gain little on a CPU and cost memory.
DEFAULT_ROWS: Final = 16


@dataclasses.dataclass(frozen=True)
class Request:
    """One call.

    Attributes:
        prompts: ids of each prompt, without padding.
        limits: most new tokens of each.
        config: the options.
        prefix: keys and values of a beginning that prompts may share.
        logprobs: give log-probabilities, and of this many likeliest tokens too; None for none.
        batch_size: most rows at once; fewer than were asked for where the memory holds fewer.
    """

    prompts: list[Array]
    limits: list[int]
    config: GenerationConfig
    prefix: Prefix | None
    logprobs: int | None
    batch_size: int


def read_request(
    decoder: Decoder,
    defaults: GenerationConfig,
    decode: RowDecoder | None,
    prompts: Any,
    mask: Any,
    *,
    prefix: Prefix | None,
    logprobs: int | None,
    batch_size: int | None,
    options: Mapping[str, Any],
) -> Request:
    """Check what `Generator.generate` was given.

    Args:
        decoder: the model.
        defaults: the generator's own options.
        decode: ids to text; None without a tokenizer.
        prompts: rows of ids.
        mask: which of them are no padding; None for all.
        prefix: as in `Request`.
        logprobs: as in `Request`.
        batch_size: as in `Request`; None for `DEFAULT_ROWS`.
        options: fields of `GenerationConfig` over the defaults.

    Raises:
        UsageError: an unknown option, or options that contradict each other or the bundle.
        InputError: a prompt that the model cannot take, or a row that the memory cannot hold.
        MachineError: a row, or the beams of one, that the session's ``memory_limit`` does not allow.
    """
    config = defaults.merged(**options)
    check_count("batch_size", batch_size)
    check_count("logprobs", logprobs, 0)
    if logprobs is not None and logprobs > MAX_LOGPROBS:
        raise UsageError(f"logprobs is {logprobs}; at most {MAX_LOGPROBS} likeliest tokens are given")
    if config.num_beams > 1 and logprobs is not None:
        raise UsageError("beam search gives no logprobs; leave them out, or use num_beams=1")
    if config.stop_strings:
        if decode is None:
            raise UsageError("stop_strings need the bundle's tokenizer to be found in; open the generator with one")
        decode.check_stops(config.stop_strings)
    if "eos_token_id" in options:  # a file may name tokens that the model lost
        _check_ends(config.eos_token_id, decoder.vocabulary)
    if config.prompt_lookup_num_tokens:
        check_positions(decoder)
    if prefix is not None:
        if not isinstance(prefix, Prefix):
            raise UsageError(f"prefix is {type(prefix).__name__}; expected what Generator.prefix computed, or None")
        prefix.check(decoder)
    rows = read_rows(decoder, prompts, mask)
    if options.get("max_length") is not None and (config.max_length or 0) > decoder.limit:  # a file's is cut
        raise InputError(
            f"max_length is {config.max_length:,}, and the model takes {decoder.limit:,} tokens in all; "
            f"ask for at most {decoder.limit:,}"
        )
    asked = options.get("max_new_tokens") is not None
    limits = [_new_tokens(decoder, row, config, asked) for row in rows]
    least = config.num_beams  # the beams of a prompt run together
    most = max(min(batch_size or DEFAULT_ROWS, len(rows) * config.num_return_sequences), least)
    longest = max((len(row) + limit for row, limit in zip(rows, limits, strict=True)), default=0)
    together = _rows_that_fit(decoder, most, least, longest, max(map(len, rows), default=0))
    return Request(rows, limits, config, prefix, logprobs, together)


def _rows_that_fit(decoder: Decoder, most: int, least: int, tokens: int, prompt: int) -> int:
    """How many rows the memory holds together: ``most``, or fewer, down to the ``least`` that cannot run apart."""
    for rows in range(most, least, -1):
        with contextlib.suppress(InputError, MachineError):
            decoder.check_memory(rows, tokens, prompt)
            return rows
    decoder.check_memory(least, tokens, prompt)
    return least


def read_rows(decoder: Decoder, prompts: Any, mask: Any = None, least: int = 1, kind: str = "prompt") -> list[Array]:
    """Return rows of ids [tokens], without padding.

    Args:
        decoder: the model.
        prompts: a list of rows, or an array [rows, tokens].
        mask: 0 where an id is padding, of the same shape; None for no padding.
        least: fewest tokens of a row.
        kind: what a row is called in an error.

    Raises:
        InputError: no such rows, too short or too long a row, or an id that the model does not have.
    """
    if isinstance(prompts, str | bytes) or not _has_rows(prompts):
        raise InputError(f"{kind}s must be rows of token ids, got {type(prompts).__name__}; tokenize texts first")
    rows = [_ids(row, f"{kind} {i}") for i, row in enumerate(prompts)]
    if mask is not None:
        kept = [np.asarray(row) for row in mask] if _has_rows(mask) else []
        if [real.shape for real in kept] != [row.shape for row in rows]:
            raise InputError("attention_mask must have the shape of the prompts, with 0 where a row is padded")
        rows = [row[real != 0] for row, real in zip(rows, kept, strict=True)]
    for place, row in enumerate(rows):
        decoder.check(row, f"{kind} {place}", least)
    return rows


def _has_rows(value: Any) -> bool:
    return isinstance(value, Sequence) or (isinstance(value, np.ndarray) and value.ndim > 0)


def _check_ends(ends: Sequence[int], vocabulary: int) -> None:
    beyond = [token for token in ends if token >= vocabulary]
    if beyond:
        raise UsageError(
            f"eos_token_id has {beyond[0]}, which the model never writes; expected ids from 0 to {vocabulary - 1:,}, "
            "or [] for no end token"
        )


def _new_tokens(decoder: Decoder, row: Array, config: GenerationConfig, asked: bool) -> int:
    """Most new tokens: what a call asks for must fit, what a file says is cut to what fits."""
    capacity = decoder.limit
    if asked and config.max_new_tokens is not None and len(row) + config.max_new_tokens > capacity:
        room = capacity - len(row)
        raise InputError(
            f"a prompt of {len(row):,} tokens and max_new_tokens={config.max_new_tokens:,} make more than the "
            f"{capacity:,} tokens that the model takes; {f'ask for at most {room:,}' if room > 0 else 'shorten it'}"
        )
    return config.new_tokens(len(row), capacity)


def _ids(row: Any, place: str) -> Array:
    try:
        array = np.asarray(row)
    except (ValueError, OverflowError):
        raise InputError(f"{place} is no row of whole numbers; expected token ids") from None
    if array.size == 0 and array.ndim == 1:
        return np.zeros(0, np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise InputError(
            f"{place} has the type {array.dtype} and the shape {list(array.shape)}; expected a row of token ids"
        )
    if array.dtype == np.uint64 and int(array.max()) > np.iinfo(np.int64).max:
        raise InputError(f"{place} has the id {int(array.max())}, which is no token")
    return array.astype(np.int64)
