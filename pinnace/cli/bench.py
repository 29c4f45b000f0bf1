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

from pinnace.bench.report.files import check_places
from pinnace.cli.bench_flags import MIXED
from pinnace.cli.commands import COMMANDS
from pinnace.cli.lines import items_of_lines
from pinnace.cli.output import Console
from pinnace.errors import MissingExtra, UsageError, unknown_word
from pinnace.forms import FORMS

if TYPE_CHECKING:
    from pinnace.bench.request import Request
    from pinnace.bench.results import Result
    from pinnace.bench.verdicts import Row

MIXED_TEXTS: Final = 300


# Flag -> field of the request, where what is not given is left to its default.
_FIELDS: Final = {
    "scenario": "scenarios", "precision": "precisions", "device": "devices", "threads": "threads", "batch": "batches",
    "prompt": "prompts", "output_tokens": "output_tokens", "concurrency": "concurrency", "rounds": "rounds",
    "starts": "starts", "round_seconds": "round_s", "latency_bound": "latency_bound_s", "percentile": "percentile",
    "peers": "peers", "peer_model": "peer_models", "against": "against", "seed": "seed", "data": "data",
}  # fmt: skip


# Flag -> the flag without which it would have no effect.
_BELONGS: Final = {"config": "random_weights", "task": "random_weights", "fail_above": "against"}
_FILES: Final = ("output", "csv", "markdown", "html", "png")


def run(arguments: SimpleNamespace, console: Console) -> int:
    """Measure, print the tables, and write the files that are asked for."""
    _check_flags(arguments)
    check_places({flag: getattr(arguments, flag) for flag in _FILES})
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
        # Variables of flags are meant for this command, not for the export; an empty one counts as not set.
        hidden = {flag.variable: "" for flag in COMMANDS["export"].all_flags if flag.name != "cache-dir"}
        bundle = export_random(arguments.random_weights, arguments.task, arguments.config, Path(folder), hidden)
        return _bench(str(bundle), arguments, console)


def _check_flags(arguments: SimpleNamespace) -> None:
    """Refuse flags that would have no effect."""
    needed = {flag: other for flag, other in _BELONGS.items() if getattr(arguments, other) is None}
    for flag, other in needed.items():
        if getattr(arguments, flag) is not None:
            raise UsageError(f"{_given(flag)} has no effect without {_dashed(other)}; add that, or leave it out")
    for flag in ("latency_bound", "percentile"):
        if getattr(arguments, flag) is not None and "server" not in (arguments.scenario or ()):
            raise UsageError(f"{_given(flag)} has no effect without --scenario server; add that, or leave it out")
    if arguments.input is not None and arguments.length is not None:
        raise UsageError("--length has no effect on the texts of --input, which have their own; leave one out")


def _given(flag: str) -> str:
    return f"{_dashed(flag)} (or PINNACE_{flag.upper()})"


def _dashed(flag: str) -> str:
    return f"--{flag.replace('_', '-')}"


def _bench(bundle: str, arguments: SimpleNamespace, console: Console) -> int:
    from pinnace.bench.run import against, bench

    result = bench(bundle, _request(bundle, arguments), console.stage)
    console.clear()
    rows = against(result) if arguments.against else []
    try:
        _show(result, rows, f"{arguments.against} before, {bundle} after, in the same rounds", console)
    finally:  # whoever reads the result may have read enough, and the files are written nevertheless
        _write(result, arguments, console)
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
    return _gate(rows, arguments.fail_above, console)


def _show(result: Result, rows: list[Row], title: str, console: Console) -> None:
    from pinnace.bench.tables import render, render_rows

    if console.json:
        more = {"comparison": [dataclasses.asdict(row) for row in rows]} if rows else {}
        console.result_json({**result.to_dict(), **more})
        return
    console.result(render(result))
    if rows:
        console.result(f"\n{title}")
        console.result(render_rows(rows))


def _request(bundle: str, arguments: SimpleNamespace) -> Request:
    from pinnace.bench.request import Request

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
    from pinnace.runtime.bundles.bundle import Bundle
    from pinnace.runtime.pipelines.table import pipeline

    opened = Bundle.open(bundle)
    task = opened.manifest.task
    if arguments.input is None:
        if required := FORMS[task].required:
            raise UsageError(f"--length mixed gives texts, and {task} needs {', '.join(required)} too; give --input")
        name, items, options = f"{MIXED_TEXTS} docstrings of Python", texts(MIXED_TEXTS), {}
    else:
        found = list(items_of_lines(task, arguments.input, "auto", {}))
        if not found:
            raise UsageError(f"{arguments.input} has no line to answer")
        pipe = pipeline(task, opened)
        for item in found:
            if item.error is not None:
                raise item.error
            pipe.check_input(item.value, item.place)
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
    from pinnace.bench.report.files import write_whole
    from pinnace.bench.tables import render_csv, render_markdown

    writers: dict[str, Callable[[Result], str]] = {
        "output": lambda made: made.to_json(), "csv": render_csv, "markdown": render_markdown,
    }  # fmt: skip
    for flag, writer in writers.items():
        if path := getattr(arguments, flag):
            write_whole(path, writer(result))
            console.log(f"wrote {path}")
    if arguments.html:
        from pinnace.bench.report.bench import write_report

        write_report(result, arguments.html)
        console.log(f"wrote {arguments.html}")
    if arguments.png:
        from pinnace.bench.report.bench import write_png

        write_png(result, arguments.png)
        console.log(f"wrote {arguments.png}")


def compare(arguments: SimpleNamespace, console: Console) -> int:
    """Compare two results; the exit code is 1 where the second is worse by more than is allowed."""
    from pinnace.bench.alike import differences
    from pinnace.bench.results import Result
    from pinnace.bench.tables import render_rows
    from pinnace.bench.verdicts import judge

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
    code = _gate(rows, arguments.fail_above, console)
    console.next("pinnace bench BUNDLE --against OTHER", "both in the same rounds")
    return code


def _gate(rows: list[Row], limit: float | None, console: Console) -> int:
    """Tell what ``--fail-above`` does not let pass: what is too much worse, and what could not be judged."""
    if limit is None:
        return 0
    said = [
        f"{_named(row)} is {100 * row.change:.1f} % worse, allowed {100 * limit:g} %"
        for row in rows
        if row.worse and row.change > limit
    ]
    said += [f"{_named(row)} was {row.verdict}; {_remedy(row)}" for row in rows if row.low is None]
    if not rows:
        said = ["nothing was judged: the two have no measure in common"]
    for text in said:
        console.error(text)
    return 1 if said else 0


def _named(row: Row) -> str:
    return f"{row.measure}{f' ({row.place})' if row.place else ''} of {row.candidate}"


def _remedy(row: Row) -> str:
    from pinnace.bench.verdicts import FEWEST_ROUNDS, FEWEST_STARTS, once_a_start

    if once_a_start(row.measure):  # and a run has no more starts than rounds
        return f"measure with --starts {FEWEST_ROUNDS} --rounds {FEWEST_ROUNDS} or more"
    flag = f"--starts {FEWEST_STARTS}" if "start" in row.verdict else f"--rounds {FEWEST_ROUNDS}"
    return f"measure with {flag} or more"
