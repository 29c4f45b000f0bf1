"""What a variant needs of a processor, looked for when it is opened: refused where it lacks, else told."""

from __future__ import annotations

import types
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from pinnace.errors import MachineError
from pinnace.spec import EXACT_INT8_DOT, Variant

if TYPE_CHECKING:
    from pinnace.runtime.machine.cpu import Cpu

# Need, as manifests name it -> whether a processor meets it; None where nobody knows.
NEEDS: Final[Mapping[str, Callable[[Cpu], bool | None]]] = types.MappingProxyType(
    {EXACT_INT8_DOT: lambda cpu: {"exact": True, "saturating": False, "unknown": None}[cpu.int8_dot()]}
)


def lacking(variant: Variant, cpu: Cpu) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the needs of a variant that a processor does not meet, and those of which nobody knows.

    A need that this Pinnace has never heard of is one that is not met.
    """
    met = {need: NEEDS[need](cpu) if need in NEEDS else False for need in variant.needs}
    return tuple(n for n, found in met.items() if found is False), tuple(n for n, found in met.items() if found is None)


def check_needs(precision: str, variant: Variant, bundle: str, cpu: Cpu | None = None) -> None:
    """Refuse a variant that this processor would run wrongly, and warn where that cannot be told.

    Args:
        precision: the variant's name.
        variant: its facts. Where it needs nothing, nothing is read.
        bundle: name of the bundle, for the message.
        cpu: the processor; None reads it.

    Raises:
        MachineError: the processor lacks what the variant needs.
    """
    if not variant.needs:
        return
    if cpu is None:
        from pinnace.runtime.machine.cpu import read_cpu  # only variants with needs pay for it at their start

        cpu = read_cpu()
    missing, unknown = lacking(variant, cpu)
    made = f" It was made on {variant.made_on}." if variant.made_on else ""
    remedy = (
        f"Make it anew on this machine with: pinnace quantize {bundle} --precision {precision}; "
        "or run another precision, as fp32"
    )
    if missing:
        raise MachineError(
            f"the {precision} variant of {bundle} needs {_words(missing)}, which this processor ({_features(cpu)}) "
            f"lacks: its answers would be wrong.{made}\n  {remedy}"
        )
    if unknown:
        warnings.warn(
            f"the {precision} variant of {bundle} needs {_words(unknown)}, and whether this processor "
            f"({_features(cpu)}) has that cannot be told; `pinnace verify {bundle}` compares its numbers.{made}",
            RuntimeWarning,
            stacklevel=2,
        )


def _words(needs: tuple[str, ...]) -> str:
    return ", ".join(need if need in NEEDS else f"{need} (unknown to this Pinnace; update it)" for need in needs)


def _features(cpu: Cpu) -> str:
    return f"{cpu.name}: {', '.join(cpu.features) or 'features unknown'}"
