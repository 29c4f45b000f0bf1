"""The options of a generation as a table: how each value is read, and which of them exclude one another."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final

import numpy as np

from pinnace.errors import UsageError

MAX_COUNT: Final = 2**31 - 1
MAX_ROWS: Final = 1024
"""Most beams or returned sequences of one prompt."""
MAX_STOP_STRINGS: Final = 64
MAX_STOP_CHARS: Final = 1024

Reader = Callable[[str, Any], Any]


def _wrong(name: str, value: Any, expected: str) -> UsageError:
    return UsageError(f"{name}: got {str(value)[:80]!r}, expected {expected}.")


def _whole(low: int, high: int = MAX_COUNT) -> Reader:
    def read(name: str, value: Any) -> int:
        if isinstance(value, (int, np.integer)) and not isinstance(value, bool) and low <= value <= high:
            return int(value)
        raise _wrong(name, value, f"a whole number from {low} to {high}")

    return read


def _real(low: float, high: float, *, open_low: bool = False) -> Reader:
    kind = f"a number {'above' if open_low else 'from'} {low:g} to {high:g}"

    def read(name: str, value: Any) -> float:
        number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
        # Compared before it is converted: a whole number may be too long for a float.
        if number and (low < value if open_low else low <= value) and value <= high:
            return float(value)
        raise _wrong(name, value, kind)

    return read


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _wrong(name, value, "true or false")
    return value


def _early(name: str, value: Any) -> bool | str:
    if isinstance(value, bool) or (isinstance(value, str) and value == "never"):
        return value
    raise _wrong(name, value, "True, False or 'never'")


_id: Final = _whole(0)


def _list(name: str, value: Any, of: str) -> Sequence[Any]:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if not isinstance(value, (list, tuple, set, frozenset)):
        raise _wrong(name, value, of)
    if not isinstance(value, (set, frozenset)):
        return value
    try:
        return sorted(value)
    except TypeError:  # of several types, which have no order
        raise _wrong(name, value, of) from None


def _ids(name: str, value: Any) -> tuple[int, ...]:
    """A token id or a list of them."""
    values = [value] if isinstance(value, (int, np.integer)) else _list(name, value, "a token id or a list of them")
    return tuple(dict.fromkeys(_id(name, one) for one in values))


def _sequence(name: str, value: Any) -> tuple[int, ...]:
    ids = tuple(_id(name, one) for one in _list(name, value, "a list of token ids"))
    if not ids:
        raise _wrong(name, value, "a list of at least one token id")
    return ids


def _sequences(name: str, value: Any) -> tuple[tuple[int, ...], ...]:
    return tuple(dict.fromkeys(_sequence(name, one) for one in _list(name, value, "a list of lists of token ids")))


# Beyond these, sums of scores in single precision would be infinite.
_finite: Final = _real(-1e30, 1e30)


def _bias(name: str, value: Any) -> float:
    """What is added to a score; minus infinity forbids."""
    return value if isinstance(value, float) and value == -math.inf else float(_finite(name, value))


def _biases(name: str, value: Any) -> tuple[tuple[tuple[int, ...], float], ...]:
    """Token sequences with a bias: a mapping, or the pairs that JSON has instead."""
    pairs = list(value.items()) if isinstance(value, Mapping) else _list(name, value, "a list of [token ids, bias]")
    read = {}
    for pair in pairs:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise _wrong(name, pair, "[token ids, bias]")
        read[_sequence(name, pair[0])] = _bias(name, pair[1])
    return tuple(read.items())


def _token_biases(name: str, value: Any) -> tuple[tuple[int, float], ...]:
    """Tokens with a bias: a mapping, whose keys JSON makes strings, or pairs."""
    pairs = list(value.items()) if isinstance(value, Mapping) else _list(name, value, "a mapping of token id to bias")
    read = {}
    for pair in pairs:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise _wrong(name, pair, "a token id and its bias")
        key = pair[0]
        number = int(key) if isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 11 else key
        read[_id(name, number)] = _bias(name, pair[1])
    return tuple(read.items())


def _strings(name: str, value: Any) -> tuple[str, ...]:
    strings = [value] if isinstance(value, str) else _list(name, value, "a string or a list of strings")
    for string in strings:
        if not isinstance(string, str) or not 0 < len(string) <= MAX_STOP_CHARS:
            raise _wrong(name, string, f"a string of 1 to {MAX_STOP_CHARS} characters")
    if len(strings) > MAX_STOP_STRINGS:
        raise _wrong(name, f"{len(strings)} strings", f"at most {MAX_STOP_STRINGS}")
    return tuple(dict.fromkeys(strings))


def _any_real(name: str, value: Any) -> float:
    # Sampling words are judged only where sampling is on: files carry temperature 0, and top_k -1, beside do_sample
    # false.
    return float(_finite(name, value))


FIELDS: Final[Mapping[str, Reader]] = {
    "max_new_tokens": _whole(1),
    "max_length": _whole(1),
    "min_new_tokens": _whole(0),
    "min_length": _whole(0),
    "max_time": _real(0, 1e9, open_low=True),
    "stop_strings": _strings,
    "do_sample": _flag,
    "temperature": _any_real,
    "top_k": _whole(-MAX_COUNT),
    "top_p": _any_real,
    "min_p": _any_real,
    "typical_p": _any_real,
    "seed": _whole(0, 2**64 - 1),
    "repetition_penalty": _real(0.001, 1000),
    "presence_penalty": _finite,
    "frequency_penalty": _finite,
    "no_repeat_ngram_size": _whole(0),
    "bad_words_ids": _sequences,
    "sequence_bias": _biases,
    "logit_bias": _token_biases,
    "suppress_tokens": _ids,
    "begin_suppress_tokens": _ids,
    "forced_bos_token_id": _id,
    "forced_eos_token_id": _ids,
    "num_beams": _whole(1, MAX_ROWS),
    "num_beam_groups": _whole(1, MAX_ROWS),
    "diversity_penalty": _real(0, 1e30),
    "length_penalty": _real(-10, 10),
    "early_stopping": _early,
    "num_return_sequences": _whole(1, MAX_ROWS),
    "eos_token_id": _ids,
    "pad_token_id": _whole(-1),
    "bos_token_id": _id,
    "prompt_lookup_num_tokens": _whole(1, MAX_ROWS),
}
"""Option -> how its value is read; None is the caller's business."""

_SAMPLING: Final[Mapping[str, tuple[Callable[[float], bool], str]]] = {
    # Below that, scores divided by it would be infinite.
    "temperature": (
        lambda value: value >= 1e-5,
        "of at least 0.00001; for the likeliest token each time pass do_sample=False",
    ),
    "top_k": (lambda value: value >= 0, "of at least 0, which is for all tokens"),
    "top_p": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "min_p": (lambda value: 0 <= value <= 1, "from 0 to 1"),
    "typical_p": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
}
_SAMPLING_ONLY: Final = ("temperature", "top_k", "top_p", "min_p", "typical_p", "seed")
_BEAM_ONLY: Final = ("early_stopping", "length_penalty", "num_beam_groups", "diversity_penalty")


def contradiction(options: Mapping[str, Any], said: Collection[str] = ()) -> str | None:
    """Say which options exclude one another; None where all agree.

    Args:
        options: every option's value.
        said: the options of a call that differ from the defaults; those must have an effect.
    """
    o = options
    beams, groups = o["num_beams"], o["num_beam_groups"]
    if o["do_sample"]:
        for name, (right, expected) in _SAMPLING.items():
            if o[name] is not None and not right(o[name]):
                return f"{name}: got {o[name]:g}, expected a number {expected}."
    elif useless := [name for name in _SAMPLING_ONLY if name in said]:
        return f"{useless[0]} has no effect without sampling.\n  Pass do_sample=True, or leave {useless[0]} out."
    if beams == 1 and (useless := [name for name in _BEAM_ONLY if name in said and name != "num_beam_groups"]):
        return f"{useless[0]} has no effect without beams.\n  Pass num_beams=2 or more, or leave {useless[0]} out."
    forced = [name for name in ("forced_bos_token_id", "forced_eos_token_id") if _suppressed(o, name)]
    rules = (
        ("max_new_tokens" in said and "max_length" in said, "max_new_tokens and max_length say the same: pass one"),
        ("min_new_tokens" in said and "min_length" in said, "min_new_tokens and min_length say the same: pass one"),
        (_above(o, "min_new_tokens", "max_new_tokens"), "min_new_tokens is above max_new_tokens"),
        (_above(o, "min_length", "max_length"), "min_length is above max_length"),
        (beams % groups, f"num_beams ({beams}) must be a multiple of num_beam_groups ({groups})"),
        (groups > 1 and o["do_sample"], "num_beam_groups goes without do_sample: groups are not sampled"),
        (groups > 1 and not o["diversity_penalty"], "num_beam_groups needs a diversity_penalty above 0"),
        (groups == 1 and "diversity_penalty" in said, "diversity_penalty needs num_beam_groups of 2 or more"),
        (
            beams > 1 and o["num_return_sequences"] > beams,
            f"num_return_sequences ({o['num_return_sequences']}) must be at most num_beams ({beams})",
        ),
        (
            beams == 1 and o["num_return_sequences"] > 1 and not o["do_sample"],
            "num_return_sequences above 1 needs do_sample=True or num_beams: without them all would be the same",
        ),
        (
            o["prompt_lookup_num_tokens"] and (beams > 1 or o["do_sample"]),
            "prompt_lookup_num_tokens gives the greedy result: it goes without do_sample and num_beams",
        ),
        (forced, f"{', '.join(forced)} forces tokens that suppress_tokens forbids"),
    )
    problems = [text for broken, text in rules if broken]
    return f"{problems[0]}." if problems else None


def _above(options: Mapping[str, Any], low: str, high: str) -> bool:
    return options[high] is not None and options[low] > options[high]


def _suppressed(options: Mapping[str, Any], name: str) -> bool:
    forced = options[name]
    ids = {forced} if isinstance(forced, int) else set(forced or ())
    return bool(ids) and ids <= set(options["suppress_tokens"])
