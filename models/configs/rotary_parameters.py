"""The ``rope_parameters`` of a configuration: both dialects brought into one, and checked. Needs no PyTorch."""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from typing import Any, Final

from pinnace.errors import ConfigError
from pinnace.models.configs.fields import did_you_mean, wrong

# Type of scaling -> the keys it needs and the keys it may have, beside rope_type and rope_theta.
ROTARY_KEYS: Final[Mapping[str, tuple[frozenset[str], frozenset[str]]]] = types.MappingProxyType(
    {
        "default": (frozenset(), frozenset()),
        "linear": (frozenset({"factor"}), frozenset()),
        "dynamic": (frozenset({"factor"}), frozenset()),
        "llama3": (
            frozenset({"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}),
            frozenset(),
        ),
        "yarn": (
            frozenset({"original_max_position_embeddings"}),
            frozenset({"factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"}),
        ),
    }
)
_AT_LEAST: Final = types.MappingProxyType(
    # A scale of 0 says the same as none: transformers asks whether it is true.
    {"factor": 1.0, "original_max_position_embeddings": 1.0, "mscale": 0.0, "mscale_all_dim": 0.0}
)
# Keys that would turn only a part of each head, or each kind of layer otherwise; these values change nothing.
_NEUTRAL: Final[Mapping[str, tuple[Any, ...]]] = types.MappingProxyType({"partial_rotary_factor": (1, 1.0, None)})


def in_one_dialect(values: dict[str, Any], default: Mapping[str, Any], positions: Any) -> dict[str, Any]:
    """Move ``rope_theta`` and ``rope_scaling`` of transformers 4 into ``rope_parameters`` of transformers 5.

    ``rope_scaling: null`` means plain rotary positions; where neither key stands, the architecture's default holds.

    Args:
        values: the keys of a configuration, changed in place.
        default: ``rope_parameters`` where nothing is said.
        positions: the longest row, for types that need to know how long rows were in the first training.

    Returns:
        ``values``.
    """
    theta = values.pop("rope_theta", None)
    says_nothing = "rope_scaling" not in values
    older = values.pop("rope_scaling", None)
    given = older or values.get("rope_parameters")
    if given is None:
        given = default if says_nothing else {"rope_type": "default"}
        if theta is not None:
            given = {**given, "rope_theta": theta}
    if isinstance(given, Mapping):  # anything else is left for the check of types
        given = dict(given)
        older_word = given.pop("type", None)
        given.setdefault("rope_type", older_word or "default")
        given.setdefault("rope_theta", default["rope_theta"] if theta is None else theta)
        for key, neutral in _NEUTRAL.items():
            if key in given and given[key] in neutral:
                del given[key]
        needed, _ = ROTARY_KEYS.get(str(given["rope_type"]), (frozenset[str](), None))
        if "original_max_position_embeddings" in needed:
            given.setdefault("original_max_position_embeddings", positions)
    values["rope_parameters"] = given
    return values


def check_rotary(owner: str, parameters: Mapping[str, Any], head_size: int) -> None:
    """Check the keys and numbers of ``rope_parameters``.

    Args:
        owner: the configuration's class, for the text.
        parameters: as `in_one_dialect` gives them.
        head_size: D, which rotation splits in two halves.

    Raises:
        ConfigError: an unknown type, a key that is missing, unknown or out of range, or an odd head size.
    """
    kind = parameters.get("rope_type")
    if kind not in ROTARY_KEYS:
        words = ", ".join(ROTARY_KEYS)
        raise wrong(owner, "rope_parameters: rope_type", kind, f"one of {words}{did_you_mean(str(kind), ROTARY_KEYS)}")
    needed, optional = ROTARY_KEYS[str(kind)]
    known = {"rope_type", "rope_theta"} | needed | optional
    if missing := sorted((needed | {"rope_theta"}) - parameters.keys()):
        raise ConfigError(f"{owner}: rope_parameters of type {kind!r} lack {', '.join(missing)}")
    for key in parameters.keys() - known:
        hint = did_you_mean(str(key), known)
        raise ConfigError(f"{owner}: rope_parameters of type {kind!r} have the unknown key {key!r}{hint}")
    for key, value in parameters.items():
        _check_number(owner, key, value, optional=key in optional)
    if kind == "llama3" and not parameters["low_freq_factor"] < parameters["high_freq_factor"]:
        raise wrong(
            owner, "rope_parameters: high_freq_factor", parameters["high_freq_factor"],
            f"more than low_freq_factor, {parameters['low_freq_factor']}",
        )  # fmt: skip
    if kind == "yarn" and parameters["rope_theta"] <= 1:
        raise wrong(
            owner,
            "rope_parameters: rope_theta",
            parameters["rope_theta"],
            "more than 1, as yarn divides by its logarithm",
        )
    if head_size % 2 or (kind == "dynamic" and head_size < 4):
        raise ConfigError(f"{owner}: the head size is {head_size}, rotary positions need an even number from 2 (4) on")


def _check_number(owner: str, key: str, value: Any, *, optional: bool) -> None:
    if key == "rope_type" or (optional and value is None):
        return
    if key == "truncate":
        if not isinstance(value, bool):
            raise wrong(owner, f"rope_parameters: {key}", value, "true or false")
        return
    low = _AT_LEAST.get(key)
    small = type(value) in (int, float) and (value <= 0 if low is None else value < low)
    if type(value) not in (int, float) or not math.isfinite(value) or small:
        least = "a number above 0" if low is None else f"a number, at least {low:g}"
        raise wrong(owner, f"rope_parameters: {key}", value, least)
