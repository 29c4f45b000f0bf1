"""The model card: what a person sees who opens the bundle's folder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pinnace.spec import Manifest, Variant
from pinnace.units import in_bytes


def model_card(manifest: Manifest, certificate: Mapping[str, Any]) -> str:
    """Write README.md from the manifest and the certificate.

    Args:
        manifest: facts of the bundle.
        certificate: the record of its checks.
    """
    source = manifest.source.name + (f" at {manifest.source.revision}" if manifest.source.revision else "")
    lines = [
        "---", "library_name: pinnace", f"pipeline_tag: {manifest.task}", "tags: [onnx]", "---",
        f"# {manifest.head} for {manifest.task}", "",
        f"Exported by Pinnace {manifest.tools['pinnace']} from {source}. It runs without PyTorch:", "",
        "```python", "import pinnace", f'pipe = pinnace.pipeline("{manifest.task}", "path/to/this/folder")', "```", "",
        "| input | type | shape |", "|---|---|---|",
        *(f"| {spec.name} | {spec.dtype} | {list(spec.shape)} |" for spec in manifest.inputs), "",
        "| output | type | shape |", "|---|---|---|",
        *(f"| {spec.name} | {spec.dtype} | {list(spec.shape)} |" for spec in manifest.outputs), "",
        "| variant | target | opset | verdict | largest difference from PyTorch |", "|---|---|---|---|---|",
        *(
            _variant_row(variant, name, certificate["variants"][name])
            for name, variant in manifest.variants.items() if not variant.scheme
        ), "",
        *_quantized(manifest, certificate),
        "`pinnace verify` checks every file's SHA-256 and repeats the comparison on this machine.", "",
    ]  # fmt: skip
    return "\n".join(lines)


def quality_cells(record: Mapping[str, Any]) -> dict[str, str]:
    """Say what the certificate knows of a quantized variant: titles of columns and their cells. Times are not in it.

    Args:
        record: the certificate's entry of the variant.
    """
    value, reference = (math.nan if record[key] is None else float(record[key]) for key in ("value", "fp32"))
    judged = not math.isnan(value) and not math.isnan(reference)
    counts = record.get("examples", {})
    against = "labels" if record["labelled"] else "fp32's answers"
    return {
        "scheme": str(record["scheme"]),
        "size": in_bytes(record["bytes"]),
        "of fp32": f"{record['share_of_fp32']:.3f}",
        "metric": str(record["metric"]).replace("_", " "),
        "value": f"{value:.4f}" if judged else "not judged",
        "fp32": f"{reference:.4f}" if judged else "not judged",
        "difference": f"{value - reference:+.4f}" if judged else "unknown",
        "judged on": f"{counts.get('judging', 0)} of {counts.get('source', 'unknown data')}, against {against}",
        "verdict": str(record["verdict"]),
        "processor": str(record["processor"]["name"]),
    }


def _quantized(manifest: Manifest, certificate: Mapping[str, Any]) -> list[str]:
    """A table of the quantized variants; nothing where there are none."""
    made = {name: quality_cells(certificate["variants"][name]) for name, v in manifest.variants.items() if v.scheme}
    if not made:
        return []
    titles = ["quantized", *next(iter(made.values()))]
    rows = [[name, *cells.values()] for name, cells in made.items()]
    return [_row(titles), "|" + "---|" * len(titles), *(_row(row) for row in rows), ""]


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(' '.join(cell.replace('|', '/').split()) for cell in cells)} |"


def _variant_row(variant: Variant, name: str, check: Mapping[str, Any]) -> str:
    worst = max((found["max_abs"] for found in check.get("outputs", {}).values()), default=None)
    shown = "not measured" if worst is None else f"{worst:.1e}"
    return f"| {name} | {variant.target} | {variant.opset} | {check['verdict']} | {shown} |"
