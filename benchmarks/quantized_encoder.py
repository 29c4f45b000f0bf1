"""How near to fp32 and how fast is int8 on all-MiniLM-L6-v2, beside onnxruntime's quantize_dynamic on the same model?

Vectors of 600 texts of mixed length are compared with fp32's: the cosine, and how many of each text's ten nearest
neighbours stay. The texts calibrate nothing. One process, one session for each candidate, runs interleaved.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from benchmarks.common import (
    Figure,
    affinity,
    export_minilm,
    finish,
    interleave,
    minilm_folder,
    parser,
    ratio,
    run_child,
    summary,
)  # fmt: skip
from pinnace.bench.texts import texts

NEIGHBOURS: Final = 10
FP32, INT8, TOKEN = "fp32", "pinnace int8", "pinnace int8-token"
DYNAMIC, REDUCED = "quantize_dynamic", "quantize_dynamic, reduced range"


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--texts", type=int, help="how many texts (default: 600)")
    made.add_argument("--minilm", type=Path, help="folder of all-MiniLM-L6-v2 (default: the installed package's)")
    arguments = made.parse_args()
    with tempfile.TemporaryDirectory(prefix="pinnace-int8-") as name:
        return measure(arguments, Path(name))


def measure(arguments: argparse.Namespace, folder: Path) -> int:
    """Embed in turn, then compare the vectors with fp32's."""
    import numpy as np

    from pinnace.quantize.judging.metrics import cosines, neighbours, shared

    checkpoint = arguments.minilm or minilm_folder()
    bundle = export_minilm(checkpoint, folder / "bundle")
    models: dict[str, tuple[Path, str]] = {FP32: (bundle, "fp32")}
    for name, scheme in ((INT8, "int8"), (TOKEN, "int8-token")):
        words: list[str | Path] = ["pinnace", "quantize", bundle, "--scheme", scheme, "-o", folder / scheme, "-q"]
        run_child([sys.executable, "-m", *words], threads=len(affinity()))
        models[name] = (folder / scheme, "int8")
    chosen = texts(arguments.texts or (40 if arguments.quick else 600))
    embed = {name: opened(*place, arguments.threads) for name, place in models.items()}
    for name, reduced in ((DYNAMIC, False), (REDUCED, True)):
        embed[name] = dynamic(checkpoint, folder / f"reduced-{reduced}.onnx", reduced, arguments.threads)
    vectors: dict[str, Any] = {}

    def timed(name: str) -> Callable[[], float]:
        def run() -> float:
            begun = time.perf_counter()
            vectors[name] = embed[name](chosen)
            return time.perf_counter() - begun

        return run

    seconds = interleave({name: timed(name) for name in embed}, arguments.rounds or (1 if arguments.quick else 5))
    measured: dict[str, dict[str, Any]] = {}
    for name, found in seconds.items():
        near = cosines(vectors[name], vectors[FP32])
        measured[name] = {
            "texts/s": summary([len(chosen) / value for value in found]),
            "neighbours kept": float(shared(*(neighbours(vectors[key], NEIGHBOURS) for key in (name, FP32))).mean()),
            "mean cosine": float(near.mean()),
            "least cosine": float(near.min()),
        }
    kept = {name: row["neighbours kept"] for name, row in measured.items()}
    figures = [
        Figure(f"{INT8}: neighbours kept", kept[INT8], 0.955, True, unit=""),
        Figure(f"{INT8}: mean cosine", measured[INT8]["mean cosine"], 0.9975, True, unit=""),
        Figure(f"{INT8}: texts/s, of fp32's", ratio(seconds[FP32], seconds[INT8]), 1.35, True),
        *(
            Figure(f"{name}: texts/s, of fp32's", ratio(seconds[FP32], seconds[name]))
            for name in (TOKEN, DYNAMIC, REDUCED)
        ),
        Figure(f"{INT8}: texts/s, of quantize_dynamic's", ratio(seconds[DYNAMIC], seconds[INT8]), 1, True),
        Figure(f"{INT8}: neighbours lost, of quantize_dynamic's", (1 - kept[INT8]) / (1 - kept[DYNAMIC]), 1),
    ]  # fmt: skip
    alone = np.concatenate([embed[INT8]([text]) for text in chosen[:20]])
    off = float(np.abs(alone - vectors[INT8][:20]).max())
    numbers = {f"{INT8}: a text alone is {off:.1e} from itself among others, at most 1e-5": off <= 1e-5}
    return finish(arguments, f"int8 on {len(chosen)} texts", measured, figures, numbers)


def opened(folder: Path, precision: str, threads: int) -> Callable[[list[str]], Any]:
    """Open a variant as users do."""
    import pinnace

    pipe = pinnace.pipeline("feature-extraction", folder, precision=precision, threads=threads)
    return lambda chosen: pipe(chosen, return_tensors=True)


def dynamic(checkpoint: Path, path: Path, reduced: bool, threads: int) -> Callable[[list[str]], Any]:
    """Quantize the model's standard form with onnxruntime, as its guide says, and run it in our pipeline's place.

    Its fp32 graph computes what ours does, and the same tokens, batches and pooling surround it.
    """
    import onnx
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    import pinnace

    standard = path.with_name("standard")
    prepared = path.with_name("prepared.onnx")
    if not standard.exists():
        export_minilm(checkpoint, standard, "--target", "onnx")
        whole = path.with_name("whole.onnx")  # its weights inside, as the tool wants them
        onnx.save(onnx.load(standard / "model.onnx"), whole)
        quant_pre_process(str(whole), str(prepared), skip_symbolic_shape=True)
    settings: dict[str, Any] = {"per_channel": True, "reduce_range": reduced, "weight_type": QuantType.QInt8}
    # Left to itself it also quantizes Attention, to an operator that the runtime then refuses.
    quantize_dynamic(prepared, path, op_types_to_quantize=["MatMul", "Gemm"], **settings)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    pipe = pinnace.pipeline("feature-extraction", standard, threads=threads)
    pipe.session.run = lambda inputs, outputs=None, **_: dict(  # type: ignore[method-assign]
        zip(outputs or [o.name for o in session.get_outputs()], session.run(outputs, dict(inputs)), strict=True)
    )
    return lambda chosen: pipe(chosen, return_tensors=True)


if __name__ == "__main__":
    sys.exit(main())
