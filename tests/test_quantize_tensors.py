"""Weights of a bundle's file, read whole and in parts: rounding sees the same numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from pinnace.errors import BundleError
from pinnace.quantize import tensors
from pinnace.quantize.rounding.nearest import block_codes, channel_codes

SHAPE = (300, 96)


@pytest.fixture
def stored(tmp_path: Path) -> ir.Value:
    weight = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    (tmp_path / "w.bin").write_bytes(b"offset--" + weight.tobytes())
    tensor = ir.ExternalTensor(
        "w.bin", 8, weight.nbytes, ir.DataType.FLOAT, shape=ir.Shape(SHAPE), name="w", base_dir=tmp_path
    )
    return ir.Value(name="w", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(SHAPE), const_value=tensor)


def test_rounding_in_parts_gives_the_codes_of_the_whole(stored: ir.Value, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tensors.rows_of(stored)
    assert isinstance(whole, np.ndarray)
    monkeypatch.setattr(tensors, "LARGE_BYTES", 1000)
    parts = tensors.rows_of(stored)
    assert isinstance(parts, tensors.FileRows)
    for one, other in zip(channel_codes(whole, reduced=True), channel_codes(parts, reduced=True), strict=True):
        assert np.array_equal(one, other)
    for search in (False, True):
        one, other = (block_codes(w, 4, 32, search=search) for w in (whole, parts))
        assert np.array_equal(one.codes, other.codes)
        assert np.array_equal(one.scales, other.scales)


def test_a_file_that_ends_too_early_is_named(stored: ir.Value, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "w.bin").open("r+b") as file:
        file.truncate(5000)
    with pytest.raises(BundleError, match=r"w\.bin ends"):
        tensors.read_weight(stored)
    monkeypatch.setattr(tensors, "LARGE_BYTES", 1000)
    with pytest.raises(BundleError, match=r"w\.bin ends"):
        channel_codes(tensors.rows_of(stored), reduced=True)
