"""``pinnace quantize``: gates, sizes, misses, choices, equal bytes, and bundles that others open."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pinnace
from pinnace.compare import TASK_GATES
from pinnace.errors import CheckFailed
from pinnace.quantize import int8, tables
from pinnace.quantize.judging.latency import Latency
from pinnace.quantize.rounding.nearest import channel_codes
from pinnace.runtime.bundles.bundle import Bundle
from pinnace.runtime.checks.verify import verify_bundle
from pinnace.runtime.engine.ort import plain_session
from pinnace.runtime.generation.decoder import PIECE, Decoder
from pinnace.runtime.pipelines.table import pipeline
from tests.conftest import DATA
from tests.generation_bundles import decoder_of
from tests.quantized_bundles import (
    APERTUS,
    NER,
    QA,
    Quantized,
    content,
    copied,
    fp32_of,
    once,
    quantized,
    quick_clock,
    reported,
    rows,
)
from tests.test_cli import Cli, _clean_environment, cli
from tests.tiny_bundle import facts_by_hand

__all__ = ["_clean_environment", "cli", "decoder_of", "fp32_of", "once", "quantized", "quick_clock"]

Fp32Of = Callable[[str], Path]
MADE = [
    (APERTUS, "int8"), (APERTUS, "int4"), (NER, "int8-token"), (NER, "int8"),
    pytest.param(QA, "int8", marks=pytest.mark.slow), pytest.param(QA, "int8-token", marks=pytest.mark.slow),
]  # fmt: skip
SHARES = {"int8": 0.28, "int4": 0.2}


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Results of interrupted searches are remembered by bundle and settings, and poison is not among these."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.mark.parametrize(("name", "scheme"), MADE)
def test_gate_size_and_certificate(quantized: Quantized, name: str, scheme: str) -> None:
    """The gate holds, the size is what was promised, and the certificate says both and what became of each weight."""
    made = quantized(name, scheme)
    said, precision = reported(made), scheme.partition("-")[0]
    assert said["verdict"] == "passed" and said["labelled"] is (name != APERTUS)
    if name == APERTUS:
        assert said["value"] <= {"int8": 0.01, "int4": 0.05}[precision]
        assert said["details"]["top1"] >= {"int8": 0.97, "int4": 0.92}[precision]
        assert Decoder(pinnace.load(made, precision=precision, threads=1)).piece == PIECE
    else:
        assert said["value"] >= 0.99 * said["fp32"] > 0.9
        assert 0.97 < said["details"]["output_cosine"] < 1
    assert said["share_of_fp32"] <= SHARES[precision]
    bundle = Bundle.open(made)
    variant = bundle.variant(precision)
    files = [made / file for file in (variant.graph, *variant.weights)]
    assert sum(path.stat().st_size for path in files) == said["bytes"]
    reference = bundle.variant("fp32")
    whole = sum((made / file).stat().st_size for file in (reference.graph, *reference.weights))
    assert said["share_of_fp32"] == pytest.approx(said["bytes"] / whole, abs=1e-4)
    assert (variant.scheme, variant.degraded) == (scheme, False)
    record = json.loads((made / "certificate.json").read_text(), parse_constant=pytest.fail)["variants"][precision]
    assert record["scheme"] == scheme and record["value"] == said["value"] and record["metric"] == said["metric"]
    assert {bound["figure"] for bound in record["gate"]} == {b.figure for b in TASK_GATES[precision, said["metric"]]}
    assert "milliseconds" not in record and set(record["weights"]) == set(record["recipe"]["groups"])


@pytest.mark.parametrize(("name", "scheme"), MADE[:3])
def test_variants_open_and_verify(quantized: Quantized, cli: Cli, name: str, scheme: str) -> None:
    made, precision = quantized(name, scheme), scheme.partition("-")[0]
    variant = Bundle.open(made).variant(precision)
    session = plain_session(made / variant.graph)
    fp32 = plain_session(made / "model.onnx")
    for got, expected in ((session.get_inputs(), fp32.get_inputs()), (session.get_outputs(), fp32.get_outputs())):
        assert [(v.name, v.type, v.shape) for v in got] == [(v.name, v.type, v.shape) for v in expected]
    assert verify_bundle(made).ok
    code, _, err = cli("verify", made, *(["--strict"] if name == NER else []))  # the others have no golden numbers
    assert code == 0, err


def test_greedy_text_is_still_readable(quantized: Quantized) -> None:
    """The trained decoder writes dictionary entries; so do its variants."""
    prompts = ["falcon (noun):", "to swim (verb):", "A bridge is"]
    texts = {}
    for scheme, precision in (("int4", "fp32"), ("int4", "int4"), ("int8", "int8")):
        generate = pipeline("text-generation", quantized(APERTUS, scheme), precision=precision, threads=1)
        texts[precision] = [generate(p, max_new_tokens=24, do_sample=False, return_full_text=False) for p in prompts]
    for precision, results in texts.items():
        for result in results:
            text = result[0]["generated_text"]
            words = text.split()
            assert "\N{REPLACEMENT CHARACTER}" not in text and len(words) >= 4, (precision, text)
            assert len(set(words)) >= min(4, len(words)) and max(map(words.count, words)) <= len(words) / 2
    first = [result[0]["generated_text"].split()[:2] for result in texts["fp32"]]
    assert sum(r[0]["generated_text"].split()[:2] == f for r, f in zip(texts["int8"], first, strict=True)) >= 2


@pytest.mark.slow
def test_compensated_int4_beats_rounding_to_nearest(quantized: Quantized) -> None:
    values = {scheme: reported(quantized(APERTUS, scheme))["value"] for scheme in ("int4", "int4-nearest")}
    assert values["int4"] < 0.8 * values["int4-nearest"]


@pytest.mark.usefixtures("quick_clock")
def test_the_same_command_gives_the_same_bytes_and_keeps_other_variants(quantized: Quantized, tmp_path: Path) -> None:
    """A second precision beside the first; the first again changes nothing."""
    both = copied(quantized(NER, "int8-token"), tmp_path / "both")
    before = content(both)
    data = rows(NER, tmp_path)
    pinnace.quantize(both, scheme="int8-token", data=data, threads=1)
    after = content(both)
    assert {name for name in before if before[name] != after[name]} == set() and before.keys() == after.keys()
    pinnace.quantize(both, scheme="int4-nearest", data=data, threads=1, allow_degraded=True)
    assert set(Bundle.open(both).manifest.variants) == {"fp32", "int8", "int4"}
    assert content(both)["model_int8.onnx"] == before["model_int8.onnx"]
    assert verify_bundle(both).ok


def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scales of the wide projections are three times too large."""

    def wrong(w: Any, reduced: bool, **options: Any) -> Any:
        codes, scales = channel_codes(w, reduced, **options)
        return codes, scales * np.float32(3 if len(w) >= 1024 else 1)

    monkeypatch.setattr(int8, "channel_codes", wrong)
    monkeypatch.setattr(tables, "channel_codes", wrong)


@pytest.mark.usefixtures("quick_clock")
def test_a_poisoned_scale_misses_the_gate_and_nothing_changes(
    fp32_of: Fp32Of, cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Not even keeping weights helps, as those are not looked for that lose most; --allow-degraded writes it."""
    bundle, data = copied(fp32_of(NER), tmp_path / "bundle"), rows(NER, tmp_path)
    before = content(bundle)
    poison(monkeypatch)
    # No relief: what the gate sees of the scheme as it stands.
    monkeypatch.setattr("pinnace.quantize.search._relieved", lambda recipe, *_: recipe)
    words = ("quantize", bundle, "--scheme", "int8-uncalibrated", "--data", data, "--threads", 1)
    code, out, err = cli(*words)
    assert (code, out) == (1, "")
    assert "int8-uncalibrated misses its gate, so nothing was written: entity f1 " in err
    worst = next(line for line in err.splitlines() if "These weights lose most" in line)
    assert "bert.encoder.layer." in worst and "intermediate.dense.weight" in worst
    assert "--scheme int8 or" in err and "int8-weights" in err and "--allow-degraded" in err
    assert content(bundle) == before and [p.name for p in tmp_path.iterdir() if ".partial" in p.name] == []
    code, _, err = cli(*words, "--allow-degraded")
    assert code == 0, err
    assert Bundle.open(bundle).variant("int8").degraded
    record = json.loads((bundle / "certificate.json").read_text())["variants"]["int8"]
    assert record["verdict"].startswith("missed: entity f1")
    assert content(bundle)["model.onnx"] == before["model.onnx"]


@pytest.mark.slow
@pytest.mark.usefixtures("quick_clock")
def test_a_poisoned_weight_is_found_and_kept(fp32_of: Fp32Of, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Relief is by measured effect: what is poisoned goes back to fp32, what is sound stays small."""
    poison(monkeypatch)
    report = pinnace.quantize(
        fp32_of(NER), scheme="int8-uncalibrated", data=rows(NER, tmp_path), output=tmp_path / "out", threads=1
    )
    assert report.chosen is not None
    groups = report.chosen.candidate.recipe.groups
    kept = {name for name, way in groups.items() if way == "keep"}
    assert kept and all("intermediate" in name or "output.dense" in name for name in kept) and len(kept) < len(groups)


def test_a_request_s_whole_time_decides_between_a_faster_prompt_and_faster_steps() -> None:
    prompt_first = {"prompt of 256": 100.0, "16 steps": 20.0}, {"prompt of 256": 2.0, "16 steps": 1.5}
    steps_first = {"prompt of 256": 250.0, "16 steps": 10.0}, {"prompt of 256": 0.8, "16 steps": 3.0}
    few, many = {"prompt of 256": 1, "16 steps": 1}, {"prompt of 256": 1, "16 steps": 16}
    assert Latency(*prompt_first, few).overall == pytest.approx((200 + 30) / (100 + 20))
    assert Latency(*steps_first, many).overall == pytest.approx((200 + 480) / (250 + 160))
    assert Latency(*prompt_first, few).overall > Latency(*steps_first, few).overall
    assert Latency(*prompt_first, many).overall < Latency(*steps_first, many).overall
    assert Latency({"a": 1, "b": 1}, {"a": 2, "b": 8}).overall == pytest.approx(4)
    assert math.isnan(Latency({}, {}).overall)


@pytest.mark.usefixtures("quick_clock")
def test_auto_keeps_fp32_where_nothing_is_faster(fp32_of: Fp32Of, cli: Cli, tmp_path: Path) -> None:
    bundle = copied(fp32_of(NER), tmp_path / "bundle")
    before = content(bundle)
    words = ("--auto", "--min-speedup", 100, "--data", rows(NER, tmp_path), "--threads", 1, "--json")
    code, out, err = cli("quantize", bundle, *words)
    assert code == 0, err
    said = json.loads(out)
    assert said["chosen"] is None and "100 times as fast as fp32" in said["why"]
    assert [row["scheme"] for row in said["candidates"]] == ["int8", "int8-token", "int8-weights"]
    assert content(bundle) == before


@pytest.mark.usefixtures("quick_clock")
def test_patterns_are_obeyed_and_run_answers_in_int8(fp32_of: Fp32Of, cli: Cli, tmp_path: Path) -> None:
    out_bundle = tmp_path / "out"
    words = ("--scheme", "int8-weights", "--keep", "*word_embeddings*", "--only", "*layer.0.*", "--threads", 1)
    code, _, err = cli("quantize", fp32_of(NER), *words, "--data", rows(NER, tmp_path), "-o", out_bundle)
    assert code == 0, err
    ways = json.loads((out_bundle / "certificate.json").read_text())["variants"]["int8"]["recipe"]
    assert {name for name, way in ways["groups"].items() if way != "keep"} == {
        name for name in ways["groups"] if ".layer.0." in name
    }
    assert set(ways["tables"].values()) == {"keep"}
    text = json.loads(rows(NER, tmp_path).read_text())[0]["text"]
    code, out, err = cli("run", out_bundle, text, "--precision", "int8", "--json")
    assert code == 0 and json.loads(out), err


@pytest.mark.parametrize(
    ("words", "code", "needles"),
    [
        (["--precision", "int9"], 2, ["'int9'", "int8"]),
        (["--scheme", "int8-tokn"], 2, ["'int8-tokn'", "Did you mean 'int8-token'?"]),
        (["--keep", "nowhere.*"], 2, ["'nowhere.*'", "matches no weight"]),
        (["--scheme", "int4", "--precision", "int8"], 2, ["int4", "--precision asks for int8"]),
        (["--auto", "--scheme", "int8"], 2, ["--auto chooses the scheme"]),
        (["--max-drop", "300%"], 2, ["max-drop"]),
        (["--data", "absent.json"], 2, ["absent.json"]),
        (["--auto", "--new-tokens", "0"], 2, ["new-tokens"]),
        (["--block", "33", "--scheme", "int8-weights"], 2, ["33", "32"]),
    ],
)
def test_wrong_words(
    fp32_of: Fp32Of, cli: Cli, tmp_path: Path, words: list[str], code: int, needles: list[str]
) -> None:
    bundle = copied(fp32_of(NER), tmp_path / "bundle")
    before = content(bundle)
    data = [] if "--data" in words else ["--data", rows(NER, tmp_path)]
    got, out, err = cli("quantize", bundle, *words, *data)
    assert (got, out) == (code, ""), err
    assert all(needle in err for needle in needles), err
    assert content(bundle) == before


def test_a_bundle_without_fp32_and_the_function_s_errors(fp32_of: Fp32Of, cli: Cli, tmp_path: Path) -> None:
    bundle = copied(fp32_of(NER), tmp_path / "bundle")
    manifest = facts_by_hand(bundle)
    manifest["variants"]["fp16"] = manifest["variants"].pop("fp32")
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    code, _, err = cli("quantize", bundle)
    assert code == 2 and "no fp32 variant" in err
    assert cli("quantize", tmp_path / "absent")[0] in (2, 3)
    assert issubclass(CheckFailed, pinnace.errors.PinnaceError)


@pytest.mark.usefixtures("quick_clock")
def test_a_bundle_without_a_tokenizer_is_not_judged(fp32_of: Fp32Of, cli: Cli, tmp_path: Path) -> None:
    """Nothing says that the variant is good: it misses, and where it is wanted all the same JSON has null for NaN."""
    folder = tmp_path / "plain"
    folder.mkdir()
    for path in (DATA / NER).iterdir():
        if path.name in ("config.json", "model.safetensors"):
            (folder / path.name).write_bytes(path.read_bytes())
    bundle = tmp_path / "bundle"
    pinnace.export(str(folder), task="ner", output=bundle, validate=False)
    before = content(bundle)
    words = ("quantize", bundle, "--scheme", "int8-uncalibrated", "--threads", 1, "--json")
    code, _, err = cli(*words)
    assert code == 1 and "has no tokenizer" in err and content(bundle) == before
    code, out, err = cli(*words, "--allow-degraded")
    assert code == 0, err
    said = json.loads(out, parse_constant=pytest.fail)["candidates"][0]
    assert said["value"] is None and said["share_of_fp32"] < 0.28
    json.loads((bundle / "certificate.json").read_text(), parse_constant=pytest.fail)
    assert Bundle.open(bundle).variant("int8").degraded and "not judged" in (bundle / "README.md").read_text()
