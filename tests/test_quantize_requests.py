"""Requests at their edges: golden numbers of a variant before, patterns that leave nothing, texts and no tokenizer."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import pinnace
from pinnace.bench.judging import read_data
from pinnace.bench.plan import PROGRAM
from pinnace.compare import Evaluation
from pinnace.errors import UsageError
from pinnace.export.interface import Options
from pinnace.export.quantized import check_request
from pinnace.export.tasks import TASKS
from pinnace.quantize.examples import source
from pinnace.quantize.examples.source import mask_of
from pinnace.quantize.recipe import load_graph
from pinnace.quantize.report import few_judged
from pinnace.quantize.request import Settings
from pinnace.quantize.schemes import SCHEMES
from pinnace.runtime.bundles.bundle import Bundle
from pinnace.runtime.checks.verify import verify_bundle
from tests.conftest import DATA
from tests.generation_bundles import decoder_of
from tests.quantized_bundles import NER, WIDE, Quantized, content, copied, fp32_of, once, quantized, quick_clock
from tests.test_cli import Cli, _clean_environment, cli
from tests.tiny_bundle import facts_by_hand

__all__ = ["_clean_environment", "cli", "decoder_of", "fp32_of", "once", "quantized", "quick_clock"]

BundleOf = Callable[[str], Path]


def test_golden_numbers_do_not_outlive_their_variant(quantized: Quantized, tmp_path: Path) -> None:
    bundle = copied(quantized(NER, "int8-token"), tmp_path / "bundle")
    assert (bundle / "golden_int8.npz").exists()
    pinnace.quantize(bundle, scheme="int4-nearest", judge=False, allow_degraded=True, threads=1)
    assert (bundle / "golden_int8.npz").exists()  # of a variant that stays
    pinnace.quantize(bundle, scheme="int8-weights", judge=False, allow_degraded=True, threads=1)
    assert not (bundle / "golden_int8.npz").exists()
    assert "golden_int8.npz" not in Bundle.open(bundle).manifest.files
    numbers = {check.name: check for check in verify_bundle(bundle, threads=1).checks}
    assert numbers["files"].ok and numbers["numbers int8"].ok


def test_patterns_that_leave_nothing_name_the_groups(bundle_of: BundleOf) -> None:
    graph = load_graph(bundle_of(NER) / "model.onnx").graph
    scheme = SCHEMES["int8-weights"]
    parts = [f"bert.encoder.layer.0.attention.self.{part}.weight" for part in ("query", "key", "value")]
    with pytest.raises(UsageError, match=r"--only '\*query\*' leaves nothing to quantize") as caught:
        scheme.recipe(graph, reduced=True, only=["*query*"])
    assert " + ".join(parts) in str(caught.value)
    with pytest.raises(UsageError, match=r"--keep '\*' leaves nothing to quantize"):
        scheme.recipe(graph, reduced=True, keep=["*"])
    made = scheme.recipe(graph, reduced=True, only=parts)
    assert [name for name, way in made.groups.items() if way != "keep"] == [parts[0]]
    table = scheme.recipe(graph, reduced=True, only=["*word_embeddings*"])
    assert set(table.tables.values()) != {"keep"}


def test_a_model_without_a_wide_weight_has_nothing_to_quantize(bundle_of: BundleOf, tmp_path: Path) -> None:
    source = copied(bundle_of("tiny-classify"), tmp_path / "bundle")
    for scheme in SCHEMES.values():
        if scheme.precision != "fp16":
            with pytest.raises(UsageError, match=f"32 rows and columns or more, so {scheme.name} has nothing to"):
                pinnace.quantize(source, scheme=scheme.name, allow_degraded=True, judge=False, threads=1)
    with pytest.raises(UsageError, match="has nothing to quantize"):
        pinnace.quantize(source, auto=True, threads=1)
    assert content(source) == content(bundle_of("tiny-classify"))
    graph = load_graph(source / "model.onnx").graph
    assert SCHEMES["fp16"].recipe(graph, reduced=True).half


@pytest.mark.parametrize("name", ["texts.txt", "absent.txt"])
def test_examples_for_a_bundle_without_a_tokenizer_are_refused(
    bundle_of: BundleOf, cli: Cli, tmp_path: Path, name: str
) -> None:
    (tmp_path / "texts.txt").write_text("A boat.\nA ship.\n")
    bundle = copied(bundle_of("tiny-classify"), tmp_path / "bundle")
    (bundle / "tokenizer.json").unlink()
    manifest = facts_by_hand(bundle)
    del manifest["files"]["tokenizer.json"]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    before = content(bundle)
    code, out, err = cli("quantize", bundle, "--data", tmp_path / name, "--allow-degraded")
    assert (code, out) == (2, "") and name in err and "no tokenizer.json" in err
    assert content(bundle) == before


@pytest.mark.parametrize(
    ("options", "needle"),
    [
        ({"scheme": "int8", "block": 64}, "--block is for the schemes int8-weights, int4, .*leave it out for int8"),
        ({"precision": "fp16", "block": 64}, "--block is for the schemes"),
        ({"scheme": "int8-weights", "block": 48}, "no kernel has blocks of 48 inputs; expected one of 16, 32, "),
        ({"scheme": "int4", "block": 0}, "no kernel has blocks of 0 inputs"),
        ({"scheme": "int4", "block": 8}, "blocks of 8 inputs; expected one of 16, 32, 64, 128, 256$"),
        ({"auto": True, "block": 48}, "no kernel has blocks of 48 inputs"),
        ({"scheme": "int8-weights", "full_range": True}, "--full-range is for the schemes int8, int8-token"),
        ({"precision": "int4", "full_range": True}, "--full-range is for the schemes"),
        ({"auto": True, "calibration": "entropy"}, "--calibration is for the schemes int8-qdq, int8-qdq-signed; "),
        ({"min_speedup": 1.5}, "--min-speedup is for --auto"),
        ({"new_tokens": 64}, "--new-tokens is for --auto"),
        ({"auto": True, "new_tokens": 64}, "--new-tokens is for models that write tokens"),
        ({"auto": True, "judge": False, "allow_degraded": True}, "--no-judge measures neither"),
        ({"max_drop": 0.1, "judge": False, "allow_degraded": True}, "--no-judge leaves judging out"),
        ({"judge": False}, "add --allow-degraded"),
    ],
)
def test_what_would_be_ignored_is_refused_before_any_work(
    bundle_of: BundleOf, tmp_path: Path, options: dict[str, Any], needle: str
) -> None:
    said: list[str] = []
    with pytest.raises(UsageError, match=needle):
        pinnace.quantize(bundle_of(NER), output=tmp_path / "out", progress=said.append, **options)
    assert said == [] and not list(tmp_path.iterdir())


def test_a_request_writes_at_least_one_token() -> None:
    with pytest.raises(UsageError, match="--new-tokens 0: a request writes at least one token"):
        Settings(new_tokens=0)


def renamed_mask(folder: Path) -> Path:
    """The masked model with another mask."""
    folder.mkdir()
    for path in (DATA / "tiny-mlm").iterdir():
        content = path.read_bytes()
        (folder / path.name).write_bytes(
            content if path.suffix == ".safetensors" else content.replace(b"[MASK]", b"<mask>")
        )
    return folder


@pytest.mark.usefixtures("quick_clock")
def test_the_mask_is_the_tokenizer_s(tmp_path: Path) -> None:
    """Examples are read with the model's own mask: by an export, by a quantization, and by a benchmark."""
    folder = renamed_mask(tmp_path / "renamed")
    texts = [f"The <mask> number {i} reached the shore." for i in range(6)]
    labelled = tmp_path / "labelled.jsonl"
    labelled.write_text("\n".join(json.dumps({"text": text, "words": ["boat"]}) for text in texts))
    check_request("int8", TASKS["fill-mask"], Options(), folder, labelled, False)
    data = tmp_path / "texts.txt"
    data.write_text("\n".join(texts))
    options: dict[str, Any] = {"data": data, "allow_degraded": True}
    pinnace.export(
        str(folder), task="mlm", output=tmp_path / "bundle", precision="int8", validate=False, **options, **WIDE
    )
    bundle = Bundle.open(tmp_path / "bundle")
    assert bundle.variant("int8").scheme == "int8"
    pinnace.quantize(tmp_path / "bundle", scheme="int8-weights", allow_degraded=True, threads=1)  # built-in texts
    plan: Any = SimpleNamespace(
        candidates=[SimpleNamespace(bundle=bundle, device="cpu", program=PROGRAM)], settings=SimpleNamespace(task="mlm")
    )
    assert [example.label for example in read_data(labelled, plan)] == [("boat",)] * 6


def test_a_tokenizer_without_a_mask_is_told(bundle_of: BundleOf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "load_tokenizer", lambda _: SimpleNamespace(mask_token=None))
    with pytest.raises(UsageError, match="the tokenizer of tiny-mlm names no mask"):
        mask_of(DATA / "tiny-mlm", "fill-mask")
    assert mask_of(DATA / "tiny-mlm", "embed") == ""


@pytest.mark.parametrize("options", [{"keep": "nowhere.*"}, {"only": "nowhere.*"}, {"only": "*query*"}])
def test_patterns_are_tried_before_fp32_is_judged(bundle_of: BundleOf, tmp_path: Path, options: dict[str, Any]) -> None:
    """A text is one pattern, and not its letters."""
    said: list[str] = []
    with pytest.raises(
        UsageError, match=r"the pattern 'nowhere\.\*' matches no weight|--only '\*query\*' leaves nothing"
    ):
        pinnace.quantize(bundle_of(NER), output=tmp_path / "out", progress=said.append, **options)
    assert said == [] and not list(tmp_path.iterdir())


@pytest.mark.usefixtures("quick_clock")
@pytest.mark.parametrize(
    ("options", "counts", "said"),
    [
        ({"scheme": "int8"}, (1, 1), "judged on 1 example of two.txt, calibrated on 1 other"),
        ({"scheme": "int8-uncalibrated"}, (0, 1), "judged on 1 example of two.txt, not calibrated"),
        ({"scheme": "int4-nearest", "judge": False}, (0, 0), "not judged, not calibrated"),
        ({"scheme": "int4", "judge": False}, (1, 0), "not judged, calibrated on 1 example of two.txt"),
    ],
)
def test_what_examples_did_is_told(
    bundle_of: BundleOf, tmp_path: Path, options: dict[str, Any], counts: tuple[int, int], said: str
) -> None:
    """Whether anything calibrated, and that a gate on one text says little."""
    data, bundle = tmp_path / "two.txt", tmp_path / "out"
    data.write_text("he is\nla la la\n")  # in which the model finds something
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        report = pinnace.quantize(bundle_of(NER), output=bundle, data=data, allow_degraded=True, threads=1, **options)
    assert report.counts == counts and report.lines()[-2] == said
    few = "judged on 1 example, of which a gate says little; give data for at least 50"
    assert ([str(warning.message) for warning in caught if warning.category is UserWarning] == [few]) == (counts[1] > 0)
    assert report.chosen is not None
    record = json.loads((bundle / "certificate.json").read_text())["variants"][report.chosen.precision]
    assert (record["examples"]["calibrating"], record["examples"]["judging"]) == counts
    assert record["examples"].get("note") == (few if counts[1] else None)
    assert record["share_of_fp32"] == report.chosen.bytes / report.reference_bytes  # rounded where it is shown alone


def test_few_examples_and_few_positions() -> None:
    def told(examples: int, **details: float) -> str:
        return few_judged(Evaluation("a-task", "fp32", "f1", 1.0, 1.0, examples, True, details))

    assert told(50) == told(0) == told(3, positions=50.0) == ""
    assert told(49).startswith("judged on 49 examples,") and told(60, positions=49.0).startswith(
        "judged on 49 positions,"
    )


@pytest.mark.usefixtures("quick_clock")
def test_two_texts_calibrate_and_judge_a_decoder(bundle_of: BundleOf, tmp_path: Path) -> None:
    data = tmp_path / "two.txt"
    data.write_text(
        "One text of a few words, which is long enough.\nAnother one, and quite unlike the first of them.\n"
    )
    options: dict[str, Any] = {"scheme": "int8", "allow_degraded": True, "threads": 1, "data": data}
    assert pinnace.quantize(bundle_of("tiny-generate"), output=tmp_path / "out", **options).counts == (1, 1)
