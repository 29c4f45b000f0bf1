"""How long from the start of a process to its first answer, and what does ``import pinnace`` cost?

Every candidate is a fresh process that embeds one sentence with all-MiniLM-L6-v2; the clock is outside.
"""

from __future__ import annotations

import argparse
import compileall
import json
import math
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from benchmarks.common import (
    ROOT,
    Figure,
    Run,
    export_minilm,
    finish,
    interleave,
    minilm_folder,
    parser,
    ratio,
    run_child,
    summary,
)

TEXT: Final = "A light wind carried the small boat past the harbour wall."
TOLERANCE: Final = 1e-5
MB: Final = 1e6
COMMAND, LIBRARY, FIRST = "pinnace run", "pinnace.pipeline", "pinnace.pipeline, files hashed"
BARE, TRANSFORMERS, SENTENCES = "onnxruntime + tokenizers by hand", "transformers", "sentence-transformers"
# The time of an import is taken inside the process, after numpy, which every user of onnxruntime has already paid for.
IMPORT: Final = "import time, numpy; start = time.perf_counter(); import pinnace{}; print(time.perf_counter() - start)"


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--minilm", type=Path, help="folder of all-MiniLM-L6-v2 (default: the installed package's)")
    made.add_argument("--child", choices=sorted(ANSWERS), help=argparse.SUPPRESS)
    made.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    arguments = made.parse_args()
    if arguments.child:
        vector = ANSWERS[arguments.child](arguments.model, arguments.threads)
        print(json.dumps([float(value) for value in vector]))
        return 0
    with tempfile.TemporaryDirectory(prefix="pinnace-start-") as name:
        return measure(arguments, Path(name))


def compile_package() -> None:
    """Write the bytecode of Pinnace, as pip does when it installs: where a clone has none, each start would make it."""
    package = ROOT / "pinnace"
    for folder in (package, *(part for part in package.iterdir() if part.is_dir())):
        compileall.compile_dir(folder.resolve(), quiet=1)


def measure(arguments: argparse.Namespace, folder: Path) -> int:
    """Start every candidate in turn, then compare the answers, then print."""
    compile_package()
    checkpoint = arguments.minilm or minilm_folder()
    bundle = export_minilm(checkpoint, folder / "bundle")
    turns = iter(range(10_000))

    def answer(name: str, model: Path, python: Path | str = sys.executable) -> Callable[[], Run]:
        words: list[str | Path] = [
            "benchmarks.cold_start",
            "--child",
            name,
            "--model",
            model,
            "--threads",
            str(arguments.threads),
        ]
        return lambda: run_child([python, "-m", *words], threads=arguments.threads, XDG_CACHE_HOME=str(folder))

    def first() -> Run:
        # An empty cache folder holds no verdict on the bundle, so that every file is hashed.
        words: list[str | Path] = [
            "benchmarks.cold_start",
            "--child",
            LIBRARY,
            "--model",
            bundle,
            "--threads",
            str(arguments.threads),
        ]
        empty = str(folder / f"cache-{next(turns)}")
        return run_child([sys.executable, "-m", *words], threads=arguments.threads, XDG_CACHE_HOME=empty)

    def command() -> Run:
        words: list[str | Path] = ["pinnace", "run", bundle, TEXT, "-q"]
        return run_child([sys.executable, "-m", *words], threads=arguments.threads, XDG_CACHE_HOME=str(folder))

    candidates = {
        COMMAND: command,
        LIBRARY: answer(LIBRARY, bundle),
        FIRST: first,
        BARE: answer(BARE, bundle),
        TRANSFORMERS: answer(TRANSFORMERS, checkpoint),
    }
    if arguments.peers_python:
        candidates[SENTENCES] = answer(SENTENCES, checkpoint, arguments.peers_python)
    rounds = arguments.rounds or (1 if arguments.quick else 5)
    runs = interleave(candidates, rounds)
    walls = {name: [run.wall for run in found] for name, found in runs.items()}
    measured: dict[str, dict[str, Any]] = {
        name: {"wall, s": summary(walls[name]), "peak memory, MB": summary([run.peak / MB for run in found])}
        for name, found in runs.items()
    }
    count = 3 if arguments.quick else 21
    lazy, facade = import_times("", count), import_times("; pinnace.pipeline; pinnace.load", count)
    measured["import pinnace"] = {"milliseconds": summary(lazy)}
    measured["import pinnace, pipelines and onnxruntime"] = {"milliseconds": summary(facade)}
    figures = [
        Figure("pinnace run, of transformers'", ratio(walls[COMMAND], walls[TRANSFORMERS]), 0.1),
        Figure("pinnace.pipeline, of transformers'", ratio(walls[LIBRARY], walls[TRANSFORMERS]), 0.1),
        Figure("the same, files hashed", ratio(walls[FIRST], walls[TRANSFORMERS])),
        Figure("pinnace.pipeline, of onnxruntime + tokenizers by hand", ratio(walls[LIBRARY], walls[BARE]), 1.3),
        Figure("pinnace run, of onnxruntime + tokenizers by hand", ratio(walls[COMMAND], walls[BARE]), 1.3),
        Figure("import pinnace beyond numpy's", statistics.median(lazy), 50, unit="ms"),
    ]
    answers = {name: json.loads(found[-1].output) for name, found in runs.items()}
    return finish(arguments, "Process start to first answer", measured, figures, compare(answers))


def import_times(more: str, count: int) -> list[float]:
    """Milliseconds of ``import pinnace`` in so many fresh processes, one before them not counted."""
    runs = [run_child([sys.executable, "-c", IMPORT.format(more)]) for _ in range(count + 1)]
    return [1000 * float(run.output) for run in runs[1:]]


def compare(answers: dict[str, list[float]]) -> dict[str, bool]:
    """Compare every vector with that of transformers on PyTorch."""
    expected = answers[TRANSFORMERS]
    found = {}
    for name, vector in answers.items():
        if name != TRANSFORMERS:
            off = max(abs(one - other) for one, other in zip(vector, expected, strict=True))
            found[f"{name}: {off:.1e} from transformers, at most {TOLERANCE:g}"] = off <= TOLERANCE
    return found


def with_pinnace(model: Path, threads: int) -> Any:
    """Answer by a pipeline."""
    import pinnace

    return pinnace.pipeline("feature-extraction", model, threads=threads)(TEXT)


def by_hand(model: Path, threads: int) -> Any:
    """Answer with the least that can: no checks, the graph and the tokenizer, and pooling in numpy."""
    import numpy as np
    import onnxruntime
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_padding()
    row = tokenizer.encode(TEXT)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(model / "model.onnx"), options, providers=["CPUExecutionProvider"])
    known = {"input_ids": row.ids, "attention_mask": row.attention_mask, "token_type_ids": row.type_ids}
    inputs = {i.name: np.asarray([known[i.name]], np.int64) for i in session.get_inputs()}
    vector = session.run(["last_hidden_state"], inputs)[0][0].mean(0)
    return vector / np.linalg.norm(vector)


def with_transformers(model: Path, threads: int) -> Any:
    """Answer by the feature-extraction pipeline, averaged and normalized."""
    import torch
    from transformers import pipeline

    torch.set_num_threads(threads)
    pipe: Any = pipeline("feature-extraction", model=str(model), device="cpu")
    vector = torch.tensor(pipe(TEXT)[0]).mean(0).tolist()
    length = math.sqrt(sum(value * value for value in vector))
    return [value / length for value in vector]


def with_sentences(model: Path, threads: int) -> Any:
    """Answer with sentence-transformers."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(threads)
    return SentenceTransformer(str(model), device="cpu").encode(TEXT, show_progress_bar=False)


ANSWERS: Final[dict[str, Callable[[Path, int], Any]]] = {
    LIBRARY: with_pinnace,
    BARE: by_hand,
    TRANSFORMERS: with_transformers,
    SENTENCES: with_sentences,
}

if __name__ == "__main__":
    sys.exit(main())
