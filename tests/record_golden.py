"""Record what transformers 4.57 answers, so that the tests can compare without it.

Run once, in an environment of its own (not the project's, which has a newer transformers)::

    python -m venv golden && golden/bin/pip install "transformers==4.57.6" "torch>=2.6" sentence-transformers
    OMP_NUM_THREADS=1 golden/bin/python tests/record_golden.py [--minilm FOLDER]

It writes ``tests/golden/*.json`` and, where they are missing, the tiny random checkpoints ``tests/data/tiny-*``.
Each case of a file is ``{"inputs": ..., "options": {...}, "result": ...}``; ``inputs`` is what a pipeline is given.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import BertConfig, BertTokenizerFast

HERE = Path(__file__).parent
DATA, GOLDEN = HERE / "data", HERE / "golden"
VOCABULARY_SIZE = 640
TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "tiny-mlm": ("BertForMaskedLM", {}),
    "tiny-classify": ("BertForSequenceClassification", {"id2label": {0: "joy", 1: "anger", 2: "calm"}}),
    "tiny-multilabel": (
        "BertForSequenceClassification",
        {"id2label": {i: f"topic{i}" for i in range(5)}, "problem_type": "multi_label_classification"},
    ),
    "tiny-regression": ("BertForSequenceClassification", {"num_labels": 1, "problem_type": "regression"}),
    "tiny-rerank": ("BertForSequenceClassification", {"num_labels": 1}),
    "tiny-nli": (
        "BertForSequenceClassification",
        {"id2label": {0: "contradiction", 1: "neutral", 2: "entailment"}},
    ),
    "tiny-nsp": ("BertForNextSentencePrediction", {}),
    "tiny-choice": ("BertForMultipleChoice", {}),
    "tiny-pretraining": ("BertForPreTraining", {}),
    "tiny-embed": ("BertModel", {}),
}
PLAIN = [
    "The word red means a color.",
    "",
    "plant",
    "Leaves of small trees, flowers without form: people make light of it!",
    "Ünïcödé 東京 \U0001f600 text\u0000with odd\u200bthings",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minilm", type=Path, help="folder of all-MiniLM-L6-v2")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    make_tiny_checkpoints()
    record("fill_mask", fill_mask())
    record("text_classification", text_classification())
    record("zero_shot", zero_shot())
    record("heads", bare_heads())
    record("question_answering", question_answering())
    record("token_classification", token_classification())
    record("feature_extraction", feature_extraction(arguments.minilm))


def record(name: str, cases: list[dict[str, Any]]) -> None:
    lines = ",\n".join(json.dumps(case, default=float) for case in cases)
    text = f'{{"transformers": "{transformers.__version__}", "cases": [\n{lines}\n]}}\n'
    (GOLDEN / f"{name}.json").write_text(text, encoding="ascii")
    print(name, len(cases))


def make_tiny_checkpoints() -> None:
    """Save one random checkpoint for each head: 2 layers, hidden 16, a cut vocabulary, large weights."""
    words = (DATA / "bert-glossary-qa" / "vocab.txt").read_text(encoding="utf-8").split("\n")[:VOCABULARY_SIZE]
    for seed, (name, (architecture, extra)) in enumerate(TINY.items()):
        folder = DATA / name
        if (folder / "model.safetensors").exists():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
        if "id2label" in extra:
            extra = {**extra, "label2id": {label: i for i, label in extra["id2label"].items()}}
        config = BertConfig(
            vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=128, initializer_range=0.6, **extra,
        )  # fmt: skip
        torch.manual_seed(seed)
        getattr(transformers, architecture)(config).eval().save_pretrained(folder)
        BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=128).save_pretrained(folder)
        if name == "tiny-embed":
            make_sentence_transformers_files(folder)


def make_sentence_transformers_files(folder: Path) -> None:
    """Add the files that say: cut at 24 tokens, take the mean, normalize."""
    parts = ("models.Transformer", ""), ("models.Pooling", "1_Pooling"), ("models.Normalize", "2_Normalize")
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.{kind}"}
        for i, (kind, path) in enumerate(parts)
    ]
    (folder / "modules.json").write_text(json.dumps(modules, indent=1) + "\n")
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 24, "do_lower_case": false}\n')
    (folder / "1_Pooling").mkdir(exist_ok=True)
    pooling = {"word_embedding_dimension": 16, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling) + "\n")


def pipe(task: str, name: str) -> Any:
    return transformers.pipeline(task, model=str(DATA / name), device="cpu", dtype=torch.float32)


def cases(pipeline: Any, model: str, pairs: list[tuple[Any, dict[str, Any]]]) -> list[dict[str, Any]]:
    return [
        {"model": model, "inputs": inputs, "options": options, "result": pipeline(inputs, **options)}
        for inputs, options in pairs
    ]


def fill_mask() -> list[dict[str, Any]]:
    one, two = "The word [MASK] means a color.", "[MASK] plant has [MASK] leaves, it's red ."
    pairs: list[tuple[Any, dict[str, Any]]] = [
        (one, {}),
        (two, {}),
        ([one, two, "[MASK]"], {}),
        (one, {"top_k": 2}),
        (two, {"top_k": 1}),
        (one, {"targets": ["red", "yellow", "##ing"]}),
        (one, {"targets": "black"}),
        (one, {"targets": ["zebra", "red"], "top_k": 2}),
        (two, {"targets": ["red", "plant", "light"], "top_k": 2}),
        ("Ünïcödé [MASK] 東京 \U0001f600", {"top_k": 3}),
    ]
    return cases(pipe("fill-mask", "tiny-mlm"), "tiny-mlm", pairs)


def text_classification() -> list[dict[str, Any]]:
    pair = {"text": "A red flower.", "text_pair": "The plant has leaves"}
    pairs: list[tuple[Any, dict[str, Any]]] = [
        *((text, {}) for text in PLAIN),
        (PLAIN, {}),
        (PLAIN[0], {"top_k": None}),
        (PLAIN, {"top_k": None}),
        (PLAIN, {"top_k": 2}),
        (PLAIN[0], {"top_k": 1}),
        (PLAIN[3], {"function_to_apply": "none", "top_k": None}),
        (PLAIN[3], {"function_to_apply": "sigmoid", "top_k": None}),
        (PLAIN[3], {"function_to_apply": "softmax", "top_k": None}),
        (pair, {}),
        ([pair, pair], {"top_k": None}),
    ]
    result = []
    for model in ("tiny-classify", "tiny-multilabel", "tiny-regression", "tiny-rerank"):
        result += cases(pipe("text-classification", model), model, pairs)
    return result


def zero_shot() -> list[dict[str, Any]]:
    labels = ["plant", "city", "light of people", "music"]
    pairs: list[tuple[Any, dict[str, Any]]] = [
        (PLAIN[3], {"candidate_labels": labels}),
        (PLAIN[3], {"candidate_labels": "plant, city,music"}),
        (PLAIN[3], {"candidate_labels": labels, "multi_label": True}),
        (PLAIN[3], {"candidate_labels": ["plant"]}),
        (PLAIN[3], {"candidate_labels": labels, "hypothesis_template": "It is about {}!"}),
        ([PLAIN[0], PLAIN[3]], {"candidate_labels": labels}),
        ("small plant " * 200, {"candidate_labels": labels}),
    ]
    return cases(pipe("zero-shot-classification", "tiny-nli"), "tiny-nli", pairs)


@torch.no_grad()
def bare_heads() -> list[dict[str, Any]]:
    """Logits of the heads that have no pipeline there: multiple choice, next sentence, pre-training."""
    result = []
    tokenizer = BertTokenizerFast.from_pretrained(DATA / "tiny-choice")
    model = transformers.BertForMultipleChoice.from_pretrained(DATA / "tiny-choice").eval()
    for prompt, choices in (
        ("A red plant", ["has leaves", "is a city of people in north america", "no"]),
        ("What is light?", ["small", "black"]),
    ):
        encoded = tokenizer([prompt] * len(choices), choices, padding=True, return_tensors="pt")
        logits = model(**{k: v[None] for k, v in encoded.items()}).logits[0]
        inputs = {"prompt": prompt, "choices": choices}
        result.append({"model": "tiny-choice", "inputs": inputs, "options": {}, "result": logits.tolist()})
    model = transformers.BertForNextSentencePrediction.from_pretrained(DATA / "tiny-nsp").eval()
    for text, following in (("It is a plant.", "The plant has leaves."), ("Light", "People of the city make form")):
        logits = model(**tokenizer(text, following, return_tensors="pt")).logits[0]
        inputs = {"text": text, "text_pair": following}
        result.append({"model": "tiny-nsp", "inputs": inputs, "options": {}, "result": logits.tolist()})
    model = transformers.BertForPreTraining.from_pretrained(DATA / "tiny-pretraining").eval()
    output = model(**tokenizer("A red [MASK]", "people", return_tensors="pt"))
    inputs = {"text": "A red [MASK]", "text_pair": "people"}
    logits = {k: [[round(x, 6) for x in row] for row in output[k].reshape(-1, output[k].shape[-1]).tolist()]
              for k in ("prediction_logits", "seq_relationship_logits")}  # fmt: skip
    logits["seq_relationship_logits"] = logits["seq_relationship_logits"][0]
    result.append({"model": "tiny-pretraining", "inputs": inputs, "options": {}, "result": logits})
    return result


def question_answering() -> list[dict[str, Any]]:
    short = json.loads((DATA / "qa_dev.json").read_text("utf-8"))
    long = json.loads((DATA / "qa_dev_long.json").read_text("utf-8"))

    def pick(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
        return [{"question": row["question"], "context": row["context"]} for row in rows]

    partition = (
        "\u6771\u4eac bulkhead\uff1a\u5206\u9694\u8239 \U0001f600 a partition \U0001f6a2 of ships\u3002\u4eac\u90fd."
    )
    restaurant = (
        "Caf\u00e9: a small re\u0301staurant, na\u00efve\u200b and \u0130stanbul\u2019s co\u00f6p. "
        "The word bar means a counter\u0000 where one drinks."
    )
    lengthy = "What is " + "a very long question about the word tea " * 12 + "?"
    odd = [
        {"question": "What is bulkhead?", "context": partition},
        {"question": "What does caf\u00e9 mean?", "context": restaurant},
        {"question": "Who?", "context": "Anna"},
        {"question": "\U0001f600\U0001f600", "context": "  spaces \n\t and\r\nlines  about the word tea: a drink  "},
        {"question": lengthy, "context": pick(short)[3]["context"]},
    ]
    pipeline, name = pipe("question-answering", "bert-glossary-qa"), "bert-glossary-qa"
    runs: list[tuple[list[dict[str, str]], dict[str, Any]]] = [
        (pick(short[:20]), {}),
        (pick(long[:8]), {}),
        (pick(short[:10]), {"top_k": 3}),
        (pick(long[:4]), {"top_k": 3}),
        (pick(short[20:30]), {"handle_impossible_answer": True, "top_k": 3}),
        (pick(long[4:8]), {"doc_stride": 20, "max_seq_len": 64}),
        (pick(long[4:8]), {"doc_stride": 64, "max_seq_len": 512, "max_answer_len": 40}),
        (pick(long[8:12]), {"handle_impossible_answer": True, "max_seq_len": 200}),
        (pick(short[30:40]), {"align_to_words": False, "max_answer_len": 40, "top_k": 2}),
        (pick(short[40:44]), {"max_answer_len": 2}),
        (odd, {}),
        (odd, {"align_to_words": False}),
        (odd, {"handle_impossible_answer": True, "max_answer_len": 40}),
    ]
    return [
        {"model": name, "inputs": row, "options": options, "result": pipeline(**row, **options)}
        for rows, options in runs
        for row in rows
    ]


def token_classification() -> list[dict[str, Any]]:
    texts = [row["text"] for row in json.loads((DATA / "ner_dev.json").read_text("utf-8"))]
    long = " ".join(texts[:40])
    odd = [
        "",
        "\u6771\u4eac bulkhead\uff1a\u5206\u9694\u8239 \U0001f600 a partition \U0001f6a2 of ships\u3002",
        "Caf\u00e9: a small re\u0301staurant na\u00efve\u200b \u0130stanbul\u2019s co\u00f6p.  "
        "The word bar\u0000 means a counter",
        "fjordish-megaplankton: an overgrowing undersea pseudomorphological wanderers' thing; "
        "unhyphenated counterrevolutionary [MASK] means [SEP] an odd one",
    ]
    pipeline, name = pipe("token-classification", "bert-glossary-ner"), "bert-glossary-ner"
    result = []
    for strategy in ("none", "simple", "first", "average", "max"):
        options = {"aggregation_strategy": strategy}
        result += cases(pipeline, name, [(text, options) for text in odd])
        result += cases(pipeline, name, [(odd[1:], {**options, "ignore_labels": ["TERM", "B-TERM", "I-TERM"]})])
        result += cases(pipeline, name, [(texts[60], {**options, "ignore_labels": []})])
        if strategy != "none":
            result += cases(pipeline, name, [(long, {**options, "stride": stride}) for stride in (16, 128)])
    words = ["bar", ":", "a", "counter", "where", "drinks", "are", "served"]
    result += cases(
        pipeline, name,
        [([words], {"is_split_into_words": True}),
         ([words], {"is_split_into_words": True, "delimiter": "--", "aggregation_strategy": "first"})],
    )  # fmt: skip
    result += cases(pipeline, name, [(long, {})])
    return result


def feature_extraction(minilm: Path | None) -> list[dict[str, Any]]:
    """Token vectors from the pipeline, sentence vectors from sentence-transformers."""
    from sentence_transformers import SentenceTransformer

    def rounded(vectors: Any) -> Any:
        return [rounded(v) for v in vectors] if isinstance(vectors, list) else round(vectors, 7)

    texts = [*PLAIN, "small plant has red leaves and light flowers " * 6]
    pipeline = pipe("feature-extraction", "tiny-embed")
    result = [
        {"model": "tiny-embed", "inputs": text, "options": {"pooling": None}, "result": rounded(pipeline(text))}
        for text in texts
    ]
    sentence = SentenceTransformer(str(DATA / "tiny-embed"), device="cpu")
    vectors = sentence.encode(texts).tolist()
    result.append({"model": "tiny-embed", "inputs": texts, "options": {}, "result": rounded(vectors)})
    if minilm is not None:
        texts = ["Jim Henson was a nice puppet", "", "Ünïcödé 東京 \U0001f600", "a long text about many things " * 80]
        vectors = SentenceTransformer(str(minilm), device="cpu").encode(texts).tolist()
        result.append({"model": "minilm", "inputs": texts, "options": {}, "result": rounded(vectors)})
    return result


if __name__ == "__main__":
    main()
