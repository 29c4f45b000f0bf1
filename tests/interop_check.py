"""Open Pinnace's bundles, unchanged, in other people's programs, and compare with PyTorch on the same checkpoints.

It runs in an environment of its own, without Pinnace (docs/interop.md has the lines)::

    python tests/interop_check.py BUNDLES --pinnace-python .venv/bin/python [--minilm FOLDER] [--json FILE]

Bundles that are missing from the folder BUNDLES are exported by ``--pinnace-python`` first. Exit code 1: one of them
did not open, or its numbers are off by more than 1e-4.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "ORT_DISABLE_TELEMETRY": "1",
}  # read when they are imported: nothing goes to the network

import numpy as np
import torch

TOLERANCE: Final = 1e-4
HERE: Final = Path(__file__).resolve().parent
DATA: Final = HERE / "data"
MINILM: Final = "minilm"
DECODER: Final = "decoder"
TEXTS: Final = (
    "The word red means a color.",
    "plant",
    "Leaves of small trees, flowers without form: people make light of it!",
    "Ünïcödé 東京 text, of which a tokenizer may know nothing, and which goes on for longer than the other ones do.",
)
PAIRS: Final = ("What does red mean?", "What is it?", "Who makes light of it?", "Where?")
PACKAGES: Final = ("optimum-onnx", "sentence-transformers", "fastembed", "transformers", "torch", "onnxruntime")

Opened = Callable[[Path, Path], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Row:
    """One bundle in one program.

    Attributes:
        source: the checkpoint's name in ``tests/data``, or MINILM or DECODER.
        task: what it is exported for.
        program: whose program opens it.
        check: given bundle and checkpoint, returns the largest absolute difference of each output.
        flags: more words for ``pinnace export``.
    """

    source: str
    task: str
    program: str
    check: Opened
    flags: tuple[str, ...] = ()

    @property
    def bundle(self) -> str:
        """Folder name of the bundle."""
        return "-".join([self.source, *(word.strip("-") for word in self.flags if "=" not in word)])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundles", type=Path, help="folder of bundles; missing ones are exported into it")
    parser.add_argument("--pinnace-python", type=Path, help="a Python with Pinnace and its export extra")
    parser.add_argument("--minilm", type=Path, help="folder of all-MiniLM-L6-v2; without it, that model is left out")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--only", default="", help="only rows whose bundle or program has this word in its name")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    results: list[dict[str, Any]] = []
    for row in ROWS:
        if (row.source == MINILM and arguments.minilm is None) or arguments.only not in f"{row.bundle} {row.program}":
            continue
        checkpoint = arguments.minilm if row.source == MINILM else DATA / row.source
        bundle = arguments.bundles / row.bundle
        try:
            export_missing(row, checkpoint, bundle, arguments.pinnace_python)
            before = names_and_times(bundle)
            found = row.check(bundle, bundle if row.source == DECODER else checkpoint)
            if names_and_times(bundle) != before:
                raise RuntimeError("the program changed the bundle's files")
        except Exception as error:  # one failing program must not hide the others
            results.append({"bundle": row.bundle, "program": row.program, "error": f"{type(error).__name__}: {error}"})
        else:
            results.append({"bundle": row.bundle, "program": row.program, "differences": found})
    print("Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()) + "\n")
    print(f"| bundle | opened by | largest difference | within {TOLERANCE:g} |\n|---|---|---|---|")
    failed = [print_row(result) for result in results].count(False)
    if arguments.json:
        arguments.json.write_text(json.dumps({"versions": versions, "results": results}, indent=2) + "\n", "utf-8")
    if not results:
        print("nothing was checked", file=sys.stderr)
    return 1 if failed or not results else 0


def print_row(result: dict[str, Any]) -> bool:
    """Print a row of the table; whether it is good."""
    if "error" in result:
        error = " ".join(result["error"].split())
        print(f"| {result['bundle']} | {result['program']} | {error[:300].replace('|', '/')} | fails |")
        return False
    largest = max(result["differences"].values())
    good = bool(largest <= TOLERANCE)  # a NaN is not
    print(f"| {result['bundle']} | {result['program']} | {largest:.1e} | {'holds' if good else 'misses'} |")
    return good


def export_missing(row: Row, checkpoint: Path, bundle: Path, python: Path | None) -> None:
    """Export a bundle that is not there yet."""
    if (bundle / "manifest.json").is_file():
        return
    if python is None:
        raise RuntimeError(f"{bundle} is missing; give --pinnace-python to export it")
    model = "bert" if row.source == DECODER else str(checkpoint)
    words = [str(python), "-m", "pinnace", "export", model, "--task", row.task, "-o", str(bundle), "-q", *row.flags]
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"export ended with {done.returncode}: {done.stderr.strip()}")


def names_and_times(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder with its size and time of change."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def differences(expected: dict[str, Any], got: dict[str, Any], mask: Any = None) -> dict[str, float]:
    """Largest absolute difference of each output; shapes must agree.

    Args:
        expected: output's name -> PyTorch's numbers.
        got: the same of the program.
        mask: (batch, sequence), 0 where a row is padding: what a model says there has no use and little accuracy.
    """
    if not expected:
        raise RuntimeError("no outputs to compare")
    found = {}
    for name, value in expected.items():
        want, have = np.asarray(value, np.float64), np.asarray(got[name], np.float64)
        if want.shape != have.shape:
            raise RuntimeError(f"{name} has shape {have.shape}, PyTorch's has {want.shape}")
        off = np.abs(want - have)
        if mask is not None and off.shape[: mask.ndim] == tuple(mask.shape):
            off = off[np.asarray(mask, bool)]
        found[name] = float(off.max())
    return found


def optimum(head: str, **options: Any) -> Opened:
    """Open by ``optimum.onnxruntime.ORTModelFor<head>``, with a padded batch of texts, alone or in pairs."""

    def check(bundle: Path, checkpoint: Path) -> dict[str, float]:
        import optimum.onnxruntime
        import transformers

        inputs = encoded(bundle, checkpoint, choices=head == "MultipleChoice")
        torch_class, ort_class = AUTO.get(head, (f"AutoModelFor{head}", f"ORTModelFor{head}"))
        reference = getattr(transformers, torch_class).from_pretrained(checkpoint, dtype=torch.float32).eval()
        model = getattr(optimum.onnxruntime, ort_class).from_pretrained(bundle, **options)
        with torch.inference_mode():
            expected, got = reference(**inputs), model(**inputs)
        # ORTModelForFeatureExtraction gives the tokens' vectors and no other output, whoever exported.
        names = ["last_hidden_state"] if head == "FeatureExtraction" else list(expected)
        if head == "CausalLM":  # Pinnace gives the last position's logits, which is what generating needs
            expected = {"logits": reference(**inputs).logits[:, -1:].detach()}
            return differences(expected, {"logits": got.logits}) | generated(reference, model, inputs)
        return differences({name: expected[name] for name in names}, got, inputs["attention_mask"])

    return check


# Heads whose classes are not AutoModelFor<head> and ORTModelFor<head>: (of transformers, of optimum).
AUTO: Final = {
    "FeatureExtraction": ("AutoModel", "ORTModelForFeatureExtraction"),
    "NextSentencePrediction": ("AutoModelForNextSentencePrediction", "ORTModelForCustomTasks"),
    "PreTraining": ("AutoModelForPreTraining", "ORTModelForCustomTasks"),
}


def ort_name(head: str) -> str:
    """Name of optimum's class for a head."""
    return f"optimum-onnx {AUTO.get(head, ('', f'ORTModelFor{head}'))[1]}"


def encoded(bundle: Path, checkpoint: Path, *, choices: bool = False) -> Any:
    """Encode the texts with the bundle's tokenizer, which must give the same ids as the checkpoint's."""
    import transformers

    if not (bundle / "tokenizer.json").is_file():
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(5, 100, (2, 9), generator=generator)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    rows = []
    for folder in (bundle, checkpoint):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        rows.append(tokenizer(list(PAIRS), list(TEXTS), padding=True, return_tensors="pt"))
    for name, value in rows[1].items():
        if not torch.equal(rows[0][name], value):
            raise RuntimeError(f"the bundle's tokenizer gives other {name} than the checkpoint's")
    if choices:
        return {name: value.reshape(2, 2, -1) for name, value in rows[0].items()}
    return rows[0]


def generated(reference: Any, model: Any, inputs: Any) -> dict[str, float]:
    """Whether both generate the same tokens, the cache in use; 0 is yes."""
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    same = torch.equal(reference.generate(**inputs, **options), model.generate(**inputs, **options))
    return {"tokens": 0.0 if same else 1.0}


def sentence_transformers(bundle: Path, checkpoint: Path) -> dict[str, float]:
    """Open by sentence-transformers' ONNX backend."""
    from sentence_transformers import SentenceTransformer

    expected = SentenceTransformer(str(checkpoint), device="cpu").encode(list(TEXTS))
    got = SentenceTransformer(str(bundle), backend="onnx", device="cpu").encode(list(TEXTS))
    return differences({"vectors": expected}, {"vectors": got})


def cross_encoder(bundle: Path, checkpoint: Path) -> dict[str, float]:
    """Open by the ONNX backend of sentence-transformers' cross-encoder."""
    from sentence_transformers import CrossEncoder

    pairs = list(zip(PAIRS, TEXTS, strict=True))
    expected = CrossEncoder(str(checkpoint), device="cpu").predict(pairs)
    got = CrossEncoder(str(bundle), backend="onnx", device="cpu").predict(pairs)
    return differences({"scores": expected}, {"scores": got})


def fastembed(bundle: Path, checkpoint: Path) -> dict[str, float]:
    """Open by fastembed as a custom model; the vectors are compared with sentence-transformers' on PyTorch."""
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType
    from sentence_transformers import SentenceTransformer

    peer = SentenceTransformer(str(checkpoint), device="cpu")
    name = f"pinnace/{bundle.name}"
    TextEmbedding.add_custom_model(
        model=name,
        pooling=PoolingType.MEAN,
        normalization=any(type(module).__name__ == "Normalize" for module in peer),
        sources=ModelSource(hf=name),
        dim=json.loads((bundle / "config.json").read_text("utf-8"))["hidden_size"],
        model_file="model.onnx",
    )
    got = np.stack(list(TextEmbedding(name, specific_model_path=str(bundle), threads=1).embed(list(TEXTS))))
    return differences({"vectors": peer.encode(list(TEXTS))}, {"vectors": got})


def fastembed_rerank(bundle: Path, checkpoint: Path) -> dict[str, float]:
    """Open by fastembed's cross-encoder as a custom model; raw scores are compared."""
    from fastembed.common.model_description import ModelSource
    from fastembed.rerank.cross_encoder import TextCrossEncoder
    from sentence_transformers import CrossEncoder

    name = f"pinnace/{bundle.name}"
    TextCrossEncoder.add_custom_model(model=name, sources=ModelSource(hf=name), model_file="model.onnx")
    pairs = list(zip(PAIRS, TEXTS, strict=True))
    got = list(TextCrossEncoder(name, specific_model_path=str(bundle), threads=1).rerank_pairs(pairs))
    peer = CrossEncoder(str(checkpoint), device="cpu").predict(pairs, activation_fn=torch.nn.Identity())
    return differences({"scores": peer}, {"scores": got})


# Checkpoint, task, and the ending of the classes' names: AutoModelFor... and ORTModelFor...
HEADS: Final = (
    ("bert-glossary-qa", "qa", "QuestionAnswering"),
    ("bert-glossary-ner", "ner", "TokenClassification"),
    ("tiny-embed", "embed", "FeatureExtraction"),
    ("tiny-classify", "classify", "SequenceClassification"),
    ("tiny-multilabel", "classify", "SequenceClassification"),
    ("tiny-regression", "classify", "SequenceClassification"),
    ("tiny-nli", "zero-shot-classification", "SequenceClassification"),
    ("tiny-mlm", "mlm", "MaskedLM"),
    ("tiny-choice", "mc", "MultipleChoice"),
    ("tiny-nsp", "nsp", "NextSentencePrediction"),
    ("tiny-pretraining", "pretraining", "PreTraining"),
    (MINILM, "embed", "FeatureExtraction"),
)
SMALL: Final = "num_hidden_layers=2,vocab_size=640,hidden_size=64,num_attention_heads=4"
SENTENCES: Final = "sentence-transformers, ONNX backend"
ROWS: Final = (
    *(Row(source, task, ort_name(head), optimum(head)) for source, task, head in HEADS),
    Row("tiny-mlm", "mlm", ort_name("MaskedLM"), optimum("MaskedLM"), ("--target", "onnx")),
    Row("tiny-mlm", "mlm", ort_name("MaskedLM"), optimum("MaskedLM"), ("--layout", "hub")),
    Row(DECODER, "generate", ort_name("CausalLM"), optimum("CausalLM"), ("--random-weights", "--config", SMALL)),
    Row("tiny-embed", "embed", SENTENCES, sentence_transformers),
    Row("tiny-embed", "embed", SENTENCES, sentence_transformers, ("--layout", "hub")),
    Row(MINILM, "embed", SENTENCES, sentence_transformers),
    Row("tiny-rerank", "rerank", "sentence-transformers CrossEncoder, ONNX backend", cross_encoder),
    Row("tiny-embed", "embed", "fastembed TextEmbedding", fastembed),
    Row(MINILM, "embed", "fastembed TextEmbedding", fastembed),
    Row("tiny-rerank", "rerank", "fastembed TextCrossEncoder", fastembed_rerank),
)


if __name__ == "__main__":
    sys.exit(main())
