"""Generate from a bundle, unchanged, with ONNX Runtime GenAI, and compare with transformers' recorded greedy tokens.

It runs in an environment of its own, without Pinnace (docs/interop.md has the lines)::

    python tests/interop_genai.py BUNDLE [BUNDLE ...]

The bundles are exports of ``tests/data/apertus-glossary``. Exit code 1: a token or a text differs.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime_genai

RECORDED: Final = Path(__file__).resolve().parent / "data" / "lm_greedy.transformers.json"
PAD: Final = 3


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


def check(bundle: Path) -> list[str]:
    """Prompts of which something differs, and what."""
    recorded = json.loads(RECORDED.read_text("utf-8"))
    model = onnxruntime_genai.Model(str(bundle))
    tokenizer = onnxruntime_genai.Tokenizer(model)
    tokenizer.update_options(add_special_tokens="true")
    prompts = [[int(token) for token in tokenizer.encode(prompt)] for prompt in recorded]
    # GenAI does not give the end token that ended a row.
    wanted = [[token for token in found["ids"] if token != 2] for found in recorded.values()]
    # Padding counts, and a row that ends early leaves the others running.
    limit = max(map(len, prompts)) + max(map(len, wanted))
    together = generate(model, prompts, limit)
    tokenizer.update_options(skip_special_tokens="true")
    wrong = []
    for (prompt, found), row, want, beside in zip(recorded.items(), prompts, wanted, together, strict=True):
        alone = generate(model, [row], len(found["ids"]))[0]
        text = tokenizer.decode(np.array(alone, np.int32))
        wrong += [f"{prompt}: tokens {alone}, transformers {want}"] if alone != want else []
        wrong += [f"{prompt}: in a batch {beside}"] if beside[: len(want)] != want else []
        wrong += [f"{prompt}: text {text!r}"] if text != found["text"] else []
    return wrong


def main(bundles: list[str]) -> int:
    if not bundles:
        print((__doc__ or "").strip(), file=sys.stderr)
        return 2
    print(f"onnxruntime-genai {importlib.metadata.version('onnxruntime-genai')}")
    failed = 0
    for bundle in bundles:
        wrong = check(Path(bundle))
        failed += bool(wrong)
        print(f"{bundle}: {'; '.join(wrong) or 'every token and text is that of transformers, alone and in a batch'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
