"""A whole benchmark in one call: plan, measure, summarize."""

from __future__ import annotations

import json
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pinnace.bench import machine
from pinnace.bench.children import ChildFailed, run_child
from pinnace.bench.jobs import write_texts
from pinnace.bench.judging import judged, read_data
from pinnace.bench.plan import AFTER, BEFORE, PROGRAM, make_plan
from pinnace.bench.processes import now
from pinnace.bench.request import Request
from pinnace.bench.results import Candidate, Result
from pinnace.bench.rounds import measure
from pinnace.bench.summary import summarize
from pinnace.bench.verdicts import Row, judge_pairs, pair_up
from pinnace.errors import MissingExtra
from pinnace.runtime.tokenization.tokenizer import load_tokenizer
from pinnace.spec import canonical_task

# Architecture -> the task that random weights are exported for unless another one is asked for.
RANDOM_TASKS: Final = {"bert": "feature-extraction", "apertus": "text-generation"}


def bench(path: str | Path, request: Request, progress: Callable[[str], None] = lambda _text: None) -> Result:
    """Measure a bundle.

    Args:
        path: its folder.
        request: what to measure.
        progress: told what is done now.

    Raises:
        UsageError: a request that does not fit the bundle.
        InputError: what is no example of the bundle's task.
        BundleError: no bundle, or a damaged one.
        MachineError: a process of Pinnace failed.
    """
    load, started, start = machine.load(), now(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="pinnace-texts-") as folder:
        texts = Path(folder) / "texts.json"
        write_texts(texts, request.texts, request.tokens)
        plan = make_plan(path, request, texts)
        examples = read_data(request.data, plan) if request.data else None
        raw = measure(plan, progress)
        figures = None if examples is None else judged(plan, examples, progress)
    return summarize(plan, raw, secrets.token_hex(8), started, time.monotonic() - start, load, figures)


def against(result: Result) -> list[Row]:
    """Compare the two bundles of one run, the second with the first, at each variant and number of threads."""
    own = [candidate for candidate in result.candidates if candidate.program == PROGRAM and not candidate.missing]
    # The plan lists all candidates of the first bundle, then those of the other, which is the one before.
    before = [candidate for candidate in own if _bundle_of(candidate) != _bundle_of(own[0])]
    pairs = [
        pair
        for new in own
        for old in before
        if new not in before and (new.precision, new.device, new.threads) == (old.precision, old.device, old.threads)
        for pair in pair_up((result, old), (result, new))
    ]
    return judge_pairs(pairs)


def _bundle_of(candidate: Candidate) -> tuple[str, str]:
    """What tells a candidate's bundle: its folder, and a word of the name where both folders have one name."""
    word = candidate.name.removeprefix(f"{PROGRAM} ").partition(" ")[0]
    return candidate.model, word if word in (AFTER, BEFORE) else ""


def count_tokens(path: str | Path, items: Sequence[Any]) -> tuple[int, ...]:
    """Tokens of each input of a pipeline: of all its texts."""
    tokenizer = load_tokenizer(Path(path))
    texts = [json.dumps(item) if not isinstance(item, str | dict) else item for item in items]
    joined = [item if isinstance(item, str) else " ".join(map(str, _flat(item))) for item in texts]
    return tuple(len(row) for row in tokenizer(joined)["input_ids"])


def _flat(item: dict[str, Any]) -> list[Any]:
    return [part for value in item.values() for part in (value if isinstance(value, list) else [value])]


def export_random(
    architecture: str, task: str | None, config: str | None, folder: Path, variables: Mapping[str, str]
) -> Path:
    """Export random weights in a process of its own, so that this one stays small.

    Args:
        architecture: a key of `RANDOM_TASKS`.
        task: that it is exported for; None takes the one that suits.
        config: changes of its shape, as ``pinnace export --config`` takes them.
        folder: the bundle's parent.
        variables: further variables of the process's environment.

    Raises:
        UsageError: an unknown task.
        MissingExtra: PyTorch is not installed.
        ChildFailed: the export failed; it has the text and the exit code of the export's error.
    """
    import importlib.util

    task = canonical_task(task or RANDOM_TASKS[architecture])
    if importlib.util.find_spec("torch") is None:
        raise MissingExtra("export", "--random-weights")
    output = folder / f"{architecture}-random"
    words = [sys.executable, "-m", "pinnace", "export", architecture, "--random-weights", "--no-validate", "-q"]
    words += ["--task", task, "-o", str(output)]
    words += ["--config", config] if config else []
    try:
        run_child(words, threads=len(machine.affinity()), variables=variables)
    except ChildFailed as error:
        raise error.of_command() from None
    return output
