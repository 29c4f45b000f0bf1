"""Requests at their edges: golden numbers of a variant before, patterns that leave nothing, texts and no tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import pinnace
from pinnace.errors import UsageError
from pinnace.quantize.recipe import load_graph
from pinnace.quantize.schemes import SCHEMES
from pinnace.runtime.bundles.bundle import Bundle
from pinnace.runtime.checks.verify import verify_bundle
from tests.generation_bundles import decoder_of
from tests.quantized_bundles import NER, Quantized, content, copied, fp32_of, once, quantized, quick_clock
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
