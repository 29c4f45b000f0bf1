"""Generate from a bundle, unchanged, with ONNX Runtime GenAI, and compare greedy tokens.

fp32 is compared with transformers' recorded tokens, every other variant with Pinnace's own tokens of that variant. It
runs in an environment of its own, without Pinnace (docs/interop.md has the lines)::

    python tests/interop_genai.py [--pinnace-python PYTHON] BUNDLE [BUNDLE ...]

The bundles are exports of ``tests/data/apertus-glossary``. Exit code 1: a token or a text differs.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime_genai

RECORDED: Final = Path(__file__).resolve().parent / "data" / "lm_greedy.transformers.json"
PAD: Final = 3
END: Final = 2
# Run by a Python that has Pinnace: greedy tokens of a variant for rows of tokens.
OURS: Final = """
import json, sys
from pinnace.runtime.generation.generator import Generator
from pinnace.runtime.engine.session import load
given = json.load(sys.stdin)
generator = Generator(load(given["bundle"], precision=given["precision"], threads=1))
found = [generator.generate([row], do_sample=False, max_new_tokens=48)[0][0] for row in given["rows"]]
print(json.dumps([row + one.ids.tolist() for row, one in zip(given["rows"], found)]))
"""


def opened(bundle: Path, graph: str) -> Any:
    """The folder with one of its graphs in place of the one that ``genai_config.json`` names."""
    config = onnxruntime_genai.Config(str(bundle))
    config.overlay(json.dumps({"model": {"decoder": {"filename": graph}}}))
    return onnxruntime_genai.Model(config)


def ours(python: Path, bundle: Path, precision: str, rows: list[list[int]]) -> list[list[int]]:
    """Prompts with Pinnace's greedy tokens of a variant behind them."""
    given = json.dumps({"bundle": str(bundle), "precision": precision, "rows": rows})
    done = subprocess.run([str(python), "-c", OURS], input=given, check=True, capture_output=True, text=True)
    found: list[list[int]] = json.loads(done.stdout)
    return found


def generate(model: Any, rows: list[list[int]], limit: int) -> list[list[int]]:
    """Greedy tokens of rows that run together, padded on the right, as GenAI wants them."""
    options = onnxruntime_genai.GeneratorParams(model)
    options.set_search_options(max_length=limit, batch_size=len(rows))
    generator = onnxruntime_genai.Generator(model, options)
    width = max(map(len, rows))
    generator.append_tokens(np.array([row + [PAD] * (width - len(row)) for row in rows], np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return [[int(token) for token in generator.get_sequence(i) if token != PAD] for i in range(len(rows))]


def check(bundle: Path, precision: str, graph: str, python: Path | None) -> list[str]:
    """Prompts of which something differs, and what."""
    recorded = json.loads(RECORDED.read_text("utf-8"))
    model = opened(bundle, graph)
    tokenizer = onnxruntime_genai.Tokenizer(model)
    tokenizer.update_options(add_special_tokens="true")
    prompts = [[int(token) for token in tokenizer.encode(prompt)] for prompt in recorded]
    if precision == "fp32":
        whole = [found["ids"] for found in recorded.values()]
    elif python is not None:
        whole = ours(python, bundle, precision, prompts)
    else:
        raise SystemExit(f"{bundle} has {precision}; give --pinnace-python to compare with")
    # GenAI does not give the end token that ended a row.
    wanted = [[token for token in ids if token != END] for ids in whole]
    # Padding counts, and a row that ends early leaves the others running.
    limit = max(map(len, prompts)) + max(map(len, wanted))
    together = generate(model, prompts, limit)
    tokenizer.update_options(skip_special_tokens="true")
    wrong = []
    texts = [found["text"] if precision == "fp32" else None for found in recorded.values()]
    for prompt, row, ids, want, beside, text in zip(recorded, prompts, whole, wanted, together, texts, strict=True):
        alone = generate(model, [row], len(ids))[0]
        wrong += [f"{prompt}: tokens {alone}, expected {want}"] if alone != want else []
        wrong += [f"{prompt}: in a batch {beside}"] if beside[: len(want)] != want else []
        if text is not None and (got := tokenizer.decode(np.array(alone, np.int32))) != text:
            wrong.append(f"{prompt}: text {got!r}")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--pinnace-python", type=Path, help="a Python with Pinnace, for variants other than fp32")
    arguments = parser.parse_args()
    print(f"onnxruntime-genai {importlib.metadata.version('onnxruntime-genai')}")
    failed = 0
    for bundle in arguments.bundles:
        variants = json.loads((bundle / "manifest.json").read_text("utf-8"))["variants"]
        for precision, variant in sorted(variants.items()):
            wrong = check(bundle, precision, variant["graph"], arguments.pinnace_python)
            failed += bool(wrong)
            whose = "transformers" if precision == "fp32" else "Pinnace"
            good = f"every token is that of {whose}, alone and in a batch"
            print(f"{bundle} {precision}: {'; '.join(wrong) or good}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
