"""The certificate: a record of what was compared with what, on which inputs, with which result."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
from collections.abc import Mapping
from typing import Any

import pinnace
from pinnace.compare import GATES, Difference
from pinnace.export.validate import Validation
from pinnace.runtime.engine.ort import onnxruntime
from pinnace.spec import NOT_VALIDATED


def certificate(checks: Mapping[str, Validation | None], oracle: str) -> dict[str, Any]:
    """Build the record.

    Args:
        checks: precision -> what was compared, None where the caller switched validation off.
        oracle: what the graphs were compared with.
    """
    return {
        "format": 1,
        "oracle": oracle,
        "variants": {precision: _variant(precision, check) for precision, check in checks.items()},
    }


def _variant(precision: str, check: Validation | None) -> dict[str, Any]:
    if check is None:
        return {"verdict": NOT_VALIDATED}
    return {
        "verdict": "passed",
        "gate": dataclasses.asdict(GATES[precision]),
        "cases": list(check.cases),
        "longest_row": check.longest,
        "outputs": {name: _rounded(found) for name, found in check.outputs.items()},
        "rows_alone": {name: _rounded(found) for name, found in check.rows_alone.items()},
    }


def _rounded(found: Difference) -> dict[str, float | int]:
    """Three digits say all that matters."""
    return {k: v if isinstance(v, int) else float(f"{v:.3g}" if k != "cosine" else f"{v:.7f}")
            for k, v in dataclasses.asdict(found).items()}  # fmt: skip


def to_json(record: Mapping[str, Any]) -> str:
    """Serialize with sorted keys, so that the same facts give the same bytes."""
    return json.dumps(record, indent=2, sort_keys=True) + "\n"


def tools() -> dict[str, str]:
    """Versions that made the bundle; the same tools make the same bytes."""
    versions = {name: importlib.metadata.version(name) for name in ("torch", "onnx-ir", "numpy")}
    versions["onnxruntime"] = onnxruntime.__version__  # whichever of its distributions brought it
    return {"pinnace": pinnace.__version__, **{name: v.partition("+")[0] for name, v in versions.items()}}
