"""How fast are 300 texts of mixed length embedded by all-MiniLM-L6-v2 beside the programs that people use?

Every candidate is a process that loads once; then the rounds interleave. All give one vector of length 1 for each text.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from benchmarks.common import (
    Figure,
    Server,
    affinity,
    export_minilm,
    finish,
    interleave,
    minilm_folder,
    parser,
    ratio,
    run_child,
    summary,
)
from pinnace.bench.texts import texts

CUT: Final = 256  # tokens, as all-MiniLM-L6-v2's sentence_bert_config.json says
TOLERANCE: Final = 1e-5
LEAST_COSINE: Final = 0.95  # of int8, which `quantized_encoder` looks at more closely
PINNACE, INT8, TRANSFORMERS = "pinnace", "pinnace int8", "transformers"
SENTENCES, FASTEMBED = "sentence-transformers", "fastembed"
Embed = Callable[[list[str]], Any]


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--texts", type=int, help="how many texts (default: 300)")
    made.add_argument("--minilm", type=Path, help="folder of all-MiniLM-L6-v2 (default: the installed package's)")
    made.add_argument("--serve", choices=sorted(LOADERS), help=argparse.SUPPRESS)
    made.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    arguments = made.parse_args()
    if arguments.serve:
        serve(LOADERS[arguments.serve], arguments.model, arguments.threads)
        return 0
    with tempfile.TemporaryDirectory(prefix="pinnace-embed-") as name:
        return measure(arguments, Path(name))


def measure(arguments: argparse.Namespace, folder: Path) -> int:
    """Embed in turn, then compare the vectors, then print."""
    checkpoint = arguments.minilm or minilm_folder()
    bundle = export_minilm(checkpoint, folder / "bundle")
    chosen = texts(arguments.texts or (24 if arguments.quick else 300))
    (folder / "texts.json").write_text(json.dumps(chosen), "utf-8")
    quantizing = ["pinnace", "quantize", str(bundle), "--precision", "int8", "-q"]
    run_child([sys.executable, "-m", *quantizing], threads=len(affinity()))
    models = {PINNACE: bundle, INT8: bundle, TRANSFORMERS: checkpoint}
    if arguments.peers_python:
        models |= {SENTENCES: checkpoint, FASTEMBED: bundle}
    with contextlib.ExitStack() as stack:
        servers = {}
        for name, model in models.items():
            python = arguments.peers_python if name in (SENTENCES, FASTEMBED) else sys.executable
            words = ["benchmarks.embedding_throughput", "--serve", name, "--model", model]
            command = [python, "-m", *words, "--threads", str(arguments.threads)]
            servers[name] = stack.enter_context(Server(command, threads=arguments.threads))
            servers[name].ask(op="texts", path=str(folder / "texts.json"))

        def embed(name: str) -> Callable[[], float]:
            return lambda: float(servers[name].ask(op="run")["seconds"])

        rounds = arguments.rounds or (1 if arguments.quick else 5)
        seconds = interleave({name: embed(name) for name in servers}, rounds)
        for name, server in servers.items():
            server.ask(op="save", path=str(folder / f"{name}.npy"))
    measured = {
        name: {"seconds": summary(found), "texts/s": summary([len(chosen) / value for value in found])}
        for name, found in seconds.items()
    }
    figures = [Figure("texts/s, of transformers' pipeline", ratio(seconds[TRANSFORMERS], seconds[PINNACE]), 3.2, True)]
    of_int8 = ratio(seconds[TRANSFORMERS], seconds[INT8])
    figures.append(Figure("int8: texts/s, of transformers' pipeline", of_int8, 4.5, True))
    if SENTENCES in seconds:
        faster = ratio(seconds[SENTENCES], seconds[PINNACE])
        figures.append(Figure("texts/s, of sentence-transformers", faster, 1.6, True))
        of_int8 = ratio(seconds[SENTENCES], seconds[INT8])
        figures.append(Figure("int8: texts/s, of sentence-transformers", of_int8, 2.3, True))
        figures.append(Figure("texts/s, of fastembed with the same graph", ratio(seconds[FASTEMBED], seconds[PINNACE])))
    return finish(arguments, f"Embedding {len(chosen)} texts", measured, figures, compare(folder, list(servers)))


def compare(folder: Path, names: list[str]) -> dict[str, bool]:
    """Compare every candidate's vectors with those of transformers on PyTorch."""
    import numpy as np

    vectors = {name: np.load(folder / f"{name}.npy") for name in names}
    expected = vectors[TRANSFORMERS]
    found = {}
    for name in names:
        if name != TRANSFORMERS:
            off = float(np.abs(vectors[name] - expected).max())
            cosine = float((vectors[name] * expected).sum(-1).min())
            if name == INT8:
                found[f"{name}: least cosine {cosine:.4f}, at least {LEAST_COSINE}"] = cosine >= LEAST_COSINE
                continue
            words = f"{name}: {off:.1e} from transformers, at most {TOLERANCE:g}; least cosine {cosine:.7f}"
            found[words] = bool(vectors[name].shape == expected.shape and off <= TOLERANCE)
    return found


def serve(load: Callable[[Path, int], Embed], model: Path, threads: int) -> None:
    """Load, then answer requests: ``texts``, ``run`` (timed here, so that pipes do not count), ``save``."""
    embed = load(model, threads)
    chosen: list[str] = []
    vectors: Any = None
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any] = {}
        if request["op"] == "texts":
            chosen = json.loads(Path(request["path"]).read_text("utf-8"))
            if prepare := getattr(embed, "prepare", None):
                prepare(chosen)
        elif request["op"] == "run":
            start = time.perf_counter()
            vectors = embed(chosen)
            answer["seconds"] = time.perf_counter() - start
        else:
            import numpy as np

            np.save(request["path"], np.asarray(vectors, np.float32))
        print(json.dumps(answer), flush=True)


def load_pinnace(model: Path, threads: int) -> Embed:
    """Open the bundle; it pools and normalizes as the sentence-transformers folder said."""
    import pinnace

    pipe = pinnace.pipeline("feature-extraction", model, threads=threads)
    return lambda chosen: pipe(chosen, return_tensors=True)


def load_int8(model: Path, threads: int) -> Embed:
    """Open the bundle's int8 variant."""
    import pinnace

    pipe = pinnace.pipeline("feature-extraction", model, precision="int8", threads=threads)
    return lambda chosen: pipe(chosen, return_tensors=True)


class TransformersEmbed:
    """The feature-extraction pipeline in batches of 16, its token vectors averaged and normalized.

    The pipeline does not say which vectors are padding, so the lengths are counted before the clock starts, and arrays
    are asked for rather than lists: both are in its favour.
    """

    def __init__(self, model: Path, threads: int) -> None:
        import torch
        from transformers import AutoTokenizer, pipeline

        torch.set_num_threads(threads)
        self.torch = torch
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        options: dict[str, Any] = {"device": "cpu", "dtype": torch.float32, "batch_size": 16}
        self.pipe = pipeline("feature-extraction", model=str(model), tokenizer=self.tokenizer, **options)
        self.lengths: list[int] = []

    def prepare(self, chosen: list[str]) -> None:
        """Count the tokens of each text."""
        self.lengths = [len(row) for row in self.tokenizer(chosen, truncation=True, max_length=CUT)["input_ids"]]

    def __call__(self, chosen: list[str]) -> Any:
        rows = self.pipe(chosen, return_tensors=True, tokenize_kwargs={"truncation": True, "max_length": CUT})
        pooled = [row[0, :length].mean(0) for row, length in zip(rows, self.lengths, strict=True)]
        return self.torch.nn.functional.normalize(self.torch.stack(pooled), dim=-1)


def load_sentences(model: Path, threads: int) -> Embed:
    """Open with sentence-transformers, which sorts by length, in batches of 32."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(threads)
    peer = SentenceTransformer(str(model), device="cpu")
    return lambda chosen: peer.encode(chosen, batch_size=32, show_progress_bar=False)


def load_fastembed(model: Path, threads: int) -> Embed:
    """Open Pinnace's graph with fastembed, in batches of 32."""
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    name = "pinnace/minilm"
    TextEmbedding.add_custom_model(
        model=name, pooling=PoolingType.MEAN, normalization=True, sources=ModelSource(hf=name), dim=384,
        model_file="model.onnx",
    )  # fmt: skip
    peer = TextEmbedding(name, specific_model_path=str(model), threads=threads)
    return lambda chosen: list(peer.embed(chosen, batch_size=32))


LOADERS: Final[dict[str, Callable[[Path, int], Embed]]] = {
    PINNACE: load_pinnace,
    INT8: load_int8,
    TRANSFORMERS: TransformersEmbed,
    SENTENCES: load_sentences,
    FASTEMBED: load_fastembed,
}

if __name__ == "__main__":
    sys.exit(main())
