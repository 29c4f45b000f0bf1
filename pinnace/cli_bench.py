"""``pinnace bench`` and ``pinnace compare``: measure a bundle on this machine, and tell whether two runs differ."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import shlex
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

from pinnace.cli_bench_flags import MIXED
from pinnace.cli_inputs import items_of_lines
from pinnace.cli_output import Console
from pinnace.errors import MissingExtra, UsageError, unknown_word

if TYPE_CHECKING:
    from pinnace.bench.judge import Row
    from pinnace.bench.plan import Request
    from pinnace.bench.results import Result

MIXED_TEXTS: Final = 300


# Flag -> field of the request, where what is not given is left to its default.
_FIELDS: Final = {
    "scenario": "scenarios", "precision": "precisions", "device": "devices", "threads": "threads", "batch": "batches",
    "prompt": "prompts", "output_tokens": "output_tokens", "concurrency": "concurrency", "rounds": "rounds",
    "starts": "starts", "round_seconds": "round_s", "latency_bound": "latency_bound_s", "percentile": "percentile",
    "peers": "peers", "peer_model": "peer_models", "against": "against", "seed": "seed", "data": "data",
}  # fmt: skip


def run(arguments: SimpleNamespace, console: Console) -> int:
    """Measure, print the tables, and write the files that are asked for."""
    if arguments.png and importlib.util.find_spec("matplotlib") is None:
        raise MissingExtra("report", "--png")  # said before the work, not after it
    if (arguments.bundle is None) == (arguments.random_weights is None):
        raise UsageError("give a bundle's folder, or --random-weights bert or apertus; one of the two")
    if arguments.random_weights is None:
        return _bench(arguments.bundle, arguments, console)
    from pinnace.bench.run import RANDOM_TASKS, export_random

    if arguments.random_weights not in RANDOM_TASKS:
        raise unknown_word("architecture", arguments.random_weights, RANDOM_TASKS)
    with tempfile.TemporaryDirectory(prefix="pinnace-random-") as folder:
        console.stage("exporting random weights")
        bundle = export_random(arguments.random_weights, arguments.task, arguments.config, Path(folder))
        return _bench(str(bundle), arguments, console)


def _bench(bundle: str, arguments: SimpleNamespace, console: Console) -> int:
    from pinnace.bench.run import against, bench
    from pinnace.bench.tables import render, render_rows

    result = bench(bundle, _request(bundle, arguments), console.stage)
    console.clear()
    _write(result, arguments, console)
    rows = against(result) if arguments.against else []
    if console.json:
        more = {"comparison": [dataclasses.asdict(row) for row in rows]} if rows else {}
        console.result_json({**result.to_dict(), **more})
    else:
        console.result(render(result))
        if rows:
            console.result(f"\n{arguments.against} before, {bundle} after, in the same rounds")
            console.result(render_rows(rows))
    shown = shlex.quote(bundle) if arguments.random_weights is None else f"--random-weights {arguments.random_weights}"
    if arguments.output:
        console.next(f"pinnace compare {shlex.quote(arguments.output)} LATER.json --fail-above 5%")
    else:
        console.next(f"pinnace bench {shown} --output results.json --html report.html", "keep it, and see it")
    if not all(result.checks.values()):
        console.error(
            "outputs differ where they should agree: " + "; ".join(k for k, v in result.checks.items() if not v)
        )
        return 1
    return _regressions(rows, arguments.fail_above, console)


def _request(bundle: str, arguments: SimpleNamespace) -> Request:
    from pinnace.bench.plan import Request

    given = {field: value for flag, field in _FIELDS.items() if (value := getattr(arguments, flag)) is not None}
    if arguments.length is not None:
        given["lengths"] = tuple(size for size in arguments.length if size != MIXED)
    if arguments.input is not None or arguments.length == (MIXED,):
        given |= _texts(bundle, arguments)
    return Request(**given)


def _texts(bundle: str, arguments: SimpleNamespace) -> dict[str, Any]:
    """Inputs of a file, or texts of unlike length that every Python has."""
    from pinnace.bench.run import count_tokens
    from pinnace.bench.texts import texts
    from pinnace.runtime.bundle import Bundle

    task = Bundle.open(bundle).manifest.task
    if arguments.input is None:
        name, items, options = f"{MIXED_TEXTS} docstrings of Python", texts(MIXED_TEXTS), {}
    else:
        found = list(items_of_lines(task, arguments.input, "auto", {}))
        if not found:
            raise UsageError(f"{arguments.input} has no line to answer")
        name, items = f"{len(found):,} inputs of {Path(arguments.input).name}", [item.value for item in found]
        options = found[0].options
        if any(item.options != options for item in found):
            raise UsageError("a benchmark asks every input with the same options; lines of the file have others")
    digest = hashlib.sha256(json.dumps(items, sort_keys=True).encode()).hexdigest()[:16]
    tokens = count_tokens(bundle, items)
    return {
        "texts": tuple(items), "tokens": tokens, "options": options,
        "inputs": f"{name}, {sum(tokens):,} tokens, sha256 {digest}",
    }  # fmt: skip


def _write(result: Result, arguments: SimpleNamespace, console: Console) -> None:
    from pinnace.bench.report_file import write_whole
    from pinnace.bench.tables import render_csv, render_markdown

    writers: dict[str, Callable[[Result], str]] = {
        "output": lambda made: made.to_json(), "csv": render_csv, "markdown": render_markdown,
    }  # fmt: skip
    for flag, writer in writers.items():
        if path := getattr(arguments, flag):
            write_whole(path, writer(result))
            console.log(f"wrote {path}")
    if arguments.html:
        from pinnace.bench.report import write_report

        write_report(result, arguments.html)
        console.log(f"wrote {arguments.html}")
    if arguments.png:
        from pinnace.bench.report import write_png

        write_png(result, arguments.png)
        console.log(f"wrote {arguments.png}")


def compare(arguments: SimpleNamespace, console: Console) -> int:
    """Compare two results; the exit code is 1 where the second is worse by more than is allowed."""
    from pinnace.bench.alike import differences
    from pinnace.bench.judge import judge
    from pinnace.bench.results import Result
    from pinnace.bench.tables import render_rows

    before, after = Result.read(arguments.before), Result.read(arguments.after)
    unlike = differences(before, after)
    if unlike and not arguments.force:
        listed = "\n  ".join(unlike)
        raise UsageError(
            f"these runs are unlike, so that a difference would mean nothing (--force compares):\n  {listed}"
        )
    rows = judge(before, after)
    if console.json:
        console.result_json({"unlike": unlike, "rows": [dataclasses.asdict(row) for row in rows]})
    else:
        console.result(render_rows(rows))
    for field in unlike:
        console.warn(f"unlike: {field}")
    if before.run != after.run:
        console.log("measured at two times: to find small changes, measure both in one run with bench --against")
    code = _regressions(rows, arguments.fail_above, console)
    console.next("pinnace bench BUNDLE --against OTHER", "both in the same rounds")
    return code


def _regressions(rows: list[Row], limit: float | None, console: Console) -> int:
    if limit is None:
        return 0
    worse = [row for row in rows if row.worse and row.change > limit]
    for row in worse:
        place = f" ({row.place})" if row.place else ""
        console.error(
            f"{row.measure}{place} of {row.candidate} is {100 * row.change:.1f} % worse, allowed {100 * limit:g} %"
        )
    return 1 if worse else 0
