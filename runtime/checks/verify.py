"""Check a bundle on this machine, without PyTorch: files, graphs, certificate, and the numbers it gives here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from pinnace.errors import BundleError, CheckFailed, PinnaceError
from pinnace.runtime.bundles import hygiene, integrity
from pinnace.runtime.bundles.bundle import Bundle
from pinnace.runtime.bundles.certificate import certificate_summary, read_certificate
from pinnace.runtime.checks import golden
from pinnace.runtime.engine.providers import parse_device
from pinnace.runtime.engine.session import Session
from pinnace.runtime.generation.config import CONFIG_NAME, GenerationConfig
from pinnace.spec import CERTIFICATE_NAME, GOLDEN_NAME, NOT_VALIDATED, Manifest, golden_name

_NEVER: Final = (
    "exported with --no-validate: never compared with PyTorch, so there are no golden numbers to compare with here. "
    "Export without --no-validate to have them"
)


@dataclasses.dataclass(frozen=True)
class Check:
    """One check: what was looked at, the verdict, the numbers or the reason, and the exit code where it failed.

    One that was ``skipped`` found nothing wrong, for it had nothing to compare with.
    """

    name: str
    ok: bool
    detail: str
    exit_code: int = 0
    skipped: bool = False


@dataclasses.dataclass(frozen=True)
class VerifyReport:
    """All checks of one bundle, in the order in which they ran."""

    path: str
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return all(check.ok for check in self.checks)

    @property
    def exit_code(self) -> int:
        """0: all passed; 1: numbers differ; 3: damaged or unsafe; 5: this machine cannot."""
        return max((check.exit_code for check in self.checks if not check.ok), default=0)

    @property
    def skipped(self) -> tuple[str, ...]:
        """Names of the checks that had nothing to compare with."""
        return tuple(check.name for check in self.checks if check.skipped)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain data."""
        checks = [dataclasses.asdict(check) for check in self.checks]
        return {"path": self.path, "ok": self.ok, "skipped": list(self.skipped), "checks": checks}


def verify_bundle(
    path: str | Path,
    *,
    device: str = "cpu",
    threads: int | None = None,
    strict: bool = False,
    precisions: Sequence[str] | None = None,
) -> VerifyReport:
    """Check everything about a bundle that can be checked where it is used.

    No verdict is remembered: every file is read. Where files are damaged or unsafe, nothing is run. Otherwise a session
    runs the golden inputs; one that this process has open already is used only if its files are still the same ones.
    The numbers of a bundle that was exported without validation have nothing to be compared with: they are skipped.

    Args:
        path: the bundle's folder.
        device: where to run the golden inputs.
        threads: threads of a run.
        strict: what would be skipped fails.
        precisions: the variants whose numbers are looked at; None for all. Files and graphs are checked of all.

    Raises:
        BundleError: no such folder, or no readable manifest in it.
        UsageError: no such device, or no such variant.
    """
    parse_device(device)
    bundle = Bundle.open(path, verify=False)
    manifest = bundle.manifest
    chosen = [bundle.precision(name, device) for name in precisions or manifest.variants]
    checks = [_check("files", partial(_files, bundle))]
    for precision, variant in manifest.variants.items():
        checks.append(_check(f"graph {precision}", partial(_graph, bundle, variant.graph)))
    for name in sorted(manifest.files):
        if name.endswith(".safetensors"):
            checks.append(_check(f"weights {name}", partial(_weights, bundle, name)))
    checks.append(_check("certificate", partial(_certificate, bundle)))
    if manifest.cache is not None:
        checks.append(_check("generation", partial(_generation, bundle)))
    if all(check.ok for check in checks):
        for precision in chosen:
            if _never_compared(bundle):
                checks.append(Check(f"numbers {precision}", not strict, _NEVER, int(strict), skipped=not strict))
            else:
                checks.append(_check(f"numbers {precision}", partial(_numbers, bundle, precision, device, threads)))
    return VerifyReport(str(bundle.path), tuple(checks))


def _check(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name, True, look())
    except PinnaceError as error:
        return Check(name, False, str(error), error.exit_code)


def _files(bundle: Bundle) -> str:
    files = bundle.manifest.files
    integrity.check_names(bundle.path, files)
    integrity.check_hashes(bundle.path, files)
    return (
        f"{len(files)} files, {sum(fact.bytes for fact in files.values()) / 1e6:,.1f} MB, SHA-256 of each as recorded"
    )


def _graph(bundle: Bundle, graph: str) -> str:
    model = hygiene.check_graph(bundle.path, graph, bundle.manifest.files)
    domains = sorted({node.domain or "ai.onnx" for node in model.nodes()})
    return f"{graph}: {sum(1 for _ in model.nodes())} nodes of {', '.join(domains)}; weights stay inside the bundle"


def _weights(bundle: Bundle, name: str) -> str:
    integrity.identify(bundle.path, name)
    return f"{hygiene.check_weights(bundle.path / name)} tensors cover the file exactly"


def _certificate(bundle: Bundle) -> str:
    if CERTIFICATE_NAME not in bundle.manifest.files:
        raise BundleError(f"the manifest lists no {CERTIFICATE_NAME}: nothing says how the export was checked")
    data = read_certificate(bundle)
    for key, expected in _shared_facts(bundle.manifest).items():
        if key in data and data[key] != expected:
            raise BundleError(f"{CERTIFICATE_NAME} is of another bundle: {key} is {data[key]!r}, expected {expected!r}")
    summary = certificate_summary(data)
    if unknown := sorted(set(summary) ^ set(bundle.manifest.variants)):
        raise BundleError(f"{CERTIFICATE_NAME} and the manifest disagree on the variant {unknown[0]!r}")
    return "; ".join(f"{precision} {words}" for precision, words in summary.items())


def _generation(bundle: Bundle) -> str:
    GenerationConfig.from_folder(bundle.path)
    return f"{CONFIG_NAME} can be followed" if CONFIG_NAME in bundle.manifest.files else f"no {CONFIG_NAME}: defaults"


def _never_compared(bundle: Bundle) -> bool:
    """Whether the export compared nothing, and says so: then there can be no golden numbers."""
    variants = read_certificate(bundle).get("variants")
    found = variants.items() if isinstance(variants, dict) else ()
    # Quantized variants are compared with fp32, whatever fp32 was compared with.
    records = [r for name, r in found if name in bundle.manifest.variants and not bundle.variant(name).scheme]
    unchecked = bool(records) and all(isinstance(r, dict) and r.get("verdict") == NOT_VALIDATED for r in records)
    return unchecked and GOLDEN_NAME not in bundle.manifest.files


def _shared_facts(manifest: Manifest) -> dict[str, str]:
    return {"task": manifest.task, "head": manifest.head, "architecture": manifest.architecture}


def _numbers(bundle: Bundle, precision: str, device: str, threads: int | None) -> str:
    if GOLDEN_NAME not in bundle.manifest.files:
        raise BundleError(f"the manifest lists no {GOLDEN_NAME}, so its numbers cannot be checked; export it again")
    # A quantized variant has outputs of its own: what it gave where it was judged on real data.
    own = golden_name(precision)
    cases = golden.read_golden(bundle.path / (own if own in bundle.manifest.files else GOLDEN_NAME))
    session = Session(bundle, precision, device=device, threads=threads)
    try:
        return golden.check_numbers(session, cases)
    except CheckFailed as error:
        graph = bundle.variant(precision).graph
        raise CheckFailed(f"{graph} does not give the reference's numbers: {error}") from None
