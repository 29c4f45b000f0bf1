"""How many more tokens/s does prompt lookup write where an answer repeats its prompt, and what does it cost elsewhere?

Two models on one thread, fp32, greedy. *Copier*: the shape of `decoding` (166 million weights), random but for its
first and last table, which are made by hand: each token's successor is fixed, so that one prompt is repeated word for
word, one is continued with tokens that never stood there before, and one, whose pairs are forbidden to come twice,
makes every guess wrong. *Glossary*: the small trained Apertus of the tests, which writes entry after entry.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks.common import ROOT, Figure, Server, affinity, finish, interleave, parser, ratio, run_child, summary
from benchmarks.decoders import serve
from benchmarks.decoding import QUICK_SHAPE, SHAPE

COPIER, GLOSSARY, LAST = "copier", "glossary", "copier, last logits only"
TRAINED: Final = ROOT / "tests" / "data" / "apertus-glossary"
DRAFTS: Final = (4, 8)  # prompt_lookup_num_tokens
PROMPT: Final = 128
FIRST, RING = 8, 64  # ids of the tokens that follow each other in a small ring; all behind them form a large one
LOUD: Final = 10.0  # how much louder the copier's embeddings are than what its layers add to them
# The model was trained on entries one after another, and so it goes on: many of its words stood there before.
TEXTS: Final = {"entries after glass": "glass (noun): a brittle", "entries after slowly": "slowly (adv):"}


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    arguments = made.parse_args()
    if arguments.serve:
        serve(Writer(arguments.serve, arguments.threads))
        return 0
    with tempfile.TemporaryDirectory(prefix="pinnace-speculation-") as name:
        return measure(arguments, Path(name))


def measure(arguments: argparse.Namespace, folder: Path) -> int:
    """Write each text with and without guesses in turn, then compare the tokens, then print."""
    shape, count = (QUICK_SHAPE, 32) if arguments.quick else (SHAPE, 128)
    rounds = arguments.rounds or (1 if arguments.quick else 5)
    following = make_copier(shape, folder / "checkpoint")
    for source, words, name in (
        (folder / "checkpoint", ["--all-logits"], COPIER),
        (folder / "checkpoint", [], LAST),
        (TRAINED, ["--all-logits"], GLOSSARY),
    ):
        export(source, words, folder / name)
    with contextlib.ExitStack() as stack:
        words = [sys.executable, "-m", "benchmarks.speculation", "--threads", str(arguments.threads), "--serve"]
        servers = {
            name: stack.enter_context(Server([*words, str(folder / name)], threads=arguments.threads))
            for name in (COPIER, LAST, GLOSSARY)
        }
        asked = requests(following, shape["vocab_size"], count)
        turns = {
            f"{what}, {guesses(drafts)}": turn(servers[name], {**request, "drafts": drafts})
            for what, (name, request) in asked.items()
            for drafts in (0, *DRAFTS)
        }
        prompts = {name: prompt_turn(servers[name], following) for name in (COPIER, LAST)}
        found, firsts = interleave(turns, rounds), interleave(prompts, rounds)
    measured: dict[str, Any] = {
        name: {
            "new tokens/s": summary([row["speed"] for row in rows]),
            "new tokens a run": len(rows[0]["tokens"]) / rows[0]["runs"],
            "guesses a run": rows[0]["guesses"] / rows[0]["runs"],
        }
        for name, rows in found.items()
    }
    figures, numbers = [], {}
    for what in asked:
        plain = found[f"{what}, {guesses(0)}"]
        for drafts in DRAFTS:
            own = found[f"{what}, {guesses(drafts)}"]
            gain = ratio([row["speed"] for row in own], [row["speed"] for row in plain])
            figures.append(Figure(f"{what}: {guesses(drafts)}, of none", gain, LIMITS[what], True))
            numbers[f"{what}, {guesses(drafts)}: the tokens that come without"] = all(
                row["tokens"] == plain[0]["tokens"] for row in (*own, *plain)
            )
    figures.append(
        Figure(f"prompt of {4 * PROMPT} with --all-logits, of one without: time", ratio(firsts[COPIER], firsts[LAST]))
    )
    return finish(arguments, "Prompt lookup", measured, figures, numbers)


def guesses(drafts: int) -> str:
    """Name a candidate."""
    return f"{drafts} guesses" if drafts else "no guesses"


REPEATED, NEW, MISLED = f"{COPIER}: repeats its prompt", f"{COPIER}: new tokens only", f"{COPIER}: every guess wrong"
LIMITS: Final[dict[str, float | None]] = {
    REPEATED: 1.0, NEW: 0.95, MISLED: 0.95, **dict.fromkeys(f"{GLOSSARY}: {text}" for text in TEXTS),
}  # fmt: skip


def requests(following: list[int], vocabulary: int, count: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """What is written: name -> the model, and what it is asked for."""
    # Of a ring's tokens only: the forbidden successor's place is taken by another one that stood in the prompt.
    within = {"no_repeat_ngram_size": 2, "suppress_tokens": [*range(FIRST), *range(FIRST + RING, vocabulary)]}
    small, large = walk(following, FIRST, PROMPT), walk(following, FIRST + RING, PROMPT)
    return {
        REPEATED: (COPIER, {"ids": small, "count": count, "options": {}}),
        NEW: (COPIER, {"ids": large, "count": count, "options": {}}),
        MISLED: (COPIER, {"ids": small, "count": count, "options": within}),
        **{f"{GLOSSARY}: {name}": (GLOSSARY, {"text": t, "count": count, "options": {}}) for name, t in TEXTS.items()},
    }


def walk(following: list[int], first: int, count: int) -> list[int]:
    """Follow the successors."""
    found = [first]
    while len(found) < count:
        found.append(following[found[-1]])
    return found


def turn(candidate: Server, request: Mapping[str, Any]) -> Callable[[], dict[str, Any]]:
    """Write one text once."""
    return lambda: candidate.ask(op="write", **request)


def prompt_turn(candidate: Server, following: list[int]) -> Callable[[], float]:
    """Time a long prompt to its first token."""
    ids = walk(following, FIRST + RING, 4 * PROMPT)
    return lambda: float(candidate.ask(op="write", ids=ids, count=1, options={}, drafts=0)["first"])


def make_copier(shape: Mapping[str, int], folder: Path) -> list[int]:
    """Write the copier's checkpoint; returns each token's successor."""
    import numpy as np

    from pinnace.safetensors_header import read_header

    config = ",".join(f"{name}={value}" for name, value in shape.items())
    words = ["--random-weights", "--config", config]
    export("apertus", words, folder)
    rng, vocabulary = np.random.default_rng(3), shape["vocab_size"]
    following = np.arange(vocabulary)
    for ring in (np.arange(FIRST, FIRST + RING), np.arange(FIRST + RING, vocabulary)):
        order = rng.permutation(ring)
        following[order] = np.roll(order, -1)
    file = folder / "model.safetensors"
    entries = read_header(file)
    loud = LOUD * rng.standard_normal((vocabulary, shape["hidden_size"]), np.float32)
    tables = {"model.embed_tokens.weight": loud, "lm_head.weight": np.empty_like(loud)}
    tables["lm_head.weight"][following] = loud / LOUD
    with file.open("r+b") as stream:
        for name, table in tables.items():
            _, _, start, _ = entries[name]
            stream.seek(start)
            stream.write(table.tobytes())
    found: list[int] = following.tolist()
    return found


def export(source: str | Path, words: list[str], output: Path) -> None:
    """Export in a process of its own."""
    every = ["pinnace", "export", source, "--task", "generate", "--no-validate", "-q", "-o", output, *words]
    run_child([sys.executable, "-m", *every], threads=len(affinity()))


class Writer:
    """A bundle's generator; no token ends a row."""

    def __init__(self, model: Path, threads: int) -> None:
        import pinnace
        from pinnace.runtime.generation import decoder
        from pinnace.runtime.generation.generator import Generator
        from pinnace.runtime.tokenization.tokenizer import load_tokenizer

        self.generator = Generator(pinnace.load(model, threads=threads))
        self.tokenizer: Any = load_tokenizer(model) if (model / "tokenizer.json").exists() else None
        self.runs = self.positions = 0
        run = decoder.Batch.run

        def counted(batch: Any, ids: Any, *given: Any) -> Any:
            self.runs += 1
            self.positions += ids.shape[1]
            return run(batch, ids, *given)

        decoder.Batch.run = counted  # type: ignore[method-assign, assignment]

    def write(
        self, count: int, drafts: int, options: dict[str, Any], ids: list[int] | None = None, text: str = ""
    ) -> dict[str, Any]:
        """Write ``count`` tokens and time all but the first."""
        if drafts:
            options = {**options, "prompt_lookup_num_tokens": drafts}
        row = self.tokenizer.encode(text) if ids is None else ids
        tokens, times = [], []
        start, self.runs, self.positions = time.perf_counter(), 0, 0
        for token in self.generator.stream([row], max_new_tokens=count, eos_token_id=(), **options):
            times.append(time.perf_counter())
            tokens.append(token.id)
        speed = (count - 1) / (times[-1] - times[0]) if count > 1 else 0.0
        guesses = self.positions - self.runs - (len(row) - 1)  # the prompt was one run
        return {"tokens": tokens, "runs": self.runs, "guesses": guesses, "speed": speed, "first": times[0] - start}


if __name__ == "__main__":
    sys.exit(main())
