"""What must not hurt a quantization: kills, full disks, damaged bundles, and sums that a processor would cut off."""

from __future__ import annotations

import json
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import pinnace
from pinnace.errors import UsageError
from pinnace.runtime.bundles.bundle import Bundle
from pinnace.runtime.checks.verify import verify_bundle
from pinnace.runtime.engine.ort import plain_session
from pinnace.runtime.machine.cpu import Cpu
from tests.generation_bundles import decoder_of
from tests.quantize_graphs import encoder_feed, largest_gap, outputs, random_ids, rewritten
from tests.quantized_bundles import NER, Quantized, content, copied, fp32_of, once, quantized, quick_clock, rows
from tests.saturating_sums import can_saturate, exact_product, saturating_product
from tests.test_cli import Cli, _clean_environment, cli

__all__ = ["_clean_environment", "cli", "decoder_of", "fp32_of", "once", "quantized", "quick_clock"]

Fp32Of = Callable[[str], Path]
ROOT = Path(__file__).parent.parent
AVX2 = Cpu("AuthenticAMD", "EPYC without VNNI", "x86_64", ("avx2",), known=True)
VNNI = Cpu("GenuineIntel", "Xeon with VNNI", "x86_64", ("avx2", "avx512f", "avx512_vnni"), known=True)
UNKNOWN = Cpu("", "", "riscv64", (), known=False)
QUANTIZE = """
import sys, pinnace
while True:
    print("ready", flush=True)
    pinnace.quantize(sys.argv[1], scheme=sys.argv[3], data=sys.argv[2], threads=1)
"""


def weights(graph: Path) -> dict[str, Any]:
    """Weights of the integer products of a graph, int8 ``[K, N]``."""
    model = onnx.load(graph)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    names = [node.input[1] for node in model.graph.node if node.op_type == "MatMulIntegerToFloat"]
    return {name: numpy_helper.to_array(stored[name]) for name in names}


@pytest.mark.usefixtures("quick_clock")
@pytest.mark.parametrize("cpu", [AVX2, UNKNOWN], ids=["avx2", "unknown"])
def test_without_exact_sums_no_weight_can_saturate(
    fp32_of: Fp32Of, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpu: Cpu
) -> None:
    monkeypatch.setattr("pinnace.quantize.builder.read_cpu", lambda: cpu)
    out = tmp_path / "out"
    pinnace.quantize(
        fp32_of(NER), scheme="int8-uncalibrated", data=rows(NER, tmp_path), output=out, threads=1, allow_degraded=True
    )
    found = weights(out / "model_int8.onnx")
    assert len(found) >= 8 and not any(can_saturate(w) for w in found.values())
    assert Bundle.open(out).variant("int8").needs == ()
    before = content(fp32_of(NER))
    with pytest.raises(UsageError, match="full-range int8 weights give wrong sums on this processor"):
        pinnace.quantize(fp32_of(NER), full_range=True, data=rows(NER, tmp_path), threads=1)
    assert content(fp32_of(NER)) == before


@pytest.mark.usefixtures("quick_clock")
def test_full_range_says_what_it_needs(fp32_of: Fp32Of, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("quantize.builder", "runtime.machine.cpu"):  # where it is made, and where it is opened to be judged
        monkeypatch.setattr(f"pinnace.{place}.read_cpu", lambda: VNNI)
    settings: dict[str, Any] = {"scheme": "int8-uncalibrated", "data": rows(NER, tmp_path), "threads": 1}
    pinnace.quantize(fp32_of(NER), output=tmp_path / "full", full_range=True, allow_degraded=True, **settings)
    pinnace.quantize(fp32_of(NER), output=tmp_path / "safe", full_range=False, allow_degraded=True, **settings)
    full, safe = (Bundle.open(tmp_path / name).variant("int8") for name in ("full", "safe"))
    assert full.needs == ("exact-int8-dot",) and safe.needs == ()
    assert "avx512_vnni" in full.made_on
    assert any(can_saturate(w) for w in weights(tmp_path / "full" / "model_int8.onnx").values())
    assert not any(can_saturate(w) for w in weights(tmp_path / "safe" / "model_int8.onnx").values())


def test_provoked_saturation_breaks_full_range_only(fp32_of: Fp32Of, tmp_path: Path) -> None:
    """Weights of one sign and one size, activations near their peak: every pair of products leaves 16 bits."""
    activations = np.full((4, 384), 250, np.uint8)
    built = tmp_path / "b"
    one_sign(fp32_of(NER), built)
    for reduced in (True, False):
        rewritten(built, tmp_path / f"{reduced}", "token", smoothing=False, reduced=reduced)
        found = weights(tmp_path / f"{reduced}" / "model.onnx")
        wide = found["bert.encoder.layer.0.intermediate.dense.weight_quantized"]
        gap = np.abs(saturating_product(activations, wide) - exact_product(activations, wide))
        assert bool(gap.max() == 0) is reduced and can_saturate(wide) is not reduced
    # And ONNX Runtime here gives fp32's answer with the safe weights, whatever this processor is.
    feeds = [encoder_feed(random_ids(1, 2, 40, 7541))]
    exact = outputs(built / "model.onnx", feeds)
    assert largest_gap(outputs(tmp_path / "True" / "model.onnx", feeds), exact) < 0.1 * abs(exact[0]["logits"]).max()


def one_sign(bundle: Path, folder: Path) -> None:
    """A copy whose first wide weight is of one sign and nearly one size."""
    folder.mkdir()
    (folder / "model.onnx").write_bytes((bundle / "model.onnx").read_bytes())
    raw = bytearray((bundle / "model.safetensors").read_bytes())
    size = int.from_bytes(raw[:8], "little")
    entry = json.loads(raw[8 : 8 + size])["bert.encoder.layer.0.intermediate.dense.weight"]
    start, end = (8 + size + place for place in entry["data_offsets"])
    part = np.frombuffer(raw[start:end], "<f4")
    raw[start:end] = (0.01 + np.abs(part) * 1e-3).astype("<f4").tobytes()
    (folder / "model.safetensors").write_bytes(raw)


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json"])
def test_a_damaged_bundle_is_refused(fp32_of: Fp32Of, cli: Cli, tmp_path: Path, file: str) -> None:
    bundle = copied(fp32_of(NER), tmp_path / "bundle")
    raw = bytearray((bundle / file).read_bytes())
    raw[len(raw) // 2] ^= 1
    (bundle / file).write_bytes(raw)
    before = content(bundle)
    code, out, err = cli("quantize", bundle, "--data", rows(NER, tmp_path))
    assert (code, out) == (3, "") and file in err
    assert content(bundle) == before


@pytest.mark.parametrize("file", ["model_int8.onnx_data", "model_int8.onnx", "golden_int8.npz"])
def test_a_flipped_bit_of_a_variant_is_detected(quantized: Quantized, cli: Cli, tmp_path: Path, file: str) -> None:
    bundle = copied(quantized(NER, "int8-token"), tmp_path / "bundle")
    path = bundle / file
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    assert not verify_bundle(bundle).ok
    code, out, err = cli("verify", bundle)
    assert code in (1, 3) and file in out + err
    code, _, err = cli("run", bundle, "text", "--precision", "int8")
    assert code == 3 and file in err


def test_a_full_disk_leaves_the_old_bundle(fp32_of: Fp32Of, tmp_path: Path) -> None:
    bundle, data = copied(fp32_of(NER), tmp_path / "bundle"), rows(NER, tmp_path)
    before = content(bundle)

    def shrink() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 20, 4 << 20))

    words = ["quantize", str(bundle), "--scheme", "int8-uncalibrated", "--data", str(data)]
    command = [sys.executable, "-m", "pinnace", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, preexec_fn=shrink)
    assert done.returncode == 5, done.stderr
    assert "Traceback" not in done.stderr
    assert content(bundle) == before
    assert not [path for path in tmp_path.iterdir() if ".partial" in path.name]


@pytest.mark.slow
def test_kills_leave_the_old_bundle_or_the_new_one(fp32_of: Fp32Of, tmp_path: Path) -> None:
    bundle, data = copied(fp32_of(NER), tmp_path / "bundle"), rows(NER, tmp_path)
    chance, seen = random.Random(8), set()
    for turn in range(5):
        command = [sys.executable, "-c", QUANTIZE, str(bundle), str(data), "int8-uncalibrated"]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            for _ in range(2 if turn == 4 else 1):
                child.stdout.readline()
            time.sleep(1 + chance.random() * 4)
            child.send_signal(signal.SIGKILL)
        report = verify_bundle(bundle)
        assert report.ok, report
        seen.add(tuple(Bundle.open(bundle).manifest.variants))
    assert ("fp32", "int8") in {tuple(sorted(names)) for names in seen}
    plain_session(bundle / "model_int8.onnx")


def test_two_at_once_are_told_apart(fp32_of: Fp32Of, cli: Cli, tmp_path: Path) -> None:
    """The loser says that another process writes the bundle."""
    from pinnace.publishing import publishing

    bundle = copied(fp32_of(NER), tmp_path / "bundle")
    before = content(bundle)
    with pytest.raises(RuntimeError, match="enough"), publishing(bundle):
        code, _, err = cli("quantize", bundle, "--data", rows(NER, tmp_path))
        assert code == 5 and "bundle" in err
        raise RuntimeError("enough")
    assert content(bundle) == before
