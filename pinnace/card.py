"""The model card: what a person sees who opens the bundle's folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pinnace.spec import Manifest


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
        *(_variant_row(manifest, name, certificate["variants"][name]) for name in manifest.variants), "",
        "`pinnace verify` checks every file's SHA-256 and repeats the comparison on this machine.", "",
    ]  # fmt: skip
    return "\n".join(lines)


def _variant_row(manifest: Manifest, name: str, check: Mapping[str, Any]) -> str:
    variant = manifest.variants[name]
    worst = max((found["max_abs"] for found in check.get("outputs", {}).values()), default=None)
    shown = "not measured" if worst is None else f"{worst:.1e}"
    return f"| {name} | {variant.target} | {variant.opset} | {check['verdict']} | {shown} |"
