"""Open quantized variants in plain ONNX Runtime and in optimum-onnx, and compare with what Pinnace recorded of each.

A quantized bundle holds the outputs that Pinnace got from every variant on the golden inputs. This check needs no
Pinnace, and runs in an environment of its own (docs/interop.md has the lines)::

    python tests/interop_variants.py BUNDLE [BUNDLE ...]

Exit code 1: a variant did not open, an output is off by more than 1e-4, or nothing was checked.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any, Final

os.environ |= {"HF_HUB_OFFLINE": "1", "ORT_DISABLE_TELEMETRY": "1"}  # read when they are imported

import numpy as np

TOLERANCE: Final = 1e-4
# Task -> optimum's class. Its class for decoders does not know Apertus (docs/interop.md).
CLASSES: Final = {
    "question-answering": "ORTModelForQuestionAnswering",
    "token-classification": "ORTModelForTokenClassification",
    "text-classification": "ORTModelForSequenceClassification",
    "feature-extraction": "ORTModelForFeatureExtraction",
    "fill-mask": "ORTModelForMaskedLM",
    "multiple-choice": "ORTModelForMultipleChoice",
}
Arrays = dict[str, Any]


def recorded(path: Path) -> list[tuple[Arrays, Arrays]]:
    """Inputs and outputs of every golden case."""
    cases: dict[str, tuple[Arrays, Arrays]] = {}
    with np.load(path, allow_pickle=False) as arrays:
        for key in arrays.files:
            case, side, name = key.split("/")
            cases.setdefault(case, ({}, {}))[side == "out"][name] = arrays[key]
    return list(cases.values())


def plain(graph: Path, inputs: Arrays) -> Arrays:
    """Run by onnxruntime alone."""
    import onnxruntime

    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def optimum(bundle: Path, graph: str, name: str, inputs: Arrays) -> Arrays:
    """Run by a class of optimum."""
    import optimum.onnxruntime
    import torch

    folder, _, file = graph.rpartition("/")
    model = getattr(optimum.onnxruntime, name).from_pretrained(bundle, subfolder=folder, file_name=file)
    found = model(**{key: torch.from_numpy(array) for key, array in inputs.items()})
    return {key: np.asarray(value) for key, value in found.items()}


def largest(want: Arrays, got: Arrays) -> float:
    """Largest difference over the outputs that both give; NaN counts as infinite.

    Raises:
        RuntimeError: they share no output, or shapes differ.
    """
    shared = want.keys() & got.keys()
    if not shared or any(want[name].shape != got[name].shape for name in shared):
        raise RuntimeError(f"recorded outputs are {sorted(want)}, got {sorted(got)} or other shapes")
    off = [np.abs(np.float64(want[name]) - np.float64(got[name])).max() for name in shared if want[name].size]
    return float(np.nan_to_num(np.max(off), nan=np.inf))


def check(bundle: Path) -> list[bool]:
    """Print a row for each variant and program; which of them are good."""
    manifest = json.loads((bundle / "manifest.json").read_text("utf-8"))
    verdicts = []
    for precision, variant in sorted(manifest["variants"].items()):
        golden = bundle / ("golden.npz" if precision == "fp32" else f"golden_{precision}.npz")
        if precision == "fp32" or not golden.is_file():
            continue
        for program in ("onnxruntime", CLASSES.get(manifest["task"])):
            if program is None:
                continue
            try:
                off = 0.0
                for inputs, outputs in recorded(golden):
                    if program == "onnxruntime":
                        got = plain(bundle / variant["graph"], inputs)
                    else:
                        got = optimum(bundle, variant["graph"], program, inputs)
                    off = max(off, largest(outputs, got))
            except Exception as error:  # one failing program must not hide the others
                said = " ".join(str(error).split())[:200]
                print(f"| {bundle.name} | {variant['graph']} | {program} | {type(error).__name__}: {said} | fails |")
                verdicts.append(False)
            else:
                verdicts.append(off <= TOLERANCE)
                words = "holds" if verdicts[-1] else "misses"
                print(f"| {bundle.name} | {variant['graph']} | {program} | {off:.1e} | {words} |")
    return verdicts


def main(bundles: list[str]) -> int:
    warnings.filterwarnings("ignore")
    print(f"| bundle | graph | opened by | largest difference | within {TOLERANCE:g} |\n|---|---|---|---|---|")
    verdicts = [verdict for bundle in bundles for verdict in check(Path(bundle))]
    return 0 if verdicts and all(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
