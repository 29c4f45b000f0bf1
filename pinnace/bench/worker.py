"""``python -m pinnace.bench.worker PROGRAM OPTIONS``: one measured program in a process of its own.

Only the standard library is imported before the program's own file, so that peers' environments can run it.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from pinnace.bench.jobs import IDS, PROMPT, TEXTS
from pinnace.bench.loop import serve
from pinnace.errors import PinnaceError

# Begins the line of JSON that a worker ends with where an error of Pinnace ended it.
REPORT: Final = "pinnace-error "
# Program -> where it is opened.
PROGRAMS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "pinnace": "pinnace.bench.own:open_own",
        "limits": "pinnace.bench.limits:Limits",
        "transformers": "pinnace.bench.peers.pytorch:open_transformers",
        "sentence-transformers": "pinnace.bench.peers.pytorch:SentenceTransformers",
        "optimum": "pinnace.bench.peers.pytorch:open_optimum",
        "fastembed": "pinnace.bench.peers.graphs:FastEmbed",
        "openvino": "pinnace.bench.peers.graphs:OpenVino",
        "onnxruntime": "pinnace.bench.peers.graphs:BareOnnxRuntime",
        "onnxruntime-genai": "pinnace.bench.peers.decoders:GenAI",
        "llama.cpp": "pinnace.bench.peers.decoders:LlamaCpp",
    }
)
# Peer -> the kinds of jobs that it can do.
PEERS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "transformers": (IDS, TEXTS, PROMPT),
        "sentence-transformers": (TEXTS,),
        "optimum": (IDS, TEXTS, PROMPT),
        "fastembed": (TEXTS,),
        "openvino": (IDS,),
        "onnxruntime": (IDS,),
        "onnxruntime-genai": (PROMPT,),
        "llama.cpp": (PROMPT,),
    }
)


def main(argv: list[str]) -> int:
    """Serve a program; with a job as a third word, answer its first query and end, for a cold start.

    An error of Pinnace is reported on standard error for `pinnace.bench.children`, behind its traceback.
    """
    try:
        _work(argv)
    except PinnaceError as error:
        sys.excepthook(type(error), error, error.__traceback__)
        said = {"kind": type(error).__name__, "text": str(error), "exit_code": error.exit_code}
        print(f"{REPORT}{json.dumps(said)}", file=sys.stderr)
        return error.exit_code
    return 0


def _work(argv: list[str]) -> None:
    name, options = argv[0], json.loads(argv[1])

    def load() -> Any:
        module, _, inside = PROGRAMS[name].partition(":")
        start = time.perf_counter()
        opener = getattr(importlib.import_module(module), inside)
        imported = time.perf_counter() - start
        program = opener(options)
        # A program that imports its libraries only as it opens says itself how long that took.
        program.import_s = getattr(program, "import_s", imported)
        return program

    if len(argv) > 2:
        program = load()
        program.prepare(json.loads(argv[2])).ask(0, lambda: None)
    else:
        serve(load)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
