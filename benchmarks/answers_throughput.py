"""How fast are entities and long documents' questions answered beside transformers' own pipelines on the same weights?

The trained models of tests/data: entities of 300 texts, and questions on passages of 3,400 characters, which are cut
into overlapping windows. The peer is the last transformers that has a question-answering pipeline. Both programs must
multiply the same matrices, padding apart: how near each comes to sgemm's rate says how much there is to win at all.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks.common import ROOT, Figure, Server, affinity, finish, interleave, parser, ratio, run_child, summary

DATA: Final = ROOT / "tests" / "data"
PINNACE, INT8, TRANSFORMERS = "pinnace", "pinnace int8", "transformers"
PEER_BATCH: Final = 16  # the pipeline's own is 1, which is slower
SGEMM: Final = "sgemm"
WINDOW, STRIDE = 384, 128  # tokens, both pipelines' own for questions
# How many of int8's answers must be transformers': enough to show that it does the same job. What is lost where the
# model is unsure, `pinnace quantize` has judged by labels before it wrote the variant.
AGREE: Final = 0.9


@dataclasses.dataclass(frozen=True)
class Question:
    """A task, its trained model, its examples and how many of them are asked, and options of the call."""

    task: str
    model: str
    examples: str
    count: int
    options: Mapping[str, Any]

    def given(self, count: int) -> list[Any]:
        """The inputs, as both programs take them."""
        rows = json.loads((DATA / self.examples).read_text("utf-8"))[:count]
        fields = ("question", "context")
        return [{name: row[name] for name in fields} if "question" in row else row["text"] for row in rows]

    def lengths(self, given: list[Any], bundle: Path) -> list[int]:
        """Tokens of every text, or of every window of every passage."""
        import tokenizers

        tokenizer = tokenizers.Tokenizer.from_file(str(bundle / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        if not isinstance(given[0], dict):
            return [len(tokenizer.encode(text)) for text in given]
        tokenizer.enable_truncation(WINDOW, stride=STRIDE, strategy="only_second")
        rows = [tokenizer.encode(row["question"], row["context"]) for row in given]
        return [len(window) for row in rows for window in (row, *row.overflowing)]


QUESTIONS: Final = {
    "entities": Question("token-classification", "bert-glossary-ner", "ner_dev.json", 300,
                         {"aggregation_strategy": "simple"}),
    "long documents": Question("question-answering", "bert-glossary-qa", "qa_dev_long.json", 60,
                               {"handle_impossible_answer": True, "max_answer_len": 40}),
}  # fmt: skip


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--serve", choices=sorted([*LOADERS, SGEMM]), help=argparse.SUPPRESS)
    made.add_argument("--question", choices=sorted(QUESTIONS), help=argparse.SUPPRESS)
    made.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    arguments = made.parse_args()
    if arguments.serve == SGEMM:
        serve_sgemm(arguments.threads)
        return 0
    if arguments.serve:
        serve(LOADERS[arguments.serve](QUESTIONS[arguments.question], arguments.model, arguments.threads))
        return 0
    if arguments.peers_python is None:
        made.error("--peers-python: a Python with benchmarks/requirements-peers.txt is needed")
    with tempfile.TemporaryDirectory(prefix="pinnace-answers-") as name:
        return measure(arguments, Path(name))


def measure(arguments: argparse.Namespace, folder: Path) -> int:
    """Answer in turn, then compare the answers, then print."""
    from pinnace.bench.profile.flops import count_cost  # which a peer's environment need not be able to import

    measured: dict[str, Any] = {}
    figures, numbers = [], {}
    for title, question in QUESTIONS.items():
        bundle = folder / question.model
        pinnace = [sys.executable, "-m", "pinnace"]
        run_child([*pinnace, "export", DATA / question.model, "--task", question.task, "-o", bundle, "-q"])
        words: list[str | Path] = ["quantize", bundle, "--precision", "int8", "-q", "--data", DATA / question.examples]
        run_child([*pinnace, *words], threads=len(affinity()))
        given = question.given(8 if arguments.quick else question.count)
        (folder / "given.json").write_text(json.dumps(given), "utf-8")
        with contextlib.ExitStack() as stack:
            turns: dict[str, Callable[[], Any]] = {}
            for name in LOADERS:
                model = DATA / question.model if name == TRANSFORMERS else bundle
                server = stack.enter_context(start(arguments, name, "--question", title, "--model", model))
                turns[name] = asking(server, given=str(folder / "given.json"))
            turns[SGEMM] = asking(stack.enter_context(start(arguments, SGEMM)))
            found = interleave(turns, arguments.rounds or (1 if arguments.quick else 3))
        rates = [turn["rate"] for turn in found.pop(SGEMM)]
        measured[f"{title}: {SGEMM}"] = {"GFLOP/s": summary([rate / 1e9 for rate in rates])}
        cost = count_cost(bundle, "fp32")
        needed = sum(map(cost.flops, question.lengths(given, bundle)))
        seconds = {name: [turn["seconds"] for turn in rows] for name, rows in found.items()}
        for name, values in seconds.items():
            measured[f"{title}: {name}"] = {"answers/s": summary([len(given) / value for value in values])}
            if name != INT8:
                share = ratio([needed / value for value in values], rates)
                figures.append(Figure(f"{title}, {name}: multiplications that are needed, of sgemm's rate", share))
        for name in (PINNACE, INT8):
            speed = ratio(seconds[TRANSFORMERS], seconds[name])
            figures.append(Figure(f"{title}, {name}: answers/s, of transformers'", speed, 1, True))
            same = [a == b for a, b in zip(found[name][-1]["answers"], found[TRANSFORMERS][-1]["answers"], strict=True)]
            least = 1.0 if name == PINNACE else AGREE
            share = sum(same) / len(same)
            numbers[f"{title}, {name}: {share:.1%} of transformers' answers, at least {least:.0%}"] = share >= least
    return finish(arguments, "Entities, and questions on long documents", measured, figures, numbers)


def start(arguments: argparse.Namespace, name: str, *more: str | Path) -> Server:
    """Start a candidate."""
    python = arguments.peers_python if name == TRANSFORMERS else sys.executable
    words = [python, "-m", "benchmarks.answers_throughput", "--serve", name, "--threads", str(arguments.threads)]
    return Server([*words, *more], threads=arguments.threads)


def asking(server: Server, **request: str) -> Callable[[], dict[str, Any]]:
    """Ask once for all answers, or for the rate of the machine."""
    return lambda: server.ask(op="run", **request)


def serve(answer: Callable[[list[Any]], list[Any]]) -> None:
    """Answer requests; the clock runs here, so that pipes do not count."""
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        given = json.loads(Path(json.loads(line)["given"]).read_text("utf-8"))
        start = time.perf_counter()
        found = answer(given)
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds, "answers": [places(one) for one in found]}), flush=True)


def serve_sgemm(threads: int) -> None:
    """Measure sgemm whenever it is asked for: FLOP a second, those of the shape that is multiplied the fastest."""
    from pinnace.bench.limits import SHAPES, gemm

    products = {shape: gemm(*shape, threads) for shape in SHAPES}
    print(json.dumps({"ready": True}), flush=True)
    for _line in sys.stdin:
        rate = max(2 * math.prod(shape) / least_seconds(multiply) for shape, multiply in products.items())
        print(json.dumps({"rate": rate}), flush=True)


def least_seconds(work: Callable[[], Any], count: int = 10) -> float:
    """The shortest of so many runs: a limit is what can be reached."""
    found = []
    for _ in range(count):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return min(found)


def places(answer: Any) -> list[list[Any]]:
    """What an answer says and where, without its scores."""
    rows = answer if isinstance(answer, list) else [answer]
    return [[row["start"], row["end"], row.get("entity_group", row.get("answer"))] for row in rows]


def load_pinnace(question: Question, model: Path, threads: int, precision: str = "fp32") -> Callable[[Any], Any]:
    """Open the bundle."""
    import pinnace

    pipe = pinnace.pipeline(question.task, model, precision=precision, threads=threads)
    return lambda given: pipe(given, **question.options)


def load_int8(question: Question, model: Path, threads: int) -> Callable[[Any], Any]:
    """Open the bundle's int8 variant."""
    return load_pinnace(question, model, threads, "int8")


def load_transformers(question: Question, model: Path, threads: int) -> Callable[[Any], Any]:
    """Open the checkpoint with transformers' pipeline, in fp32."""
    import torch
    from transformers import pipeline

    torch.set_num_threads(threads)
    pipe = pipeline(question.task, model=str(model), device="cpu", dtype=torch.float32, batch_size=PEER_BATCH)
    return lambda given: pipe(given, **question.options)


LOADERS: Final[dict[str, Callable[[Question, Path, int], Callable[[Any], Any]]]] = {
    PINNACE: load_pinnace, INT8: load_int8, TRANSFORMERS: load_transformers,
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
