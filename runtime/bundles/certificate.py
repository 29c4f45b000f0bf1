"""The certificate of a bundle as the runtime reads it: plain data, and a verdict in words for each variant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pinnace.spec import CERTIFICATE_NAME

if TYPE_CHECKING:
    from pinnace.runtime.bundles.bundle import Bundle


def read_certificate(bundle: Bundle) -> dict[str, Any]:
    """Return the certificate as plain data.

    Raises:
        BundleError: missing, unsafe, too large, or not a JSON object.
    """
    return bundle.read_object(CERTIFICATE_NAME)


def certificate_summary(data: Mapping[str, Any]) -> dict[str, str]:
    """Return, for each variant that a certificate speaks of, its verdict in words.

    Args:
        data: from `read_certificate`.
    """
    variants = data.get("variants")
    summary = {}
    for precision, record in variants.items() if isinstance(variants, dict) else ():
        facts = record if isinstance(record, dict) else {}
        words = str(facts.get("verdict", "without a verdict"))
        if isinstance(facts.get("cases"), list):
            words += f" in {len(facts['cases'])} cases"
        found = facts.get("outputs")
        gaps = {k: v.get("max_abs") for k, v in found.items() if isinstance(v, dict)} if isinstance(found, dict) else {}
        if numbers := {name: gap for name, gap in gaps.items() if isinstance(gap, int | float)}:
            worst = max(numbers, key=lambda name: numbers[name])
            words += f", largest difference {numbers[worst]:.3g} ({worst})"
        summary[str(precision)] = words
    return summary
