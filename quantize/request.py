"""What a caller asked for: the schemes that the words mean, and settings of all of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Final

from pinnace.errors import UsageError, unknown_word
from pinnace.quantize.judging.latency import NEW_TOKENS
from pinnace.quantize.recipe import BITS
from pinnace.quantize.rounding.nearest import check_layout
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


def as_patterns(given: Collection[str]) -> tuple[str, ...]:
    """Shell patterns; a text is one of them, not a collection of its letters."""
    return (given,) if isinstance(given, str) else tuple(given)


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


def check_flags(
    schemes: Sequence[Scheme],
    *,
    auto: bool,
    decoder: bool,
    judge: bool,
    allow_degraded: bool,
    block: int | None,
    full_range: bool | None,
    calibration: str | None,
    max_drop: float | None,
    min_speedup: float | None,
    new_tokens: int | None,
) -> None:
    """Refuse what would be ignored; the arguments are those of `builder.quantize`, None where nothing was said.

    Args:
        schemes: what will be tried.
        decoder: whether the model writes tokens.

    Raises:
        UsageError: a word that nothing reads here, or a size of blocks that no kernel has.
    """
    for flag, given, users in (
        ("--block", block is not None, [row for row in SCHEMES.values() if row.blocks]),
        ("--full-range", bool(full_range), [row for row in SCHEMES.values() if row.integers]),
        ("--calibration", calibration is not None, [row for row in SCHEMES.values() if row.static]),
    ):
        if given and not any(row in users for row in schemes):
            names = ", ".join(row.name for row in users)
            tried = " or ".join(row.name for row in schemes)
            raise UsageError(f"{flag} is for the schemes {names}; leave it out for {tried}")
    for scheme in schemes:
        if block is not None and scheme.blocks:
            check_layout(BITS[scheme.way], block)
    if auto and not judge:
        raise UsageError("--auto chooses by quality and speed, and --no-judge measures neither; leave one of them out")
    if max_drop is not None and not judge:
        raise UsageError("--max-drop says what judging lets pass, and --no-judge leaves judging out; drop one of them")
    if not judge and not allow_degraded:
        raise UsageError("--no-judge leaves it open whether a variant passes; add --allow-degraded to have it written")
    for flag, number in (("--min-speedup", min_speedup), ("--new-tokens", new_tokens)):
        if number is not None and not auto:
            raise UsageError(f"{flag} is for --auto, which chooses by speed; leave it out, or add --auto")
    if new_tokens is not None and not decoder:
        raise UsageError("--new-tokens is for models that write tokens, and this one writes none; leave it out")


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
