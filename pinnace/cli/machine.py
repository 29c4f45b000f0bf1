"""``pinnace tasks`` and ``pinnace doctor``: what Pinnace can do, and what this machine can."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from pinnace.cli.inputs import flag_of
from pinnace.cli.output import Console
from pinnace.errors import MachineError
from pinnace.forms import FORMS


def tasks(arguments: SimpleNamespace, console: Console) -> int:
    """Print every task: its other names, its heads, the catalog's checkpoints, what it takes."""
    rows = task_rows()
    if console.json:
        console.result_json({"tasks": rows})
    else:
        for row in rows:
            aliases = f" ({', '.join(row['aliases'])})" if row["aliases"] else ""
            console.result(f"{row['task']}{aliases}")
            console.result(f"  takes  {' '.join(row['takes'])}")
            width = max(map(len, row["heads"]))
            for name, head in row["heads"].items():
                checkpoint = f", {row['catalog'][name]}" if name in row["catalog"] else ""
                untrained = " without this head (--init-missing makes one)" if name in row["untrained"] else ""
                console.result(f"  {name:<{width}}  {head}{checkpoint}{untrained}")
    console.next("pinnace export bert --task qa")
    return 0


def task_rows() -> list[dict[str, Any]]:
    """Every task as plain data."""
    from pinnace.export.tasks import TASKS
    from pinnace.models.registry import ARCHS
    from pinnace.spec import TASK_ALIASES

    rows = []
    for task in TASKS.values():
        entries = {arch.name: arch.catalog[task.name] for arch in ARCHS.values() if task.name in arch.catalog}
        rows.append({
            "task": task.name,
            "aliases": list(TASK_ALIASES[task.name]),
            "heads": dict(task.heads),
            "catalog": {name: entry.repository for name, entry in entries.items()},
            "untrained": [name for name, entry in entries.items() if entry.untrained],
            "takes": _takes(task.name),
            "outputs": [spec.name for spec in task.outputs],
        })  # fmt: skip
    return rows


def _takes(task: str) -> list[str]:
    form = FORMS[task]
    needed = [f"--{flag_of(field)}" for field in (*form.required, *([form.option] if form.option else []))]
    return ["TEXT", *needed, *(f"[--{flag_of(field)}]" for field in form.optional)]


def doctor(arguments: SimpleNamespace, console: Console) -> int:
    """Print what about this machine and installation helps or harms."""
    from pinnace.runtime.checks.doctor import FAIL, OK, diagnose, worst_level

    findings = diagnose()
    level = worst_level(findings)
    if console.json:
        console.result_json({"level": level, "findings": [finding.to_dict() for finding in findings]})
    else:
        width = max(len(finding.subject) for finding in findings)
        for finding in findings:
            console.result(f"{finding.level:<4}  {finding.subject:<{width}}  {finding.text}")
            if finding.remedy and finding.level != OK:
                console.result(f"      {'':<{width}}  -> {finding.remedy}")
    failed = level == FAIL
    console.next("pinnace doctor", "after the remedies above") if failed else console.next("pinnace tasks")
    return MachineError.exit_code if failed else 0
