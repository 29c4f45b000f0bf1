"""What many test files share: checkpoints exported once for a run of the suite."""

from __future__ import annotations

import fcntl
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from pinnace.runtime.pipelines.table import pipeline

DATA = Path(__file__).parent / "data"
GOLDEN = Path(__file__).parent / "golden"
TASKS = {
    "bert-glossary-qa": "question-answering",
    "bert-glossary-ner": "token-classification",
    "tiny-mlm": "fill-mask",
    "tiny-classify": "text-classification",
    "tiny-multilabel": "text-classification",
    "tiny-regression": "text-classification",
    "tiny-rerank": "text-classification",
    "tiny-nli": "text-classification",
    "tiny-nsp": "next-sentence-prediction",
    "tiny-choice": "multiple-choice",
    "tiny-pretraining": "pretraining",
    "tiny-embed": "feature-extraction",
    "tiny-generate": "text-generation",
}

OpenPipeline = Callable[..., Any]

# A busy machine's pauses are no failures.
hypothesis.settings.register_profile("pinnace", deadline=None)
hypothesis.settings.load_profile("pinnace")

# Behind nohup or a shell's &, Ctrl-C is ignored, and the commands that the tests start would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def golden(name: str) -> list[dict[str, Any]]:
    """The recorded cases of a file: ``model``, ``inputs``, ``options``, ``result``."""
    cases: list[dict[str, Any]] = json.loads((GOLDEN / f"{name}.json").read_text("ascii"))["cases"]
    return cases


@pytest.fixture(scope="session")
def bundle_of(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Callable[[str], Path]:
    """Export a checkpoint of ``tests/data`` once, however many processes run the tests."""
    base = tmp_path_factory.getbasetemp()
    shared = (base if worker_id == "master" else base.parent) / "bundles"
    shared.mkdir(exist_ok=True)

    def export_once(name: str) -> Path:
        output = shared / name
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not output.exists():
                import pinnace.export

                # Not validated, to save time: the tests compare with recorded results anyway.
                pinnace.export.export(str(DATA / name), task=TASKS[name], output=output, validate=False)
        return output

    return export_once


@pytest.fixture(scope="session")
def open_pipeline(bundle_of: Callable[[str], Path]) -> OpenPipeline:
    """Open a pipeline on an exported checkpoint; pipelines opened without options are kept for the whole run."""
    kept: dict[tuple[str, str], Any] = {}

    def opened(task: str, name: str, **options: Any) -> Any:
        if options:
            return pipeline(task, bundle_of(name), threads=1, **options)
        if (task, name) not in kept:
            kept[task, name] = pipeline(task, bundle_of(name), threads=1)
        return kept[task, name]

    return opened


def same(got: Any, expected: Any, tolerance: float = 1e-4) -> bool:
    """Whether two results agree: keys, labels, texts and places exactly, numbers within the tolerance."""
    if isinstance(expected, dict):
        return (
            isinstance(got, dict)
            and list(got) == list(expected)
            and all(same(got[key], expected[key], tolerance) for key in expected)
        )
    if isinstance(expected, list):
        return (
            isinstance(got, list)
            and len(got) == len(expected)
            and all(same(g, e, tolerance) for g, e in zip(got, expected, strict=True))
        )
    if isinstance(expected, float):
        return isinstance(got, float) and abs(got - expected) <= tolerance
    return bool(type(got) is type(expected) and got == expected)
