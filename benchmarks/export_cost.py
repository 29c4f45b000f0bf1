"""What does exporting BERT cost in time and memory, beside transformers' own ONNX exporter and optimum-onnx?

Random BERT-base and BERT-large checkpoints are written to disk; every export is a fresh process, validation apart.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from benchmarks.common import Figure, Run, affinity, finish, interleave, parser, ratio, run_child, summary

TASK: Final = "question-answering"
HEAD: Final = "BertForQuestionAnswering"
SIZES: Final = {
    "base": {},
    "large": {
        "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
    },
}  # fmt: skip
QUICK_SIZES: Final = {
    "base": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128},
    "large": {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 256},
}
TOLERANCE: Final = 1e-4
MB: Final = 1e6
PINNACE, LARGE, TRANSFORMERS, OPTIMUM = "pinnace", "pinnace, BERT-large", "transformers", "optimum-onnx"


def main() -> int:
    made = parser(__doc__, threads=len(affinity()))
    made.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    made.add_argument("--folder", type=Path, help="where to build (default: a temporary folder); needs 8 GB")
    arguments = made.parse_args()
    if arguments.child:
        CHILDREN[arguments.child[0]](*arguments.child[1:])
        return 0
    # This process stays small and imports nothing large: a child's peak begins at what its parent held when it forked.
    with tempfile.TemporaryDirectory(prefix="pinnace-export-", dir=arguments.folder) as name:
        return measure(arguments, Path(name))


def measure(arguments: argparse.Namespace, folder: Path) -> int:
    """Export in turn, then compare the graphs' numbers, then print."""
    sizes = QUICK_SIZES if arguments.quick else SIZES
    for size, changes in sizes.items():
        child(arguments, "checkpoint", str(folder / size), json.dumps(changes))
    digests: list[dict[str, str]] = []

    def pinnace(size: str) -> Callable[[], Run]:
        output = fresh(folder / f"pinnace-{size}")

        def export() -> Run:
            fresh(output)
            words: list[str | Path] = [
                "pinnace",
                "export",
                folder / size,
                "--task",
                TASK,
                "-o",
                output,
                "--no-validate",
                "-q",
            ]
            done = run_child([sys.executable, "-m", *words], threads=arguments.threads)
            if size == "base":
                digests.append(hashes(output))
            return done

        return export

    def peer(name: str) -> Callable[[], Run]:
        return lambda: child(arguments, name, str(folder / "base"), str(fresh(folder / name)))

    candidates = {PINNACE: pinnace("base"), LARGE: pinnace("large"), TRANSFORMERS: peer(TRANSFORMERS)}
    if arguments.peers_python:
        candidates[OPTIMUM] = peer(OPTIMUM)
    rounds = arguments.rounds or (1 if arguments.quick else 3)
    runs = interleave(candidates, rounds)
    walls = {name: [run.wall for run in found] for name, found in runs.items()}
    peaks = {name: [run.peak / MB for run in found] for name, found in runs.items()}
    measured = {name: {"wall, s": summary(walls[name]), "peak memory, MB": summary(peaks[name])} for name in candidates}
    grown = max(peaks[LARGE]) - min(peaks[PINNACE])
    figures = [
        Figure("wall time, of transformers'", ratio(walls[PINNACE], walls[TRANSFORMERS]), 1 / 3),
        Figure("peak memory, of transformers'", ratio(peaks[PINNACE], peaks[TRANSFORMERS]), 0.7),
        Figure("peak memory of BERT-large above BERT-base's", grown, 100, unit="MB"),
    ]
    if OPTIMUM in candidates:
        figures[2:2] = [
            Figure("wall time, of optimum-onnx's", ratio(walls[PINNACE], walls[OPTIMUM]), 0.6),
            Figure("peak memory, of optimum-onnx's", ratio(peaks[PINNACE], peaks[OPTIMUM]), 0.25),
        ]
    graphs = {PINNACE: folder / "pinnace-base", **{n: folder / n for n in candidates if n in (TRANSFORMERS, OPTIMUM)}}
    shown = child(arguments, "compare", str(folder / "base"), *(f"{n}={path}" for n, path in graphs.items())).output
    off: dict[str, float] = json.loads(shown)
    numbers = {f"{n}: {value:.1e} from PyTorch, at most {TOLERANCE:g}": value <= TOLERANCE for n, value in off.items()}
    same = all(digest == digests[0] for digest in digests[1:])
    numbers[f"pinnace: {len(digests)} exports of one checkpoint are byte-identical"] = same
    return finish(arguments, "Cost of an export", measured, figures, numbers)


def child(arguments: argparse.Namespace, *words: str) -> Run:
    """Run one of `CHILDREN` in a process of its own."""
    python = arguments.peers_python if words[0] == OPTIMUM else sys.executable
    return run_child([python, "-m", "benchmarks.export_cost", "--child", *words], threads=arguments.threads)


def fresh(folder: Path) -> Path:
    """Remove what an earlier round left."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a folder."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            found[str(path.relative_to(folder))] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def make_checkpoint(folder: str, changes: str) -> None:
    """Write a BERT with random weights as a Hugging Face folder; the same bytes every time."""
    import torch

    from pinnace.export.weights import random_weights
    from pinnace.models.bert_heads import BertForQuestionAnswering
    from pinnace.models.configs.bert import BertConfig

    target = Path(folder)
    target.mkdir(parents=True)
    config = BertConfig(**json.loads(changes))
    config.save_pretrained(target)
    facts = json.loads((target / "config.json").read_text("utf-8"))
    (target / "config.json").write_text(json.dumps({**facts, "architectures": [HEAD]}, indent=2), "utf-8")
    with torch.device("meta"):
        state = BertForQuestionAnswering(config).state_dict()
    random_weights(target / "model.safetensors", {n: tuple(t.shape) for n, t in state.items()}, 0.02, {})


def export_transformers(source: str, output: str) -> None:
    """Export as the documentation of transformers shows, with dynamic shapes."""
    import torch
    from transformers import AutoModelForQuestionAnswering
    from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

    model = AutoModelForQuestionAnswering.from_pretrained(source).eval()
    ids = torch.randint(5, 100, (2, 16))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    OnnxExporter().export(model, inputs, config=OnnxConfig(dynamic=True)).save_pretrained(output)


def export_optimum(source: str, output: str) -> None:
    """Export with optimum-onnx, its validation left out as everyone's is."""
    from optimum.exporters.onnx import main_export

    main_export(source, output, task=TASK, do_validation=False)


def compare(source: str, *graphs: str) -> None:
    """Print each graph's largest difference from transformers' model on one padded input."""
    import numpy as np
    import torch
    from transformers import AutoModelForQuestionAnswering

    from pinnace.runtime.engine.ort import onnxruntime

    generator = np.random.default_rng(0)
    mask = np.ones((2, 24), np.int64)
    mask[1, 17:] = 0
    types = np.broadcast_to(np.arange(24) > 9, (2, 24)).astype(np.int64)
    inputs: dict[str, Any] = {"input_ids": generator.integers(5, 100, (2, 24)), "attention_mask": mask}
    inputs["token_type_ids"] = types
    model = AutoModelForQuestionAnswering.from_pretrained(source).eval()
    with torch.inference_mode():
        expected = model(**{name: torch.from_numpy(value) for name, value in inputs.items()})
    found = {}
    for named in graphs:
        name, _, path = named.partition("=")
        session = onnxruntime.InferenceSession(str(Path(path) / "model.onnx"), providers=["CPUExecutionProvider"])
        outputs = dict(zip((o.name for o in session.get_outputs()), session.run(None, inputs), strict=True))
        pairs = [(outputs[key], expected[key].numpy()) for key in ("start_logits", "end_logits")]
        found[name] = max(float(np.abs(one - other)[mask == 1].max()) for one, other in pairs)
    print(json.dumps(found))


CHILDREN: Final[dict[str, Callable[..., None]]] = {
    "checkpoint": make_checkpoint,
    TRANSFORMERS: export_transformers,
    OPTIMUM: export_optimum,
    "compare": compare,
}

if __name__ == "__main__":
    sys.exit(main())
