"""Entities from random label probabilities, against transformers' own post-processing, for two kinds of tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import transformers

from pinnace.runtime.pipelines import token_classification
from pinnace.runtime.pipelines.entities import Tagger, Window, merge_overlapping
from pinnace.runtime.pipelines.scores import softmax
from pinnace.runtime.pipelines.token_classification import _word_starts as word_starts
from pinnace.runtime.tokenization.tokenizer import Tokenizer, load_tokenizer
from tests.conftest import DATA, OpenPipeline, same

LABELS = ("O", "B-TERM", "I-TERM", "B-DEF", "I-DEF", "PLAIN", "A-ODD-ONE")
TEXTS = [
    "fjordish-megaplankton: an overgrowing undersea thing; unhyphenated counterrevolutionary means odd",
    "東京 bulkhead：分隔船 😀 a partition 🚢 of ships。",
    "Café: a small re\u0301staurant naïve\u200b İstanbul’s coöp.  The word bar\u0000 means a counter ",
    " leading space, and [MASK] [SEP] in the text",
    "one",
]


def byte_pairs(folder: Path) -> Path:
    """A byte-level tokenizer, whose tokens have no mark of a word's continuation."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "<unk>"]
    made.train_from_iterator(
        TEXTS, tokenizers.trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet)
    )
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", made.token_to_id("<s>"))]
    )
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    return folder


@pytest.fixture(scope="module", params=["word pieces", "byte pairs"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any]:
    """Our tokenizer, and transformers' pipeline on the same one."""
    if request.param == "word pieces":
        folder = DATA / "bert-glossary-ner"
    else:
        folder = byte_pairs(tmp_path_factory.mktemp("bpe"))
    config = transformers.BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=16,
        id2label=dict(enumerate(LABELS)), label2id={label: i for i, label in enumerate(LABELS)},
    )  # fmt: skip
    oracle = transformers.TokenClassificationPipeline(
        model=transformers.BertForTokenClassification(config),
        tokenizer=transformers.AutoTokenizer.from_pretrained(folder),
        device=torch.device("cpu"),
    )
    return load_tokenizer(folder), oracle


@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
@pytest.mark.parametrize("strategy", ["none", "simple", "first", "average", "max"])
@pytest.mark.parametrize("ignored", [("O",), (), ("TERM", "B-TERM", "PLAIN")])
def test_entities_are_those_of_transformers(
    pair: tuple[Tokenizer, Any], strategy: str, ignored: tuple[str, ...]
) -> None:
    ours, oracle = pair
    tagger = Tagger(ours, LABELS, strategy, frozenset(ignored))
    generator = np.random.default_rng(len(strategy) + len(ignored))
    for text in TEXTS:
        row = (ours([text]).encodings or [])[0]
        for _ in range(5):
            logits = generator.normal(size=(len(row), len(LABELS))).astype(np.float32) * 2
            output = {
                "logits": torch.from_numpy(logits)[None],
                "sentence": text,
                "input_ids": torch.tensor([row.ids]),
                "offset_mapping": torch.tensor([row.offsets]),
                "special_tokens_mask": torch.tensor([row.special_tokens_mask]),
            }
            strategies = transformers.pipelines.token_classification.AggregationStrategy
            expected = oracle.postprocess([output], strategies(strategy), list(ignored))
            expected = [
                {key: value.item() if hasattr(value, "item") else value for key, value in e.items()} for e in expected
            ]
            assert same(tagger.entities(Window(text, row, softmax(logits), None)), expected, 1e-5)


class Whole(str):
    """A text that may be looked at in places only."""

    __slots__ = ()

    def __iter__(self) -> Any:
        pytest.fail("all characters were looked at")


@pytest.mark.parametrize("strategy", ["none", "simple", "first", "average", "max"])
def test_a_window_costs_what_its_tokens_do(pair: tuple[Tokenizer, Any], strategy: str) -> None:
    """A long text has many windows: none may look at all of it."""
    row = (pair[0]([TEXTS[0]]).encodings or [])[0]
    probabilities = softmax(np.random.default_rng(1).normal(size=(len(row), len(LABELS))).astype(np.float32))
    tagger = Tagger(pair[0], LABELS, strategy, frozenset())
    assert tagger.entities(Window(Whole(TEXTS[0]), row, probabilities, None))


def test_the_places_of_words_are_found_once_for_all_windows(
    open_pipeline: OpenPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = open_pipeline("token-classification", "bert-glossary-ner")
    found, windows = [], []

    def starts(*given: Any) -> Any:
        found.append(given)
        return word_starts(*given)

    def entities(tagger: Tagger, window: Window) -> list[Any]:
        windows.append(window)
        return []

    monkeypatch.setattr(token_classification, "_word_starts", starts)
    monkeypatch.setattr(Tagger, "entities", entities)
    words = ["a", "galley", "met", "two", "boats", "near", "the", "harbour"] * 100
    pipe([words, words[:9]], is_split_into_words=True, stride=8, aggregation_strategy="first")
    assert len(windows) > 3 and len(found) == 2


def test_overlapping_entities_are_merged_as_in_transformers(pair: tuple[Tokenizer, Any]) -> None:
    _, oracle = pair
    generator = np.random.default_rng(3)
    merged = 0
    for _ in range(200):
        starts = generator.integers(0, 30, 8)
        entities = [
            {
                "start": int(start),
                "end": int(start + generator.integers(1, 8)),
                "score": float(generator.integers(9)) / 9,
            }
            for start in starts
        ]
        result = merge_overlapping(entities)
        assert result == oracle.aggregate_overlapping_entities(entities)
        merged += len(result) < len(entities)
    assert merged > 100
