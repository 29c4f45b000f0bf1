"""An export to int8 or int4: the fp32 bundle is quantized before it is published, whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from pinnace.errors import UsageError
from pinnace.export.interface import CAPACITY, Options
from pinnace.export.tasks import Task
from pinnace.export.tokenizer_files import has_tokenizer
from pinnace.quantize.builder import quantize_into
from pinnace.quantize.examples.source import USUAL_MASK, mask_of, read_examples
from pinnace.quantize.request import Settings, usual_scheme
from pinnace.quantize.workshop import Progress
from pinnace.runtime.bundles.bundle import Bundle
from pinnace.runtime.bundles.certificate import read_certificate
from pinnace.spec import Manifest

# Precisions that are made from an fp32 bundle and data, not from the traced graph.
QUANTIZED: Final = ("int8", "int4")


def check_request(
    precision: str, task: Task, options: Options, folder: Path | None, data: str | Path | None, allow_degraded: bool
) -> None:
    """Find what is wrong with a request before the long work begins.

    Args:
        precision: what the export is asked for.
        task: the row of the task table.
        options: choices that shape the graph.
        folder: of the checkpoint, or None.
        data: file of examples, or None.
        allow_degraded: whether a variant that misses its gate may be written.

    Raises:
        UsageError: options of quantization for a precision without it, or shapes on which nothing could be judged.
        InputError: examples that cannot be read.
    """
    if precision in QUANTIZED:
        if task.causal and (fixed := sorted(options.static.keys() - {CAPACITY})):
            raise UsageError(
                f"--static fixes {fixed[0]}, and --precision {precision} judges a decoder on prompts of any length; "
                f"leave --static out, or fix {CAPACITY} alone"
            )
        if data is not None:
            mask = mask_of(folder, task.name) if folder is not None and has_tokenizer(folder) else USUAL_MASK
            read_examples(Path(data), task.name, mask_token=mask)
    elif data is not None or allow_degraded:
        given = "--data" if data is not None else "--allow-degraded"
        raise UsageError(f"{given} is for --precision {' or '.join(QUANTIZED)}, got --precision {precision}")


def add_variant(
    first: Path, scratch: Path, precision: str, data: str | Path | None, *, allow_degraded: bool, say: Progress
) -> tuple[Manifest, dict[str, Any]]:
    """Copy an fp32 bundle and add a quantized variant by the precision's usual scheme.

    Args:
        first: folder of the fp32 bundle.
        scratch: an empty folder for the whole one.
        precision: one of `QUANTIZED`.
        data: file of examples; None takes the package's own texts.
        allow_degraded: write a variant that misses its gate, and say so.
        say: called with a line of text at each stage.

    Returns:
        Manifest and certificate of the whole bundle.

    Raises:
        CheckFailed: the variant misses its gate.
    """
    settings = Settings(allow_degraded=allow_degraded)
    quantize_into(scratch, Bundle.open(first, verify=False), [usual_scheme(precision)], settings, data, say=say)
    made = Bundle.open(scratch, verify=False)
    return made.manifest, read_certificate(made)
