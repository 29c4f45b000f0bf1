"""The programs that the benchmarks of decoding measure, each as a server that loads once and answers requests."""

from __future__ import annotations

import argparse
import itertools
import json
import math
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from benchmarks import llama_decoder
from pinnace.bench.jobs import random_ids

BATCH: Final = (4, 8, 12, 16, 24, 32, 48, 64)  # lengths of the prompts that run together
ORT, ONNX, TRANSFORMERS, GENAI = "pinnace, ort", "pinnace, onnx", "transformers", "ONNX Runtime GenAI (Qwen3)"
LLAMA, TOY, MEMORY = "llama.cpp", "toy", "memory"
ATTENTION: Final = "GroupQueryAttention"  # of the graphs of the target ort
READS: Final = 4
Seen = Callable[[int], None]


def main() -> int:
    made = argparse.ArgumentParser(description="A server of `benchmarks.decoding`; run that.")
    made.add_argument("name")
    made.add_argument("--model", type=Path)
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--shape", help="build GenAI's model of this shape, and end")
    made.add_argument("--bundle", type=Path, help="build llama.cpp's file of this bundle's weights, and end")
    made.add_argument("--precision", default="fp32")
    made.add_argument("--device", default="cpu")
    arguments = made.parse_args()
    if arguments.shape:
        build_genai(json.loads(arguments.shape), arguments.model, arguments.precision)
    elif arguments.bundle:
        llama_decoder.build(arguments.bundle, arguments.model, arguments.precision)
    elif arguments.name in (ORT, ONNX, TRANSFORMERS):
        load = LOADERS[arguments.name]
        serve(load(arguments.model, arguments.threads, arguments.precision, arguments.device))
    else:
        serve(LOADERS[arguments.name](arguments.model, arguments.threads))
    return 0


def serve(candidate: Any) -> None:
    """Answer requests; the clock runs here, so that pipes do not count."""
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        operation = request.pop("op")
        if operation == "peak":
            unit = 1 if sys.platform == "darwin" else 1024
            answer: dict[str, Any] = {"bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
        elif operation == "run":
            answer = timed(candidate, **request)
        else:
            answer = getattr(candidate, operation)(**request)
        print(json.dumps(answer), flush=True)


def timed(candidate: Any, prompt: int, steps: int) -> dict[str, Any]:
    """Time a prompt up to its first token, and the tokens behind it, in the program's own loop."""
    tokens, times = [], []

    def seen(token: int) -> None:
        times.append(time.perf_counter())
        tokens.append(token)

    ids = random_ids(prompt, candidate.vocabulary, 0)
    start = time.perf_counter()
    candidate.generate(ids, steps + 1, seen)
    if len(tokens) != steps + 1:
        raise SystemExit(f"{steps + 1} tokens were asked for, {len(tokens)} came")
    return {"first": times[0] - start, "rest": times[-1] - times[0], "tokens": tokens}


class Pinnace:
    """The bundle's generator, greedy; no token ends a row."""

    def __init__(self, model: Path, threads: int, precision: str = "fp32", device: str = "cpu") -> None:
        import pinnace
        from pinnace.runtime.generation.generator import Generator

        self.session = pinnace.load(model, precision=precision, device=device, threads=threads)
        self.generator = Generator(self.session)
        self.vocabulary = self.generator.decoder.vocabulary
        self.options: dict[str, Any] = {"eos_token_id": ()}

    def generate(self, ids: list[int], count: int, seen: Seen) -> None:
        """Tell each new token as it comes."""
        for token in self.generator.stream([ids], max_new_tokens=count, **self.options):
            if token.id is not None:
                seen(token.id)

    def batch(self, rows: int, steps: int) -> dict[str, float]:
        """Time the prompts of `BATCH`, so many rows at once."""
        prompts = [random_ids(size, self.vocabulary, size) for size in BATCH]
        start = time.perf_counter()
        found = self.generator.generate(prompts, max_new_tokens=steps, batch_size=rows, **self.options)
        seconds = time.perf_counter() - start
        if any(len(row.ids) != steps for results in found for row in results):
            raise SystemExit(f"{steps} tokens a row were asked for, and a row has fewer")
        return {"seconds": seconds}

    def logits(self, prompt: int) -> dict[str, list[float]]:
        """Give the logits behind a prompt."""
        import numpy as np

        from pinnace.runtime.engine.cancellation import RunLimit

        with RunLimit(None, None, None) as limit:
            _, found = self.generator.decoder.prompt([np.array(random_ids(prompt, self.vocabulary, 0))], limit)
        return {"logits": found[0].tolist()}

    def attention(self, prompt: int, steps: int) -> dict[str, float]:
        """Give the seconds that a step takes in a graph whose nodes are timed, and those of its attention: medians."""
        from pinnace.bench.profile.events import read_runs
        from pinnace.bench.profile.work import ProfiledSession
        from pinnace.runtime.generation.generator import Generator

        given = self.session
        with tempfile.TemporaryDirectory() as folder:
            session = ProfiledSession(given.bundle, given.precision, given.threads, Path(folder), keep_graph=False)
            Generator(session).generate(
                [random_ids(prompt, self.vocabulary, 0)], max_new_tokens=steps + 1, **self.options
            )
            runs = read_runs(session.native.end_profiling())[-steps:]
        attention = [sum(node.seconds for node in run.nodes if node.op_type == ATTENTION) for run in runs]
        return {"step": statistics.median(run.seconds for run in runs), "attention": statistics.median(attention)}

    def placement(self) -> dict[str, list[str]]:
        """Give the kinds of nodes that each provider runs; a node's kind is the last part of its name."""
        found = self.session.placement()
        return {name: sorted({node.rpartition("/")[2].partition("_")[0] for node in found[name]}) for name in found}


class Toy(Pinnace):
    """The generator's loop beside bare runs of the same graph on the same buffers."""

    def overhead(self, steps: int) -> dict[str, float]:
        """Give a token's time in the loop and in bare runs: medians over the tokens."""
        times: list[float] = []
        self.generate(random_ids(1, self.vocabulary, 0), steps + 1, lambda _token: times.append(time.perf_counter()))
        looped = [after - before for before, after in itertools.pairwise(times)]
        return {"loop": statistics.median(looped), "native": statistics.median(self._native(steps))}

    def _native(self, steps: int) -> list[float]:
        import numpy as np

        decoder = self.generator.decoder
        native, spec = decoder.session.native, decoder.spec
        capacity = math.ceil((steps + 2) / 256) * 256
        cache = [np.zeros((1, spec.heads, capacity, spec.head_size), np.float32) for _ in range(2 * spec.layers)]
        feeds = {name: np.zeros((1, 1), np.int64) for name in ("input_ids", "position_ids")}
        feeds["attention_mask"] = np.zeros((1, capacity), np.int64)
        logits = np.empty((1, 1, self.vocabulary), np.float32)
        binding = native.io_binding()
        for name, feed in feeds.items():
            binding.bind_input(name, "cpu", 0, np.int64, feed.shape, feed.ctypes.data)
        binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        for place, array in enumerate(cache):
            name = f"{place // 2}.{('key', 'value')[place % 2]}"
            binding.bind_input(f"past_key_values.{name}", "cpu", 0, np.float32, array.shape, array.ctypes.data)
            binding.bind_output(f"present.{name}", "cpu", 0, np.float32, array.shape, array.ctypes.data)
        found = []
        for step in range(steps):
            feeds["attention_mask"][0, step] = 1
            feeds["position_ids"][0, 0] = step
            start = time.perf_counter()
            native.run_with_iobinding(binding)
            found.append(time.perf_counter() - start)
        return found


class Transformers:
    """AutoModelForCausalLM on PyTorch, greedy, with its own cache."""

    def __init__(self, model: Path, threads: int, precision: str = "fp32", device: str = "cpu") -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(threads)
        self.torch, self.device = torch, device
        dtype = {"fp32": torch.float32, "fp16": torch.float16}[precision]
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval().to(device)
        self.model.generation_config.eos_token_id = None
        self.vocabulary = int(self.model.config.vocab_size)

    def generate(self, ids: list[int], count: int, seen: Seen) -> None:
        """Generate with a streamer, which is told the prompt first and then each token."""
        told: list[int] = []

        class Streamer:
            def put(self, value: Any) -> None:
                told.append(len(told))
                if len(told) > 1:
                    seen(int(value[0]))

            def end(self) -> None:
                """Nothing is held back."""

        given = self.torch.tensor([ids], device=self.device)
        with self.torch.inference_mode():
            self.model.generate(
                given, attention_mask=self.torch.ones_like(given), max_new_tokens=count, do_sample=False,
                streamer=Streamer(), pad_token_id=0,
            )  # fmt: skip

    def logits(self, prompt: int) -> dict[str, list[float]]:
        """Give the logits behind a prompt."""
        with self.torch.inference_mode():
            given = self.torch.tensor([random_ids(prompt, self.vocabulary, 0)], device=self.device)
            found = self.model(given).logits
        return {"logits": found[0, -1].tolist()}


class GenAI:
    """ONNX Runtime GenAI, greedy, on the model that its own builder made."""

    def __init__(self, model: Path, threads: int) -> None:
        import onnxruntime_genai

        self.og = onnxruntime_genai
        path = model / "onnx" / "genai_config.json"
        config = json.loads(path.read_text("utf-8"))
        config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = threads
        path.write_text(json.dumps(config), "utf-8")
        self.model = self.og.Model(str(path.parent))
        self.vocabulary = int(config["model"]["vocab_size"])

    def generate(self, ids: list[int], count: int, seen: Seen) -> None:
        """Tell each new token as it comes."""
        params = self.og.GeneratorParams(self.model)
        length = len(ids) + count
        params.set_search_options(max_length=length, min_length=length, do_sample=False)
        generator = self.og.Generator(self.model, params)
        generator.append_tokens(ids)
        for _ in range(count):
            generator.generate_next_token()
            seen(int(generator.get_next_tokens()[0]))


def build_genai(shape: dict[str, int], folder: Path, precision: str) -> None:
    """Write a Qwen3 of as many weights, gated where Apertus is not, and let GenAI's builder make its graph."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    heads = shape["num_attention_heads"]
    gated = {"intermediate_size": shape["intermediate_size"] * 2 // 3 // 16 * 16}
    config = Qwen3Config(
        **{**shape, **gated}, head_dim=shape["hidden_size"] // heads, tie_word_embeddings=False,
        bos_token_id=1, eos_token_id=2, pad_token_id=3,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(folder / "hf")
    words = {f"w{number}": number for number in range(shape["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))  # noqa: S106 - a token of text
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder / "hf")
    flags = ["-i", folder / "hf", "-o", folder / "onnx", "-p", precision, "-e", "cpu", "-c", folder / "cache"]
    subprocess.run([sys.executable, "-m", "onnxruntime_genai.models.builder", *map(str, flags)], check=True)


class Memory:
    """How fast one thread reads memory that no cache holds."""

    def __init__(self, _model: Path, _threads: int) -> None:
        self._array: Any = None

    def speed(self, size: int) -> dict[str, float]:
        """Give bytes a second: the better of a sum and of a matrix with a vector, as a decoder's step reads weights.

        Of several reads the mean counts, as the mean of many steps does: the best would be another moment's.
        """
        import numpy as np

        width = 1024
        if self._array is None:
            self._array = np.ones((size // 4 // width, width), np.float32)
            self._vector = np.ones(width, np.float32)
        best = 0.0
        for read in (np.sum, lambda array: array @ self._vector):
            start = time.perf_counter()
            for _ in range(READS):
                read(self._array)
            best = max(best, READS * self._array.nbytes / (time.perf_counter() - start))
        return {"speed": best}


LOADERS: Final[dict[str, Callable[..., Any]]] = {
    ORT: Pinnace, ONNX: Pinnace, TOY: Toy, TRANSFORMERS: Transformers, GENAI: GenAI, MEMORY: Memory,
    LLAMA: llama_decoder.Llama,
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
