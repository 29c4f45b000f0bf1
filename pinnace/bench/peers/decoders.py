"""Peers that generate, each in its own environment: ONNX Runtime GenAI and llama.cpp.

Only the standard library is imported before a class is opened.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pinnace.bench.jobs import rows_of
from pinnace.bench.loop import Prepared, Seen

GENAI_CONFIG: Final = "genai_config.json"


class _Prompts:
    """A program that writes so many tokens behind a prompt, one row at a time."""

    def prepare(self, job: Mapping[str, Any]) -> Prepared:
        """Read the prompt."""
        if job["batch"] != 1:
            raise SystemExit(f"one prompt at a time is measured here, got a batch of {job['batch']}")
        ids, count = rows_of(job)[0], int(job["output"])
        return Prepared(
            [(1, len(ids))],
            lambda _index, seen: self._generate(ids, count, seen),
            lambda: [self._generate(ids, count, lambda: None)],
        )

    def _generate(self, ids: list[int], count: int, seen: Seen) -> list[int]:
        raise NotImplementedError


class GenAI(_Prompts):
    """ONNX Runtime GenAI on a folder with ``genai_config.json``, as a decoder's bundle has one.

    Args:
        options: ``model``, ``threads``.
    """

    distribution = "onnxruntime-genai"

    def __init__(self, options: Mapping[str, Any]) -> None:
        start = time.perf_counter()
        import onnxruntime_genai

        self.import_s = time.perf_counter() - start
        self._genai = onnxruntime_genai
        self._model = onnxruntime_genai.Model(str(_with_threads(Path(options["model"]), options["threads"])))

    def _generate(self, ids: list[int], count: int, seen: Seen) -> list[int]:
        params = self._genai.GeneratorParams(self._model)
        length = len(ids) + count
        params.set_search_options(max_length=length, min_length=length, do_sample=False)
        generator = self._genai.Generator(self._model, params)
        generator.append_tokens(ids)
        found = []
        for _ in range(count):
            generator.generate_next_token()
            found.append(int(generator.get_next_tokens()[0]))
            seen()
        return found


def _with_threads(model: Path, threads: int) -> Path:
    """A folder of links to the model's files, with the number of threads in a configuration of its own."""
    if not (model / GENAI_CONFIG).exists():
        raise SystemExit(f"{model.name} has no {GENAI_CONFIG}; give --peer-model onnxruntime-genai=FOLDER")
    folder = Path(tempfile.mkdtemp(prefix="pinnace-genai-", dir=Path.cwd()))
    for path in model.iterdir():
        if path.name != GENAI_CONFIG and path.is_file():
            # Links with a name of their own: a bundle whose files have two hard links is refused as unsafe.
            (folder / path.name).symlink_to(path)
    config = json.loads((model / GENAI_CONFIG).read_text("utf-8"))
    config["model"]["decoder"].setdefault("session_options", {})["intra_op_num_threads"] = threads
    (folder / GENAI_CONFIG).write_text(json.dumps(config), "utf-8")
    return folder


class LlamaCpp(_Prompts):
    """llama.cpp through llama-cpp-python, greedy, on a GGUF file.

    Args:
        options: ``model`` (the file), ``threads``, ``length``.
    """

    distribution = "llama-cpp-python"

    def __init__(self, options: Mapping[str, Any]) -> None:
        start = time.perf_counter()
        import llama_cpp

        self.import_s = time.perf_counter() - start
        if Path(options["model"]).suffix != ".gguf":
            raise SystemExit("llama.cpp reads GGUF; give --peer-model llama.cpp=FILE.gguf")
        threads = options["threads"]
        self._model = llama_cpp.Llama(
            str(options["model"]), n_ctx=options["length"], n_threads=threads, n_threads_batch=threads,
            logits_all=False, verbose=False,
        )  # fmt: skip

    def _generate(self, ids: list[int], count: int, seen: Seen) -> list[int]:
        self._model.reset()
        found: list[int] = []
        for token in self._model.generate(ids, temp=0.0, repeat_penalty=1.0, reset=True):
            found.append(int(token))
            seen()
            if len(found) == count:
                break
        return found
