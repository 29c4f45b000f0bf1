"""Saturating sums: against the instructions done one at a time, and proofs against every activation that could be."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pinnace.errors import UsageError
from pinnace.runtime.engine.ort import plain_session
from pinnace.runtime.machine.cpu import read_cpu
from tests.saturating_sums import can_saturate, exact_product, saturated_share, saturating_product

EMULATOR = "qemu-x86_64"
CHECK = """
import sys, pathlib, tests.test_saturation
tests.test_saturation.check_kernels(pathlib.Path(sys.argv[1]), sys.argv[2])
"""
PRODUCTS = {"exact": exact_product, "saturating": saturating_product}


def by_hand(a: NDArray[Any], w: NDArray[Any]) -> tuple[NDArray[np.int64], float]:
    """vpmaddubsw, vpmaddwd and vpaddd, one sum at a time."""
    out, cut, sums = np.zeros((a.shape[0], w.shape[1]), np.int64), 0, 0
    for m, n in itertools.product(range(a.shape[0]), range(w.shape[1])):
        for k in range(0, a.shape[1], 2):
            products = [int(x) * int(y) for x, y in zip(a[m, k : k + 2], w[k : k + 2, n], strict=True)]
            kept = max(-32768, min(32767, sum(products)))
            cut, sums = cut + (kept != sum(products)), sums + 1
            out[m, n] += kept
    return out, cut / sums


@pytest.mark.parametrize("inputs", [32, 33, 1])
@pytest.mark.parametrize("limit", [127, 90, 64])
def test_products_are_those_of_the_instructions(inputs: int, limit: int) -> None:
    random = np.random.default_rng(limit)
    a = random.integers(0, 256, (6, inputs)).astype(np.uint8)
    w = random.integers(-limit, limit + 1, (inputs, 5)).astype(np.int8)
    a[0], w[:, 0], w[:, 1] = 255, limit, -limit
    expected, share = by_hand(a, w)
    np.testing.assert_array_equal(saturating_product(a, w), expected)
    assert saturated_share(a, w) == pytest.approx(share)
    np.testing.assert_array_equal(exact_product(a, w), a.astype(np.int64) @ w.astype(np.int64))
    assert can_saturate(w) is (limit > 64 and inputs > 1)
    assert (share > 0) is can_saturate(w)


def test_the_proof_knows_signs_and_neighbours() -> None:
    def column(*weights: int) -> NDArray[np.int8]:
        return np.array(weights, np.int8)[:, None]

    assert not can_saturate(column(64, 64)) and not can_saturate(column(127, 1)) and not can_saturate(column(-127, -1))
    assert can_saturate(column(64, 65)) and can_saturate(column(127, 2)) and can_saturate(column(-65, -64))
    assert not can_saturate(column(127, -128))  # opposite signs never add up
    assert not can_saturate(column(1, 127, 1, 127)) and can_saturate(column(0, 1, 127, 127))
    assert not can_saturate(column(0, 127, 127, 0))  # no neighbours


def test_the_proof_is_exact() -> None:
    """Every pair of weights near the border, against the largest activations that could be."""
    for first, second in itertools.product(range(-128, 128, 5), (-128, -127, -65, -64, -2, 0, 1, 2, 63, 64, 65, 127)):
        w = np.array([[first], [second]], np.int8)
        a = np.array(list(itertools.product((0, 1, 254, 255), repeat=2)), np.uint8)
        assert can_saturate(w) is bool((saturating_product(a, w) != exact_product(a, w)).any())


def test_a_provoked_saturation_is_wrong_by_a_lot() -> None:
    a, w = np.full((1, 64), 255, np.uint8), np.full((64, 1), 127, np.int8)
    assert exact_product(a, w)[0, 0] == 255 * 127 * 64
    assert saturating_product(a, w)[0, 0] == 32 * 32767  # about half of it
    assert saturated_share(a, w) == 1.0


def check_kernels(folder: Path, kind: str) -> None:
    """ONNX Runtime's integer product, with a constant weight and without, is bit for bit the one that is named."""
    random = np.random.default_rng(5)
    for rows, k, n in ((1, 64, 48), (1, 30, 17), (7, 258, 70)):
        a = random.integers(0, 256, (rows, k)).astype(np.uint8)
        for limit, constant in itertools.product((127, 64), (True, False)):
            w = random.integers(-limit, limit + 1, (k, n)).astype(np.int8)
            inputs = {"a": TensorProto.UINT8} | ({} if constant else {"w": TensorProto.INT8})
            graph = helper.make_graph(
                [helper.make_node("MatMulInteger", ["a", "w"], ["y"])],
                "main",
                [helper.make_tensor_value_info(name, kind_of, None) for name, kind_of in inputs.items()],
                [helper.make_tensor_value_info("y", TensorProto.INT32, None)],
                [numpy_helper.from_array(w, "w")] if constant else [],
            )
            onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10),
                      folder / "product.onnx")  # fmt: skip
            feeds = {"a": a} if constant else {"a": a, "w": w}
            (got,) = plain_session(folder / "product.onnx").run(None, feeds)
            np.testing.assert_array_equal(got, PRODUCTS[kind](a, w))
            if limit == 64:  # reduced range: both are the same, and right
                np.testing.assert_array_equal(got, exact_product(a, w))
            else:
                assert saturated_share(a, w) > 0


def test_kernels_of_this_machine_do_what_is_said_of_it(tmp_path: Path) -> None:
    kind = read_cpu().int8_dot()
    if kind not in PRODUCTS:
        pytest.skip("nothing is said of this processor")
    check_kernels(tmp_path, kind)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which(EMULATOR), reason=f"{EMULATOR} is not installed")
def test_kernels_of_an_emulated_machine_saturate(tmp_path: Path) -> None:
    """An AVX2 processor without VNNI, whatever this machine is."""
    for kind, expected in (("saturating", 0), ("exact", 1)):
        words = [EMULATOR, "-cpu", "EPYC-Milan", sys.executable, "-c", CHECK, str(tmp_path), kind]
        done = subprocess.run(words, cwd=Path(__file__).parents[1], env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
                              capture_output=True, text=True, timeout=300)  # fmt: skip
        assert done.returncode == expected, done.stderr[-2000:]
        assert expected == 0 or "Arrays are not equal" in done.stderr


def test_wrong_types_are_told() -> None:
    a, w = np.zeros((2, 4), np.uint8), np.zeros((4, 3), np.int8)
    with pytest.raises(UsageError, match="activations are uint8"):
        saturated_share(a.astype(np.int8), w)
    with pytest.raises(UsageError, match="4 inputs"):
        saturating_product(a, w[:3])
    with pytest.raises(UsageError, match="weights are int8"):
        can_saturate(w.astype(np.int32))
    assert saturated_share(a[:0], w) == 0.0
