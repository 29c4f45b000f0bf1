"""Judging variants: the known figures of the trained models, losses that are seen, and feeds that the graph takes."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pinnace.compare import TASK_GATES, miss, task_gate
from pinnace.errors import InputError, UsageError
from pinnace.quantize.examples.example import Example
from pinnace.quantize.examples.source import Examples, read_examples
from pinnace.quantize.judging import metrics, task_metrics
from pinnace.quantize.judging.evaluate import Judge, feeds
from pinnace.quantize.judging.task_metrics import METRICS
from pinnace.runtime.engine.session import load
from pinnace.runtime.pipelines.table import pipeline
from pinnace.spec import TASK_ALIASES
from tests.conftest import DATA
from tests.generation_bundles import Opened, decoder_of, opened
from tests.quantized_bundles import some

__all__ = ["decoder_of", "opened"]

BundleOf = Callable[[str], Path]
# Every task, with a checkpoint for it.
TASKS = {
    "feature-extraction": "tiny-embed",
    "fill-mask": "tiny-mlm",
    "question-answering": "bert-glossary-qa",
    "token-classification": "bert-glossary-ner",
    "text-classification": "tiny-classify",
    "text-ranking": "tiny-rerank",
    "zero-shot-classification": "tiny-nli",
    "multiple-choice": "tiny-choice",
    "next-sentence-prediction": "tiny-nsp",
    "pretraining": "tiny-pretraining",
    "text-generation": "tiny-generate",
}


def damaged(bundle: Path, folder: Path, amount: float) -> Path:
    """A copy whose weights are off by random shares of about ``amount``; NaN makes all of them NaN."""
    shutil.copytree(bundle, folder)
    for path in folder.glob("*.safetensors"):
        raw = bytearray(path.read_bytes())
        weights = np.frombuffer(raw, np.float32, offset=8 + int.from_bytes(raw[:8], "little"))
        weights *= 1 + amount * np.random.default_rng(0).standard_normal(weights.size).astype(np.float32)
        path.write_bytes(raw)
    return folder


def test_every_task_is_judged() -> None:
    assert set(METRICS) == set(TASK_ALIASES) == set(TASKS)
    names = {metric.name for metric in METRICS.values()} | {"label_f1", "correlation"}
    assert {(p, name) for p in ("fp16", "int8", "int4") for name in names} == set(TASK_GATES)


@pytest.mark.parametrize(("task", "name"), TASKS.items())
def test_without_labels_fp32_agrees_with_itself_and_a_damaged_variant_is_found_out(
    bundle_of: BundleOf, tmp_path: Path, task: str, name: str
) -> None:
    examples = some(read_examples(None, task, tokens=128), 24 if task == "question-answering" else 80)
    bundle = bundle_of(name)
    judge = Judge(bundle, examples, 1)
    same = judge.score(bundle, "fp32")
    perfect = 0.0 if task == "text-generation" else 1.0
    assert (same.task, same.value, same.reference, same.labelled, same.worst) == (task, perfect, perfect, False, ())
    assert miss(same, task_gate("int8", same.metric)) == ""
    worse = judge.score(damaged(bundle, tmp_path / "worse", 0.3), "fp32")
    assert miss(worse, task_gate("int8", worse.metric)).startswith(worse.metric.replace("_", " "))
    assert worse.worst and all(0 <= place < len(examples) for place in worse.worst)
    assert judge.score(tmp_path / "worse", "fp32") == worse  # deterministic
    poisoned = judge.score(damaged(bundle, tmp_path / "poisoned", float("nan")), "fp32")
    assert miss(poisoned, task_gate("int8", poisoned.metric)) == "NaN or infinity in the result"


@pytest.mark.parametrize("name", ["tiny-multilabel", "tiny-regression"])
def test_classifiers_of_other_kinds(bundle_of: BundleOf, tmp_path: Path, name: str) -> None:
    judge = Judge(bundle_of(name), some(read_examples(None, "classify"), 80), 1)
    assert judge.score(bundle_of(name), "fp32").value == pytest.approx(1.0)
    worse = judge.score(damaged(bundle_of(name), tmp_path / "worse", 0.3), "fp32")
    assert worse.metric == {"tiny-multilabel": "label_f1", "tiny-regression": "correlation"}[name]
    assert worse.value < 0.95


def test_the_figures_of_the_trained_question_answering(bundle_of: BundleOf, tmp_path: Path) -> None:
    bundle = bundle_of("bert-glossary-qa")
    judge = Judge(bundle, some(read_examples(DATA / "qa_dev.json", "qa"), 150), 1)
    found = judge.score(damaged(bundle, tmp_path / "worse", 0.3), "fp32")
    assert (found.labelled, found.examples, found.reference) == (True, 150, 1.0)
    assert found.details["reference_exact_match"] == 1.0
    assert found.details["exact_match"] < found.value < 0.99
    assert found.details["agreement"] == pytest.approx(found.value)  # fp32 answers all as the labels do
    assert 0.9 < found.details["output_cosine"] < 0.9999
    assert found.details["min_output_cosine"] < found.details["output_cosine"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "count", "f1", "exact"), [("qa_dev.json", 150, 100.0, 100.0), ("qa_dev_long.json", 50, 78.8, 78.0)]
)
def test_the_figures_of_the_sets(bundle_of: BundleOf, name: str, count: int, f1: float, exact: float) -> None:
    """Those that the SQuAD metric of transformers 4.57 gives of its own answers to the same questions."""
    bundle = bundle_of("bert-glossary-qa")
    found = Judge(bundle, some(read_examples(DATA / name, "qa"), count), 1).score(bundle, "fp32")
    assert (round(100 * found.value, 1), round(100 * found.details["exact_match"], 1)) == (f1, exact)


def test_the_figure_of_the_trained_entities(bundle_of: BundleOf) -> None:
    bundle = bundle_of("bert-glossary-ner")
    found = Judge(bundle, read_examples(DATA / "ner_dev.json", "ner"), 1).score(bundle, "fp32")
    assert round(100 * found.value, 1) == 99.9
    assert (found.details["agreement"], found.worst) == (1.0, ())


def test_the_figure_of_the_trained_decoder(opened: Opened) -> None:
    bundle = opened.make("apertus-ort")
    judge = Judge(bundle, read_examples(DATA / "lm_dev.txt", "generate"), 1, positions=10**6)
    found = judge.score(bundle, "fp32")
    assert found.details["nats"] == pytest.approx(3.784, abs=5e-4)
    assert found.details["perplexity"] == pytest.approx(44.0, abs=0.05)
    assert (found.value, found.examples, found.details["top1"]) == (0.0, 300, 1.0)


@pytest.mark.parametrize("name", ["apertus-ort", "apertus-onnx", "apertus-ort-all"])
def test_decoders_are_compared_through_the_cache_and_as_prompts(opened: Opened, tmp_path: Path, name: str) -> None:
    """The same figures from every form of graph, which are those of the distributions computed in one run."""
    bundle = opened.make(name)
    examples = some(read_examples(DATA / "lm_dev.txt", "generate"), 12)
    worse = damaged(opened.make("apertus-ort"), tmp_path / "worse", 0.1)
    found = Judge(bundle, examples, 1).score(worse, "fp32")
    rows = [feed["input_ids"] for feed in feeds(bundle, examples)]
    whole, lost = (opened.session("apertus-ort-all"), load(worse, threads=1, verify=False))
    kls, nats = [], []
    beginnings: set[bytes] = set()
    for row in rows:
        logits = prompt_logits(whole, row)
        others = np.stack([prompt_logits(lost, row[:, : i + 1])[-1] for i in range(row.shape[1])])
        p, q = (a - np.log(np.exp(a).sum(-1, keepdims=True)) for a in (logits, others))
        kl = (np.exp(p) * (p - q)).sum(-1)
        for step in range(row.shape[1] - 1):  # each step, once where rows begin alike
            beginning = row[0, : step + 1].tobytes()
            kls += [kl[step]] if beginning not in beginnings else []
            beginnings.add(beginning)
        kls += [kl[row.shape[1] // 2 - 1], kl[-2]]  # half of the row and all of it, as prompts
        nats += (-q[np.arange(row.shape[1] - 1), row[0, 1:]]).tolist()
    assert found.details["positions"] == len(kls) < sum(row.shape[1] + 1 for row in rows)  # they begin alike
    assert found.value == pytest.approx(float(np.mean(kls)), rel=1e-3)
    assert found.details["nats"] == pytest.approx(float(np.mean(nats)), rel=1e-5)
    assert found.details["kl_max"] == pytest.approx(float(np.max(kls)), rel=1e-3)
    assert 0.5 < found.details["top1"] < 1


def prompt_logits(session: Any, row: Any) -> Any:
    """Logits [T or 1, V] in float64 of one row [1, T] and an empty cache."""
    sizes = {"batch": 1, "sequence": row.shape[1], "past_sequence": 0, "total_sequence": row.shape[1]}
    inputs = {
        spec.name: np.zeros([sizes.get(dim, dim) for dim in spec.shape], spec.dtype)
        for spec in session.inputs
    }  # fmt: skip
    inputs |= {"input_ids": row, "attention_mask": np.ones_like(row), "position_ids": np.arange(row.shape[1])[None]}
    return session.run(inputs, outputs=["logits"])["logits"][0].astype(np.float64)


def test_a_large_vocabulary_leaves_room_for_fewer_rows(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pinnace.quantize.judging.evaluate_tokens.REFERENCE_BYTES", 4 * 6144 * 200)
    bundle = opened.make("apertus-ort")
    found = Judge(bundle, read_examples(DATA / "lm_dev.txt", "generate"), 1).score(bundle, "fp32")
    assert 100 < found.details["positions"] <= 200 and 5 < found.examples < 20


@pytest.mark.parametrize(("task", "name"), TASKS.items())
def test_feeds_are_what_the_pipeline_runs(bundle_of: BundleOf, task: str, name: str) -> None:
    bundle, session = bundle_of(name), load(bundle_of(name), threads=1)
    examples = some(read_examples(None, task), 5)
    found = list(feeds(bundle, examples))
    assert len(found) >= 5
    for feed in found:
        assert set(feed) == {spec.name for spec in session.inputs}
        assert feed["attention_mask"].all()  # one row each, so nothing is padded
        assert feed["input_ids"].shape[0] == 1
        session.run(feed)
    again = list(feeds(bundle, examples))
    assert all(np.array_equal(a[n], b[n]) for a, b in zip(found, again, strict=True) for n in a)
    if task == "question-answering":
        tokenizer = pipeline(task, bundle).tokenizer
        item = examples[0].input
        assert normal(item["question"]) in normal(tokenizer.decode(found[0]["input_ids"][0]))


def normal(text: str) -> str:
    return "".join(text.lower().split())


def test_feeds_of_a_long_context_are_its_windows(bundle_of: BundleOf) -> None:
    found = list(feeds(bundle_of("bert-glossary-qa"), some(read_examples(DATA / "qa_dev_long.json", "qa"), 2)))
    assert len(found) > 4 and {feed["input_ids"].shape[1] for feed in found[:2]} == {384}


def test_labels_decide_where_they_are(bundle_of: BundleOf) -> None:
    bundle = bundle_of("tiny-classify")
    manifest = pipeline("classify", bundle).manifest
    texts = [example.input for example in some(read_examples(None, "classify"), 40)]
    said = [row["label"] for row in pipeline("classify", bundle)(texts)]

    def judged(labels: list[Any]) -> float:
        items = tuple(Example(text, label, place="x") for text, label in zip(texts, labels, strict=True))
        return Judge(bundle, Examples("text-classification", items, "x"), 1).score(bundle, "fp32").value

    assert judged(list(said)) == 1.0
    assert judged([manifest.labels.index(label) for label in said]) == 1.0  # by number
    wrong = {label: manifest.labels[i - 1] for i, label in enumerate(manifest.labels)}
    assert judged([wrong[label] if i < 10 else label for i, label in enumerate(said)]) == 0.75
    with pytest.raises(InputError, match="'label' of x: unknown label 'excellent'"):
        judged(["excellent"] * 40)
    with pytest.raises(InputError, match="is a list, and this model gives one label"):
        judged([("a", "b")] * 40)


def test_labels_of_rankings_choices_and_masks(bundle_of: BundleOf) -> None:
    ranks = pipeline("rerank", bundle_of("tiny-rerank"))
    items = [example.input for example in some(read_examples(None, "rerank"), 12)]
    orders = [[row["index"] for row in result] for result in ranks(items)]
    seconds = tuple(Example(item, (order[1],)) for item, order in zip(items, orders, strict=True))
    judge = Judge(bundle_of("tiny-rerank"), Examples("text-ranking", seconds, "x"), 1)
    assert judge.score(bundle_of("tiny-rerank"), "fp32").value == 0.5
    fill = pipeline("mlm", bundle_of("tiny-mlm"))
    text = "The [MASK] reached the [MASK]."
    words = tuple(mask[0]["token_str"].upper() for mask in fill(text))
    half = Example(text, (words[0], "never"))
    judge = Judge(bundle_of("tiny-mlm"), Examples("fill-mask", (half, Example(text, words)), "x"), 1)
    assert judge.score(bundle_of("tiny-mlm"), "fp32").value == 0.75


def test_numbers_of_a_regression(bundle_of: BundleOf) -> None:
    bundle = bundle_of("tiny-regression")
    texts = [example.input for example in some(read_examples(None, "classify"), 20)]
    scores = [row["score"] for row in pipeline("classify", bundle)(texts)]
    items = tuple(Example(text, 3 * score + 1) for text, score in zip(texts, scores, strict=True))
    found = Judge(bundle, Examples("text-classification", items, "x"), 1).score(bundle, "fp32")
    assert found.value == pytest.approx(1.0)


def test_a_regression_of_another_scale_is_found_out(bundle_of: BundleOf, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its correlation is perfect."""
    bundle = bundle_of("tiny-regression")
    judge = Judge(bundle, some(read_examples(None, "classify"), 20), 1)
    gate = task_gate("int8", "correlation")
    assert miss(judge.score(bundle, "fp32"), gate) == ""
    predict = judge._metric.predict
    changed = dataclasses.replace(judge._metric, predict=lambda *given: 2 * predict(*given) + 3)
    monkeypatch.setattr(judge, "_metric", changed)
    found = judge.score(bundle, "fp32")
    assert found.value == pytest.approx(1.0) and miss(found, gate).startswith("largest difference")


def test_texts_without_anything_to_find_are_refused(bundle_of: BundleOf) -> None:
    """Where neither fp32 nor a label finds anything, any variant that finds nothing would pass."""
    ner, text = bundle_of("bert-glossary-ner"), "a"
    for label, words in ((None, ""), ((), ", and their labels name none")):
        examples = Examples("token-classification", (Example(text, label), Example(text, label)), "x")
        with pytest.raises(UsageError, match=f"finds no entity in any of the 2 examples of x{words}, so that nothing"):
            Judge(ner, examples, 1)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_figure_of_fp32_that_is_no_number_is_refused(bundle_of: BundleOf) -> None:
    huge = tuple(Example(text, label) for text, label in (("a boat", 1e308), ("a ship", 1.5e308), ("a town", 1e308)))
    with pytest.raises(UsageError, match="the correlation of fp32 on the 3 examples of x is nan"):
        Judge(bundle_of("tiny-regression"), Examples("text-classification", huge, "x"), 1)


def test_what_cannot_be_judged_is_refused(bundle_of: BundleOf) -> None:
    with pytest.raises(UsageError, match="no examples from x to judge with"):
        Judge(bundle_of("tiny-classify"), Examples("text-classification", (), "x"))
    with pytest.raises(UsageError, match="is for text-classification"):
        Judge(bundle_of("tiny-classify"), some(read_examples(None, "qa"), 2))
    with pytest.raises(UsageError, match="unknown precision of tiny-classify 'int8'"):
        Judge(bundle_of("tiny-classify"), some(read_examples(None, "classify"), 2)).score(
            bundle_of("tiny-classify"), "int8"
        )
    with pytest.raises(UsageError, match="10 neighbours need more than 10 examples, got 4"):
        Judge(bundle_of("tiny-embed"), some(read_examples(None, "embed"), 4))
    with pytest.raises(InputError, match="no text of x has two tokens"):
        Judge(bundle_of("tiny-generate"), Examples("text-generation", (Example(""),), "x"))


def test_options_of_the_calls_can_be_said(bundle_of: BundleOf) -> None:
    examples = some(read_examples(DATA / "qa_dev.json", "qa"), 20)
    bundle = bundle_of("bert-glossary-qa")
    short = Judge(bundle, examples, 1, options={"max_answer_len": 1}).score(bundle, "fp32")
    assert short.value < 0.7 < Judge(bundle, examples, 1).score(bundle, "fp32").value


def test_labels_that_fp32_cannot_meet_are_refused(bundle_of: BundleOf) -> None:
    """A share of nothing is nothing: any variant would pass."""
    ner = bundle_of("bert-glossary-ner")
    examples = some(read_examples(DATA / "ner_dev.json", "ner"), 6)

    def judged(rename: Callable[[str], str]) -> Judge:
        items = [
            dataclasses.replace(item, label=tuple((a, b, rename(name)) for a, b, name in item.label))
            for item in examples
        ]
        return Judge(ner, dataclasses.replace(examples, items=tuple(items)), 1)

    assert judged(str).score(ner, "fp32").value > 0.9
    with pytest.raises(
        InputError, match=r"'entities' of item \d+ of ner_dev.json: unknown label 'term'\. Did you mean 'TERM'\?"
    ):
        judged(str.lower)
    for name in ("O", "B-TERM"):  # labels of tokens, and none of an entity
        with pytest.raises(InputError, match=f"unknown label '{name}'"):
            judged(lambda _, name=name: name)  # type: ignore[misc]
    two = Example("The [MASK] reached the shore.", ("two words",), place="x")
    with pytest.raises(UsageError, match=r"fp32 gets none of the 1 labelled examples of x right \(accuracy 0\)"):
        Judge(bundle_of("tiny-mlm"), Examples("fill-mask", (two,), "x"), 1)


def test_a_mask_behind_the_cut_is_refused_with_its_place(bundle_of: BundleOf) -> None:
    long = tuple(Example("a boat " * 600 + "[MASK]", place=f"line {i} of x") for i in range(1, 5))
    with pytest.raises(InputError, match=r"line 1 of x has no mask in its first 128 tokens"):
        Judge(bundle_of("tiny-pretraining"), Examples("pretraining", long, "x"), 1)


def test_neighbours_are_looked_for_once_a_candidate(bundle_of: BundleOf, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, asked = bundle_of("tiny-embed"), []

    def counted(vectors: Any, k: int) -> Any:
        asked.append(k)
        return metrics.neighbours(vectors, k)

    monkeypatch.setattr(task_metrics, "neighbours", counted)
    judge = Judge(bundle, some(read_examples(None, "embed"), 20), 1)
    asked.clear()
    assert judge.score(bundle, "fp32").value == 1.0 and len(asked) == 1
