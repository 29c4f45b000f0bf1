"""``pinnace inspect`` and ``pinnace verify``: look at a bundle, and check it on this machine."""

from __future__ import annotations

import shlex
from types import SimpleNamespace

from pinnace.cli.output import Console
from pinnace.errors import MachineError
from pinnace.forms import FORMS


def inspect(arguments: SimpleNamespace, console: Console) -> int:
    """Print a picture of a bundle."""
    from pinnace.runtime.checks.inspect_bundle import describe, render

    facts = describe(arguments.bundle)
    if console.json:
        console.result_json(facts)
    else:
        console.result(render(facts))
    console.next(f"pinnace verify {shlex.quote(arguments.bundle)}")
    return 0


def verify(arguments: SimpleNamespace, console: Console) -> int:
    """Check a bundle; the exit code is that of the worst failure."""
    from pinnace.runtime.bundles.bundle import Bundle
    from pinnace.runtime.checks.verify import verify_bundle

    console.stage("reading every file")
    report = verify_bundle(
        arguments.bundle, device=arguments.device or "cpu", threads=arguments.threads, strict=arguments.strict,
        precisions=arguments.precision,
    )  # fmt: skip
    if console.json:
        console.result_json({**report.to_dict(), "seconds": round(console.seconds, 3)})
    else:
        width = max(len(check.name) for check in report.checks)
        for check in report.checks:
            word = "skip" if check.skipped else "ok  " if check.ok else "FAIL"
            console.result(f"{word}  {check.name:<{width}}  {check.detail}")
    folder = shlex.quote(arguments.bundle)
    if report.skipped:
        console.warn(f"{arguments.bundle} is whole, and its numbers were never checked: {', '.join(report.skipped)}")
    if report.ok:
        form = FORMS.get(Bundle.open(arguments.bundle, verify=False).manifest.task)
        console.next(f"pinnace run {folder} {form.example}" if form else f"pinnace inspect {folder}")
    else:
        failed = [check.name for check in report.checks if not check.ok]
        console.error(f"{arguments.bundle} failed {len(failed)} of {len(report.checks)} checks: {', '.join(failed)}")
        codes = {check.exit_code for check in report.checks if not check.ok}
        if codes != {MachineError.exit_code}:
            console.next("pinnace export MODEL --task TASK", "make the bundle again, or copy it whole")
        if MachineError.exit_code in codes:
            console.next("pinnace doctor", "see what this machine lacks")
    return report.exit_code
