"""Trained checkpoints quantized once for a run of the suite, judged on their own labelled sets."""

from __future__ import annotations

import dataclasses
import fcntl
import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pinnace
from pinnace.quantize.examples.source import Examples
from pinnace.quantize.judging import latency
from tests.conftest import DATA
from tests.generation_bundles import MakeBundle

QA, NER, APERTUS = "bert-glossary-qa", "bert-glossary-ner", "apertus-glossary"
# Checkpoint -> its labelled set, and how many rows of it judge and calibrate.
SETS = {QA: ("qa_dev.json", 150), NER: ("ner_dev.json", 200), APERTUS: ("lm_dev.txt", 240)}
# Options of an export that give a tiny checkpoint, whose matrices are too narrow, something to quantize.
WIDE: dict[str, Any] = {"random_weights": True, "config": "hidden_size=32,intermediate_size=64"}
WIDE_FLAGS = ("--random-weights", "--config", WIDE["config"])
Quantized = Callable[[str, str], Path]
Once = Callable[[str, Callable[[Path], Any]], Path]


@pytest.fixture(scope="session")
def quick_clock() -> Any:
    """Latencies of one round: these tests do not read them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pinnace.quantize.workshop.measure", functools.partial(latency.measure, rounds=1))
        yield


def rows(name: str, folder: Path) -> Path:
    """The first rows of a checkpoint's set, as a file."""
    source, count = SETS[name]
    target = folder / source
    text = (DATA / source).read_text("utf-8")
    if target.suffix == ".txt":
        target.write_text("\n".join(text.splitlines()[:count]) + "\n", "utf-8")
    else:
        target.write_text(json.dumps(json.loads(text)[:count]), "utf-8")
    return target


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Once:
    """Make a folder once, however many processes run the tests."""
    base = tmp_path_factory.getbasetemp()
    shared = (base if worker_id == "master" else base.parent) / "quantized"
    shared.mkdir(exist_ok=True)

    def made(name: str, make: Callable[[Path], Any]) -> Path:
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (shared / name).exists():
                make(shared / name)
        return shared / name

    return made


@pytest.fixture(scope="session")
def fp32_of(bundle_of: Callable[[str], Path], decoder_of: MakeBundle, once: Once) -> Callable[[str], Path]:
    """The exported bundle of a trained checkpoint; that of entities was validated, so that it has golden numbers."""

    def validated(output: Path) -> None:
        pinnace.export(str(DATA / NER), task="ner", output=output)

    exported: dict[str, Callable[[], Path]] = {
        QA: lambda: bundle_of(QA),
        NER: lambda: once("validated", validated),
        APERTUS: lambda: decoder_of("apertus-ort"),
    }
    return lambda name: exported[name]()


@pytest.fixture(scope="session")
def quantized(fp32_of: Callable[[str], Path], quick_clock: None, once: Once) -> Quantized:
    """Quantize a checkpoint's bundle by a scheme once, and keep the report beside it."""

    def make(name: str, scheme: str) -> Path:
        def write(output: Path) -> None:
            folder = output.with_name(f"{output.name}-data")
            folder.mkdir(exist_ok=True)
            data = rows(name, folder)
            report = pinnace.quantize(fp32_of(name), scheme=scheme, data=data, output=output, threads=1)
            output.with_name(f"{output.name}.json").write_text(json.dumps(report.to_dict()))

        return once(f"{name}-{scheme}", write)

    return make


def reported(bundle: Path) -> dict[str, Any]:
    """What the report said of the only candidate of a quantized bundle."""
    found: dict[str, Any] = json.loads(bundle.with_name(f"{bundle.name}.json").read_text())
    return {**found, **found["candidates"][-1]}


def some(examples: Examples, count: int) -> Examples:
    """So many of the examples, evenly spread."""
    items = (
        tuple(examples[i * len(examples) // count] for i in range(count)) if count < len(examples) else examples.items
    )
    return dataclasses.replace(examples, items=items)


def copied(bundle: Path, folder: Path) -> Path:
    """A copy to damage or to write into."""
    shutil.copytree(bundle, folder)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    """Every file and its bytes."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
