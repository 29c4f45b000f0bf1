"""The jobs that programs are given, so that all do the same: rows of token ids, texts of a file, prompts.

Only the standard library is imported, so that peers' environments can run it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

IDS, TEXTS, PROMPT = "ids", "texts", "prompt"
_FIRST: Final = 4  # ids below are often special tokens
MOST_NUMBERS: Final = 200_000
"""Numbers of an output that are compared; a vocabulary's scores for many positions would fill a pipe for minutes."""


def random_ids(count: int, vocabulary: int, seed: int) -> list[int]:
    """Token ids of a small generator of its own, the same in every program and version of Python."""
    state, found = seed + 1, []
    for _ in range(count):
        state = (state * 1103515245 + 12345) % (1 << 31)
        found.append(_FIRST + (state >> 8) % max(1, vocabulary - _FIRST) if vocabulary > _FIRST else 0)
    return found


def rows_of(job: Mapping[str, Any]) -> list[list[int]]:
    """The rows of token ids of a job of the kind `IDS` or `PROMPT`."""
    length = job["length"] if job["kind"] == IDS else job["prompt"]
    return [random_ids(length, job["vocabulary"], job["seed"] + row) for row in range(job["batch"])]


class Texts:
    """The texts of a job, in queries of so many.

    Attributes:
        queries: lists of inputs of a pipeline: texts, or mappings of fields.
        sizes: texts and tokens of each query.
    """

    def __init__(self, job: Mapping[str, Any]) -> None:
        file = json.loads(Path(job["path"]).read_text("utf-8"))
        items, tokens = file["items"], file["tokens"]
        size = job["batch"] or len(items)
        places = [slice(first, first + size) for first in range(0, len(items), size)]
        self.queries: list[list[Any]] = [items[place] for place in places]
        self.sizes = [(len(items[place]), sum(tokens[place])) for place in places]


def write_texts(path: Path, items: Sequence[Any], tokens: Sequence[int]) -> None:
    """Write the file that `Texts` reads; programs need not count tokens, each in its own way."""
    path.write_text(json.dumps({"items": list(items), "tokens": list(tokens)}), "utf-8")


def rows_to_compare(width: int, rows: int) -> int:
    """How many vectors of so many numbers are given out to be compared."""
    return max(1, min(rows, MOST_NUMBERS // max(1, width)))


def answer_text(answer: Any) -> str:
    """What a pipeline's answer says, without its scores: two answers are the same where this is."""
    if isinstance(answer, Mapping):
        kept = [
            str(answer[key])
            for key in (
                "label",
                "labels",
                "entity",
                "entity_group",
                "answer",
                "token",
                "start",
                "end",
                "generated_text",
            )
            if key in answer
        ]
        return "|".join(kept)
    if isinstance(answer, list | tuple):
        return ";".join(answer_text(part) for part in answer)
    return str(answer)
