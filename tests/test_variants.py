"""Variants on other machines: needs that are refused or warned of, what ``auto`` takes and why, cards, exports."""

from __future__ import annotations

import dataclasses
import io
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from pinnace.card import quality_cells
from pinnace.cli.main import main
from pinnace.cli.output import Console
from pinnace.cli.progress import stages
from pinnace.errors import MachineError, UsageError
from pinnace.export.builder import export
from pinnace.quantize.builder import quantize
from pinnace.quantize.judging.evaluate import Judge
from pinnace.quantize.resume import Kept
from pinnace.quantize.steps import Step
from pinnace.runtime.bundles import needs, speeds
from pinnace.runtime.bundles.bundle import Bundle
from pinnace.runtime.bundles.variants import best_variant, judge_variants
from pinnace.runtime.checks.inspect_bundle import describe, render
from pinnace.runtime.checks.verify import verify_bundle
from pinnace.runtime.engine.session import Session, load
from pinnace.runtime.machine import cpu
from pinnace.runtime.machine.cpu import Cpu
from pinnace.spec import EXACT_INT8_DOT, CacheSpec, FileFact, Variant
from tests.conftest import DATA
from tests.quantized_bundles import WIDE, WIDE_FLAGS, Once, once
from tests.tiny_bundle import example, make_bundle, write_manifest

__all__ = ["once"]

EXACT = Cpu("GenuineIntel", "a new Xeon", "x86_64", ("avx2", "avx512_vnni"), known=True)
SATURATING = Cpu("AuthenticAMD", "an old EPYC", "x86_64", ("avx2",), known=True)
UNREAD = Cpu("", "a closed box", "x86_64", (), known=False)
PASSED = {"verdict": "passed"}
INTEGERS = {**PASSED, "recipe": {"groups": {"a": "fixed", "b": "token", "c": "keep"}}}
WEIGHTS = {**PASSED, "recipe": {"groups": {"a": "blocks8", "b": "blocks8"}}}


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def int8(folder: Path, record: Mapping[str, Any] = INTEGERS, **fields: Any) -> Path:
    """A bundle with an int8 variant that is a copy of fp32's graph, described as told."""
    make_bundle(folder)
    (folder / "model_int8.onnx").write_bytes((folder / "model.onnx").read_bytes())
    certificate = {"variants": {"fp32": {**PASSED, "cases": ["a"]}, "int8": dict(record)}}
    (folder / "certificate.json").write_text(json.dumps(certificate))
    variant = Variant("ort", 21, "model_int8.onnx", ("model.safetensors",), **fields)
    write_manifest(folder, lambda data: data["variants"].update(int8=dataclasses.asdict(variant)))
    return folder


def on(monkeypatch: pytest.MonkeyPatch, processor: Cpu) -> None:
    monkeypatch.setattr(cpu, "read_cpu", lambda *_: processor)
    monkeypatch.setattr("pinnace.runtime.bundles.variants.read_cpu", lambda *_: processor)


def test_a_variant_for_another_processor_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = int8(tmp_path / "tiny", needs=(EXACT_INT8_DOT,), made_on="x86_64 avx512_vnni")
    on(monkeypatch, SATURATING)
    with pytest.raises(MachineError) as caught:
        load(path, "int8")
    text = str(caught.value)
    assert caught.value.exit_code == 5
    for word in (EXACT_INT8_DOT, "an old EPYC", "x86_64 avx512_vnni", "pinnace quantize tiny --precision int8"):
        assert word in text
    load(path)  # fp32 needs nothing
    checks = {check.name: check for check in verify_bundle(path).checks}
    assert checks["numbers int8"].exit_code == 5
    assert EXACT_INT8_DOT in checks["numbers int8"].detail
    on(monkeypatch, EXACT)
    assert load(path, "int8").run(example(1, 3))["last_hidden_state"].shape == (1, 3, 4)


def test_a_processor_that_cannot_be_read_is_warned_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = int8(tmp_path / "tiny", needs=(EXACT_INT8_DOT,))
    on(monkeypatch, UNREAD)
    with pytest.warns(RuntimeWarning, match=r"exact-int8-dot.*a closed box.*pinnace verify tiny"):
        load(path, "int8")


def test_a_need_from_the_future_is_refused(tmp_path: Path) -> None:
    path = int8(tmp_path / "tiny", needs=("quantum-dot",))
    with pytest.raises(MachineError, match=r"quantum-dot .unknown to this Pinnace; update it"):
        load(path, "int8")


def test_variants_without_needs_read_no_processor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def never(*_: Any) -> Cpu:
        raise AssertionError("the processor was read")

    path = int8(tmp_path / "tiny")
    monkeypatch.setattr(cpu, "read_cpu", never)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(path, "int8")
    with pytest.raises(AssertionError, match="was read"):
        needs.check_needs("int8", Variant("ort", 21, "g", (), needs=(EXACT_INT8_DOT,)), "tiny")


@pytest.mark.parametrize(
    ("record", "fields", "processor", "chosen", "reason"),
    [
        (INTEGERS, {}, SATURATING, "int8", "products are of integers"),
        (WEIGHTS, {}, SATURATING, "fp32", "makes no encoder faster"),
        ({**WEIGHTS, "chosen_by_auto": True}, {}, SATURATING, "int8", "quantize --auto chose it"),
        (INTEGERS, {"needs": (EXACT_INT8_DOT,)}, EXACT, "int8", "products are of integers"),
        (INTEGERS, {"needs": (EXACT_INT8_DOT,)}, SATURATING, "fp32", "an old EPYC lacks"),
        (INTEGERS, {"needs": (EXACT_INT8_DOT,)}, UNREAD, "fp32", "cannot be told"),
        ({**INTEGERS, "chosen_by_auto": True}, {"degraded": True}, EXACT, "fp32", "missed its gate"),
        ({**INTEGERS, "verdict": "missed: f1"}, {}, EXACT, "fp32", "not verified: missed: f1"),
        ({}, {}, EXACT, "fp32", "not verified"),
    ],
)
def test_auto_chooses_by_evidence(
    tmp_path: Path, record: Mapping[str, Any], fields: dict[str, Any], processor: Cpu, chosen: str, reason: str
) -> None:
    bundle = Bundle.open(int8(tmp_path / "tiny", record, **fields))
    assert best_variant(bundle, cpu=processor) == chosen
    reasons = {judgement.precision: judgement.why for judgement in judge_variants(bundle, cpu=processor)}
    assert set(reasons) == {"fp32", "int8"}
    assert reason in reasons["int8"]
    assert best_variant(bundle, "cuda:0", processor) == "fp32"


@pytest.mark.parametrize(("speedup", "chosen"), [(0.9, "fp32"), (1.0496, "fp32"), (1.05, "int8"), (1.6, "int8")])
def test_what_was_measured_here_counts_most(tmp_path: Path, speedup: float, chosen: str) -> None:
    record = {**(INTEGERS if chosen == "fp32" else WEIGHTS), "chosen_by_auto": chosen == "fp32"}
    bundle = Bundle.open(int8(tmp_path / "tiny", record))
    speeds.remember(bundle.manifest, "int8", EXACT, speedup)
    assert best_variant(bundle, cpu=EXACT) == chosen
    assert f"{speedup:.2f} times" in judge_variants(bundle, cpu=EXACT)[1].why
    assert best_variant(bundle, cpu=SATURATING) != chosen, "another processor knows nothing of it"
    # Other files are another variant.
    other = dataclasses.replace(
        bundle.manifest, files={**bundle.manifest.files, "model_int8.onnx": FileFact(1, "0" * 64)}
    )
    assert speeds.recall(other, "int8", EXACT) is None


@pytest.mark.parametrize("text", ["", "[]", '{"format": 1}', '{"format": 1, "speedup": "fast"}',
                                  '{"format": 1, "speedup": NaN}', '{"format": 9, "speedup": 2}'])  # fmt: skip
def test_damaged_memories_of_speed_are_none(tmp_path: Path, text: str) -> None:
    bundle = Bundle.open(int8(tmp_path / "tiny"))
    speeds.remember(bundle.manifest, "int8", EXACT, 1.5)
    (place,) = (tmp_path / "cache/pinnace/speeds").iterdir()
    assert place.stat().st_mode & 0o077 == 0
    place.write_text(text)
    assert speeds.recall(bundle.manifest, "int8", EXACT) is None


def test_decoders_take_the_fewest_bytes_and_gpus_fp16(tmp_path: Path) -> None:
    opened = Bundle.open(int8(tmp_path / "tiny", WEIGHTS))
    manifest = opened.manifest
    decoder = dataclasses.replace(manifest, cache=CacheSpec(1, 1, 4, 16, in_place=True))
    assert best_variant(Bundle(opened.path, decoder, verified=True), cpu=EXACT) == "int8"
    half = dataclasses.replace(manifest, variants={"fp16": manifest.variants["fp32"], **manifest.variants})
    bundle = Bundle(opened.path, half, verified=True)
    assert best_variant(bundle, cpu=EXACT) == "fp32"
    certificate = json.loads((opened.path / "certificate.json").read_text())
    certificate["variants"]["fp16"] = PASSED
    (opened.path / "certificate.json").write_text(json.dumps(certificate))
    assert best_variant(bundle, cpu=EXACT) == "fp32"
    assert best_variant(bundle, "cuda", EXACT) == "fp16"
    alone = dataclasses.replace(manifest, variants={"fp16": manifest.variants["fp32"]})
    with pytest.raises(MachineError, match=r"no variant of tiny fits cpu(.|\n)*fp16 is slower"):
        best_variant(Bundle(opened.path, alone, verified=True), cpu=EXACT)


def test_auto_from_the_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = int8(tmp_path / "tiny", scheme="int8", made_on="x86_64 avx2")
    on(monkeypatch, SATURATING)
    assert load(path, "auto").precision == "int8"
    assert load(path).precision == Session(Bundle.open(path), None).precision == "fp32"
    with pytest.raises(UsageError, match="auto"):
        load(path, "atuo")
    facts = describe(path)
    assert facts["auto"]["precision"] == "int8"
    assert facts["variants"]["int8"]["scheme"] == "int8"
    shown = render(facts)
    assert "auto takes int8 here" in shown
    assert "scheme int8, made on x86_64 avx2" in shown
    assert json.loads(json.dumps(facts)) == facts


NER_DATA = [
    {"text": text} for text in (
        "Ada Lovelace wrote notes on the engine of Charles Babbage in London.",
        "The Nile flows through Egypt.", "A puppet is moved by hand.", "Photosynthesis needs light.",
        "Rome was not built in a day.", "Marie Curie worked in Paris.", "The moon has no air.",
        "A glacier is a river of ice.", "Iron rusts in wet air.", "Darwin sailed on the Beagle.",
        "Sound needs air to travel.", "The heart pumps blood.",
    )
]  # fmt: skip


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in NER_DATA))
    return path


@pytest.fixture
def wide(once: Once) -> Path:
    """A classifier that has something to quantize."""

    def make(output: Path) -> None:
        export(str(DATA / "tiny-classify"), task="classify", output=output, validate=False, **WIDE)

    return once("wide-classify", make)


class _StoppedError(Exception):
    """What a test interrupts a search with."""


def kept_files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache/pinnace/quantize").glob("*"))


def test_an_interrupted_search_goes_on(wide: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data: Path) -> None:
    source = wide
    judged: list[str] = []
    score = Judge.score

    def counting(self: Judge, bundle: Any, precision: str) -> Any:
        if precision != "fp32":
            if len(judged) == stop:
                raise _StoppedError
            judged.append(precision)
        return score(self, bundle, precision)

    monkeypatch.setattr(Judge, "score", counting)
    options: dict[str, Any] = {"auto": True, "min_speedup": 0.0, "max_drop": 1.0, "data": data, "threads": 1}
    stop = 2
    with pytest.raises(_StoppedError):
        quantize(str(source), output=tmp_path / "out", **options)
    assert len(judged) == 2
    assert not (tmp_path / "out").exists()
    (place,) = kept_files(tmp_path)
    assert place.stat().st_mode & 0o077 == 0
    # Other settings are another search, which leaves this one's results alone.
    stop = 99
    quantize(str(source), output=tmp_path / "other", **{**options, "max_drop": 0.9})
    assert kept_files(tmp_path) == [place]
    judged.clear()
    lines: list[str] = []
    report = quantize(str(source), output=tmp_path / "out", progress=lines.append, **options)
    assert len(judged) == 1, "only the third candidate was still to be judged"
    assert any("of a run that was interrupted" in line for line in lines)
    assert len(report.entries) == 3
    assert not kept_files(tmp_path)
    assert report.chosen is not None
    precision = report.chosen.precision
    bundle = Bundle.open(tmp_path / "out")
    assert verify_bundle(bundle.path).ok
    record = json.loads((bundle.path / "certificate.json").read_text())["variants"][precision]
    assert record["chosen_by_auto"] is True
    assert record["scheme"] == report.chosen.scheme
    # What was measured here is remembered, and auto goes by it.
    assert speeds.recall(bundle.manifest, precision, cpu.read_cpu()) == report.chosen.speedup
    faster = report.chosen.speedup >= 1.05
    assert load(bundle.path, "auto").precision == (precision if faster else "fp32")


def test_a_resumed_search_gives_the_same_bytes(
    wide: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data: Path
) -> None:
    options: dict[str, Any] = {"precision": "int8", "data": data, "max_drop": 1.0, "threads": 1}
    source = str(wide)
    quantize(source, output=tmp_path / "whole", **options)
    with monkeypatch.context() as patched:
        patched.setattr("pinnace.quantize.workshop.measure", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            quantize(source, output=tmp_path / "resumed", **options)
    (place,) = kept_files(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(Judge, "score", never_again(Judge.score))
        quantize(source, output=tmp_path / "resumed", **options)
    assert not place.exists()
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    for name in names:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "resumed" / name).read_bytes(), name


def never_again(score: Callable[..., Any]) -> Callable[..., Any]:
    def only_fp32(self: Judge, bundle: Any, precision: str) -> Any:
        assert precision == "fp32", "it was judged before"
        return score(self, bundle, precision)

    return only_fp32


def test_damaged_results_are_found_out_again(tmp_path: Path) -> None:
    place = tmp_path / "kept.json"
    kept = Kept(place)
    kept.note(["a", 1], {"n": 2.5})
    assert Kept(place).recall(["a", 1], lambda found: found["n"]) == 2.5
    assert Kept(place).recall(["a", 1], lambda found: found["other"]) is None
    assert Kept(place).recall(["a", 2], lambda found: found) is None
    for text in ("", "[1]", '{"a": '):
        place.write_text(text)
        assert len(Kept(place)) == 0
    kept.forget()
    kept.forget()
    assert not place.exists()


def test_an_export_to_int8_is_whole_or_not_at_all(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data: Path
) -> None:
    arguments = ["export", str(DATA / "tiny-classify"), "--task", "classify", "--data", str(data), "--no-validate"]
    arguments += WIDE_FLAGS
    monkeypatch.setattr("pinnace.quantize.workshop.miss", lambda *_: "the answers are not those of fp32")
    assert main([*arguments, "-o", str(tmp_path / "missed"), "--precision", "int8"]) == 1
    assert "not those of fp32" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"texts.jsonl", "cache"}
    assert main([*arguments, "-o", str(tmp_path / "kept"), "--precision", "int8", "--allow-degraded"]) == 0
    assert "missed: the answers are not" in capsys.readouterr().out
    degraded = Bundle.open(tmp_path / "kept")
    assert degraded.variant("int8").degraded
    assert load(degraded.path, "auto").precision == "fp32"


@pytest.mark.parametrize(("name", "task", "precision"), [("tiny-classify", "classify", "int8"),
                                                         ("tiny-generate", "generate", "int4")])  # fmt: skip
def test_an_export_to_a_smaller_precision(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, data: Path, name: str, task: str, precision: str
) -> None:
    # Random weights have no right answers to lose, so what misses its gate is written all the same.
    arguments = ["export", str(DATA / name), "--task", task, "--precision", precision, "--allow-degraded", "--json"]
    if task == "classify":
        arguments += ["--data", str(data), *WIDE_FLAGS]
    assert main([*arguments, "-o", str(tmp_path / "out")]) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told["variants"]) == {"fp32", precision}
    assert told["variants"][precision]["scheme"] == precision
    bundle = Bundle.open(tmp_path / "out")
    assert told["certificate"] == json.loads((bundle.path / "certificate.json").read_text())
    assert verify_bundle(bundle.path, strict=True).ok
    assert not [path for path in tmp_path.iterdir() if "partial" in path.name]
    card = (bundle.path / "README.md").read_text()
    (row,) = [line for line in card.splitlines() if line.startswith(f"| {precision} |")]
    record = told["certificate"]["variants"][precision]
    for cell in (f"{record['share_of_fp32']:.3f}", f"{record['value']:.4f}", record["processor"]["name"].split()[0]):
        assert cell in row
    assert ("texts.jsonl" if task == "classify" else "built-in texts") in row
    assert str(tmp_path) not in card


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_an_export_with_nothing_to_quantize_writes_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, data: Path, precision: str
) -> None:
    arguments = ["export", str(DATA / "tiny-classify"), "-o", str(tmp_path / "out"), "--precision", precision]
    assert main([*arguments, "--data", str(data), "--no-validate"]) == 2
    assert f"no weight of the model has 32 rows and columns or more, so {precision} has" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_data_is_looked_at_before_the_export_begins(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, data: Path
) -> None:
    arguments = ["export", str(DATA / "tiny-classify"), "-o", str(tmp_path / "out")]
    assert main([*arguments, "--data", str(data)]) == 2
    assert "--data is for --precision int8 or int4, got --precision fp32" in capsys.readouterr().err
    assert main([*arguments, "--precision", "int8", "--data", str(tmp_path / "none.jsonl")]) == 2
    shown = capsys.readouterr().err
    assert "none.jsonl" in shown
    assert "tracing" not in shown


def test_steps_are_lines_and_bars_on_terminals() -> None:
    step = Step("effect of query: 0.1", 3, 12)
    assert step == "effect of query: 0.1 (3 of 12)"
    console = Console({})
    console.err = io.StringIO()
    say = stages(console)
    say(step)
    assert console.err.getvalue().endswith("effect of query: 0.1 (3 of 12)\n")
    console._moving = True
    say(step)
    assert "[██████                  ]  25%  effect of query: 0.1 (3 of 12)" in console.err.getvalue()
    say("trying int8")
    assert console.err.getvalue().count("%") == 1


def test_what_was_not_judged_is_told_so() -> None:
    record = {"scheme": "int8", "bytes": 10, "share_of_fp32": 0.25, "metric": "unjudged", "value": None, "fp32": None,
              "labelled": False, "verdict": "missed: x", "processor": {"name": "a CPU"}}  # fmt: skip
    cells = quality_cells(record)
    assert (cells["value"], cells["difference"], cells["of fp32"]) == ("not judged", "unknown", "0.250")
    assert quality_cells({**record, "value": 0.75, "fp32": 1})["difference"] == "-0.2500"
