"""Which variant ``precision="auto"`` takes on this machine, and for each variant the reason."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from pinnace.errors import BundleError, MachineError
from pinnace.runtime.bundles import speeds
from pinnace.runtime.bundles.certificate import read_certificate
from pinnace.runtime.bundles.needs import lacking
from pinnace.runtime.machine.cpu import Cpu, read_cpu
from pinnace.spec import AUTO, CERTIFICATE_NAME, CHOSEN_BY_AUTO, REFERENCE, Variant

if TYPE_CHECKING:
    from pinnace.runtime.bundles.bundle import Bundle

HALF: Final = "fp16"
# Ways of a recipe whose products are of integers: fast in batches. The others only shorten what is read.
_INTEGER_WAYS: Final = frozenset({"fixed", "token"})
# A variant is worth its loss of quality where it is at least so many times as fast as fp32.
_FASTER: Final = 1.05


@dataclasses.dataclass(frozen=True)
class Judgement:
    """What speaks for or against one variant here.

    Attributes:
        precision: the variant.
        fit: whether it may be chosen at all.
        why: the reason, in words.
        rank: the highest is taken; compared among those that fit.
    """

    precision: str
    fit: bool
    why: str
    rank: tuple[float, float] = (0.0, 0.0)


def judge_variants(bundle: Bundle, device: str = "cpu", cpu: Cpu | None = None) -> list[Judgement]:
    """Judge every variant of a bundle for a device of this machine.

    Never fit: one that missed its gate, one that nothing judged, one whose needs this processor lacks or may lack, fp16
    on a CPU, a quantized one on a GPU. Among the others counts, in this order: the speed that was measured on this
    machine; that ``pinnace quantize --auto`` chose it; what its scheme is known to be good for, integer products for
    encoders and fewer bytes for decoders, whose steps wait for weights. fp32 stands for what is no faster.

    Args:
        bundle: an opened bundle.
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        cpu: the processor; None reads it.
    """
    cpu = cpu or read_cpu()
    records = _records(bundle)
    return [
        _judge(bundle, precision, variant, records.get(precision, {}), device.partition(":")[0], cpu)
        for precision, variant in bundle.manifest.variants.items()
    ]


def best_variant(bundle: Bundle, device: str = "cpu", cpu: Cpu | None = None) -> str:
    """Return the precision that ``auto`` takes.

    Raises:
        MachineError: the bundle has no variant that fits; the text has each one's reason.
    """
    judged = judge_variants(bundle, device, cpu)
    fit = [judgement for judgement in judged if judgement.fit]
    if not fit:
        reasons = "\n".join(f"  {judgement.precision}: {judgement.why}" for judgement in judged)
        raise MachineError(f"no variant of {bundle.path.name} fits {device} of this machine:\n{reasons}")
    return max(fit, key=lambda judgement: judgement.rank).precision


def describe_choice(bundle: Bundle) -> dict[str, Any]:
    """Return which variant ``auto`` takes on this machine's CPU, and each one's reason, as plain data."""
    judged = judge_variants(bundle)
    try:
        chosen: str | None = best_variant(bundle)
    except MachineError:
        chosen = None
    return {"precision": chosen, "reasons": {judgement.precision: judgement.why for judgement in judged}}


def _records(bundle: Bundle) -> dict[str, dict[str, Any]]:
    """What the certificate says of each variant; nothing where it is missing or damaged."""
    if CERTIFICATE_NAME not in bundle.manifest.files:
        return {}
    try:
        found = read_certificate(bundle).get("variants")
    except BundleError:
        return {}
    return {k: v for k, v in found.items() if isinstance(v, dict)} if isinstance(found, dict) else {}


def _judge(
    bundle: Bundle, precision: str, variant: Variant, record: Mapping[str, Any], device: str, cpu: Cpu
) -> Judgement:
    if precision == REFERENCE:
        return Judgement(precision, True, "the reference that all others are judged by")
    if reason := _unfit(precision, variant, record, device, cpu):
        return Judgement(precision, False, reason)
    if precision == HALF:
        return Judgement(precision, True, "half the bytes of fp32, and GPUs have units for it", (1, 0))
    return _by_speed(bundle, precision, variant, record, cpu)


def _unfit(precision: str, variant: Variant, record: Mapping[str, Any], device: str, cpu: Cpu) -> str:
    """Why a variant is never chosen; empty where nothing is against it."""
    if variant.degraded:
        return "degraded: it missed its gate, or nothing judged it"
    if record.get("verdict") != "passed":
        return f"not verified: {record.get('verdict', 'the certificate says nothing of it')}"
    if (precision == HALF) != (device != "cpu"):
        return "fp16 is slower than fp32 on CPUs" if precision == HALF else "its integer products are made for CPUs"
    missing, unknown = lacking(variant, cpu)
    if missing:
        return f"it needs {', '.join(missing)}, which {cpu.name} lacks"
    return f"it needs {', '.join(unknown)}, and whether {cpu.name} has that cannot be told" if unknown else ""


def _by_speed(bundle: Bundle, precision: str, variant: Variant, record: Mapping[str, Any], cpu: Cpu) -> Judgement:
    """Rank a quantized variant by the best evidence of its speed."""
    size = sum(bundle.manifest.files[name].bytes for name in (variant.graph, *variant.weights))
    measured = speeds.recall(bundle.manifest, precision, cpu)
    if measured is not None:
        faster = measured >= _FASTER
        why = f"measured on this machine: {measured:.2f} times as fast as fp32"
        return Judgement(precision, True, why, (3, measured) if faster else (-1, measured))
    if record.get(CHOSEN_BY_AUTO) is True:
        return Judgement(
            precision, True, f"pinnace quantize --{AUTO} chose it on {variant.made_on or 'its machine'}", (2, -size)
        )
    recipe = record.get("recipe")
    groups = recipe.get("groups") if isinstance(recipe, dict) else None
    ways = list(groups.values()) if isinstance(groups, dict) else []
    if bundle.manifest.cache is not None:
        return Judgement(precision, True, "a decoder's steps wait for weights, and it has fewer bytes", (1, -size))
    if 2 * sum(way in _INTEGER_WAYS for way in ways) > len(ways):
        return Judgement(precision, True, "most of its products are of integers, which are faster", (1, -size))
    return Judgement(precision, True, "weights alone are smaller, which makes no encoder faster", (-2, -size))
