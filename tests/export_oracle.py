"""Checkpoints saved by transformers, exported, run in ONNX Runtime, and compared with the model that saved them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch

from pinnace.export.builder import Exported, export
from tests.bert_oracle import pair

Array = npt.NDArray[Any]
ATOL: Final = 1e-5


def saved(folder: Path, head: str, **settings: Any) -> Any:
    """Save a random model of transformers; returns it, in evaluation mode."""
    torch.manual_seed(11)
    theirs, _ = pair(head, **({"is_decoder": True} if head == "BertLMHeadModel" else {}), **settings)
    theirs.save_pretrained(folder)
    return theirs


def exported(
    folder: Path, head: str, *, settings: Mapping[str, Any] | None = None, **options: Any
) -> tuple[Any, Exported]:
    """Save a random model and export it, unchecked unless asked: (transformers' model, what the export made)."""
    theirs = saved(folder / "checkpoint", head, **(settings or {}))
    options = {"validate": False, "output": folder / "bundle", **options}
    return theirs, export(folder / "checkpoint", **options)


def run(made: Exported, inputs: Mapping[str, Any], precision: str = "fp32") -> dict[str, Array]:
    """Run a bundle's graph in plain ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    path = made.path / made.manifest.variants[precision].graph
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == [spec.name for spec in made.manifest.inputs]
    names = [value.name for value in session.get_outputs()]
    assert names == [spec.name for spec in made.manifest.outputs]
    return dict(
        zip(names, session.run(names, {name: np.asarray(value) for name, value in inputs.items()}), strict=True)
    )


def reference(theirs: Any, inputs: Mapping[str, Any], **options: Any) -> dict[str, Array]:
    """What transformers gives, under the graph's names: ``hidden_states.0``, ``attentions.1``, ..."""
    with torch.inference_mode():
        given = {name: torch.as_tensor(value) for name, value in inputs.items()}
        result = theirs(**given, return_dict=True, **options)
    found = {}
    for name, value in result.items():
        if isinstance(value, torch.Tensor):
            found[name] = value.numpy()
        elif name in ("hidden_states", "attentions"):
            found |= {f"{name}.{index}": tensor.numpy() for index, tensor in enumerate(value)}
    return found


def assert_same(got: Mapping[str, Array], want: Mapping[str, Array], atol: float = ATOL) -> None:
    """Both have the same outputs, and every number agrees."""
    assert set(got) == set(want)
    for name, array in want.items():
        assert got[name].shape == array.shape, name
        np.testing.assert_allclose(got[name], array, rtol=0, atol=atol, err_msg=name)
