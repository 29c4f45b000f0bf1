"""What a caller asked for: the schemes that the words mean, and settings of all of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from pinnace.errors import UsageError, unknown_word
from pinnace.quantize.judging.latency import NEW_TOKENS
from pinnace.quantize.schemes import SCHEMES, Scheme
from pinnace.quantize.thresholds import METHODS
from pinnace.spec import Manifest, TensorSpec, is_cached

# Precision -> the scheme that a request for it means.
DEFAULTS: Final[Mapping[str, str]] = {"int8": "int8", "int4": "int4", "fp16": "fp16"}
# What --auto tries, by whether the model writes tokens.
TRIED: Final[Mapping[bool, tuple[str, ...]]] = {
    False: ("int8", "int8-token", "int8-weights"),
    True: ("int8", "int8-token", "int8-weights", "int4"),
}
MIN_SPEEDUP: Final = 1.2
_TOKENIZER: Final = "tokenizer.json"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a caller asked for; see `quantize`."""

    keep: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    block: int | None = None
    full_range: bool | None = None
    calibration: str | None = None
    allow_degraded: bool = False
    threads: int | None = None
    max_drop: float | None = None
    min_speedup: float = MIN_SPEEDUP
    judge: bool = True
    new_tokens: int = NEW_TOKENS

    def __post_init__(self) -> None:
        if self.new_tokens < 1:
            raise UsageError(f"--new-tokens {self.new_tokens}: a request writes at least one token; give 1 or more")


def usual_scheme(precision: str) -> Scheme:
    """The scheme that a request for a precision means."""
    return SCHEMES[DEFAULTS[precision]]


def asked_schemes(
    precision: str | None, scheme: str | None, auto: bool, manifest: Manifest, calibration: str | None
) -> list[Scheme]:
    """Return the schemes to try, one unless ``auto``; the arguments are those of `builder.quantize`.

    Raises:
        UsageError: an unknown word, or words that exclude one another.
    """
    if scheme is not None and scheme not in SCHEMES:
        raise unknown_word("scheme", scheme, SCHEMES)
    if calibration is not None and calibration not in METHODS:
        raise unknown_word("method of calibration", calibration, METHODS)
    if precision is not None and precision not in DEFAULTS:
        raise unknown_word("precision to quantize to", precision, DEFAULTS)
    if auto and scheme is not None:
        raise UsageError("--auto chooses the scheme; leave --scheme out, or --auto")
    if scheme is not None and precision not in (None, SCHEMES[scheme].precision):
        raise UsageError(f"the scheme {scheme} makes {SCHEMES[scheme].precision}, and --precision asks for {precision}")
    if not auto:
        return [SCHEMES[scheme] if scheme else usual_scheme(precision or "int8")]
    tried = [SCHEMES[name] for name in TRIED[manifest.cache is not None]]
    found = [row for row in tried if precision in (None, row.precision)]
    if not found:
        words = ", ".join(dict.fromkeys(row.precision for row in tried))
        raise UsageError(
            f"--auto times candidates on this processor and tries {words}, got --precision {precision}; "
            "leave --auto out"
        )
    return found


def has_tokenizer(manifest: Manifest) -> bool:
    """Whether texts can calibrate and judge a bundle."""
    return _TOKENIZER in manifest.files


def check_bundle(manifest: Manifest, schemes: Sequence[Scheme], data: Path | None, *, judge: bool) -> None:
    """Find what a bundle does not allow before the long work begins.

    Args:
        manifest: of the bundle.
        schemes: what will be tried.
        data: file of examples, or None.
        judge: whether variants are judged and timed.

    Raises:
        UsageError: examples that no tokenizer can read, or a decoder that takes no prompts of any length.
    """
    if data is not None and not has_tokenizer(manifest):
        raise UsageError(
            f"--data {data.name}: the bundle has no {_TOKENIZER}, so that texts cannot become its tokens; "
            "leave --data out, or export again from a folder with a tokenizer"
        )
    if (judge or any(scheme.calibrates for scheme in schemes)) and (spec := _fixed_input(manifest)) is not None:
        raise UsageError(
            f"{spec.name} has the fixed shape {list(spec.shape)}, and a decoder is calibrated and judged on prompts of "
            "any length; export without --static, or with --static capacity alone, to quantize"
        )


def _fixed_input(manifest: Manifest) -> TensorSpec | None:
    """A decoder's first input of fixed rows or tokens; the slots of a cache of fixed capacity are none."""
    if manifest.cache is None:
        return None
    for spec in manifest.inputs:
        cached = is_cached(spec.name)
        slots = manifest.cache.fixed and (cached or spec.name == "attention_mask")
        sizes = (spec.shape[0],) if slots else (spec.shape[0], spec.shape[2 if cached else 1])
        if any(isinstance(size, int) for size in sizes):
            return spec
    return None
