"""Verify, inspect and doctor: what they find on a whole bundle, on damaged ones, and on this machine."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from pinnace.cli.main import main
from pinnace.errors import BundleError, UsageError
from pinnace.runtime.bundles.certificate import certificate_summary
from pinnace.runtime.checks import doctor
from pinnace.runtime.checks.golden import MAX_BYTES, read_golden
from pinnace.runtime.checks.inspect_bundle import describe, render
from pinnace.runtime.checks.verify import VerifyReport, verify_bundle
from pinnace.runtime.engine import ort
from pinnace.runtime.engine.session import load
from pinnace.runtime.machine import cpu, threads
from pinnace.safetensors_header import read_header
from tests.tiny_bundle import make_bundle, write_golden, write_manifest


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "tiny-bert")


def failed(report: VerifyReport) -> list[str]:
    return [check.name for check in report.checks if not check.ok]


def test_a_whole_bundle_passes(folder: Path) -> None:
    report = verify_bundle(folder)
    assert report.ok and report.exit_code == 0
    names = ["files", "graph fp32", "weights model.safetensors", "certificate", "numbers fp32"]
    assert [check.name for check in report.checks] == names
    assert report.checks[3].detail == "fp32 passed in 1 cases"
    assert json.loads(json.dumps(report.to_dict()))["checks"][4]["detail"].startswith("2 cases")


@pytest.mark.parametrize("name", ["README.md", "certificate.json", "golden.npz", "model.onnx", "model.safetensors"])
def test_one_flipped_bit_is_damage(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[-3] ^= 1
    (folder / name).write_bytes(content)
    report = verify_bundle(folder)
    assert report.exit_code == 3
    assert "files" in failed(report) and name in report.checks[0].detail
    assert not any(check.name.startswith("numbers") for check in report.checks)


def rewrite_graph(folder: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    """Change the graph and make the manifest fit it again, as a faulty exporter would."""
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    change(model)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    write_manifest(folder)


def swap_inputs(model: onnx.ModelProto) -> None:
    words, types = model.graph.node[0].input, model.graph.node[3].input
    words[1], types[0] = "token_type_ids", "input_ids"


def drop_types(model: onnx.ModelProto) -> None:
    del model.graph.input[2]
    model.graph.node[1].input[1] = "input_ids"


def test_swapped_inputs_give_other_numbers(folder: Path) -> None:
    rewrite_graph(folder, swap_inputs)
    report = verify_bundle(folder)
    assert failed(report) == ["numbers fp32"] and report.exit_code == 1
    detail = report.checks[-1].detail
    for word in (
        "model.onnx does not give",
        "case 'short', output 'last_hidden_state': largest difference",
        "allowed 0.000",
    ):
        assert word in detail


def test_a_dropped_input_is_named(folder: Path) -> None:
    rewrite_graph(folder, drop_types)
    report = verify_bundle(folder)
    assert report.exit_code == 3 and "'token_type_ids'" in report.checks[-1].detail


def test_other_weights_with_a_fitting_manifest(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[read_header(folder / "model.safetensors")["dense"].start + 3] ^= 0x40
    (folder / "model.safetensors").write_bytes(content)
    write_manifest(folder)
    assert verify_bundle(folder).exit_code == 1


def test_a_session_that_is_open_already_hides_no_change(folder: Path) -> None:
    session = load(folder)
    assert session.native is not None
    assert verify_bundle(folder).ok
    rewrite_graph(folder, swap_inputs)
    assert failed(verify_bundle(folder)) == ["numbers fp32"]
    assert len(session.inputs) == 3


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("{", "is not JSON"),
        ("[1]", "must be an object"),
        ('{"head": "BertForMaskedLM"}', "head is 'BertForMaskedLM', expected 'BertModel'"),
        ('{"variants": {"int8": {}}}', "disagree on the variant"),
        ('{"variants": []}', "disagree on the variant"),
    ],
)
def test_a_certificate_of_something_else(folder: Path, text: str, word: str) -> None:
    (folder / "certificate.json").write_text(text)
    write_manifest(folder)
    report = verify_bundle(folder)
    assert failed(report) == ["certificate"] and word in report.checks[3].detail and report.exit_code == 3


@pytest.mark.parametrize("name", ["certificate.json", "golden.npz"])
def test_evidence_that_is_missing(folder: Path, name: str) -> None:
    (folder / name).unlink()
    write_manifest(folder)
    report = verify_bundle(folder)
    assert report.exit_code == 3 and f"lists no {name}" in "".join(c.detail for c in report.checks if not c.ok)


@pytest.mark.parametrize(("token", "code"), [(4, 0), (2, 1)], ids=["padding", "token"])
def test_numbers_are_those_of_tokens(folder: Path, token: int, code: int) -> None:
    """What a kernel leaves at padding is its own affair: a GPU's may be what the memory held before."""
    with np.load(folder / "golden.npz") as arrays:
        changed = dict(arrays)
    assert changed["padded/in/attention_mask"][1].tolist() == [1, 1, 1, 0, 0]
    changed["padded/out/last_hidden_state"][1, token] += 1
    np.savez(folder / "golden.npz", **changed)
    write_manifest(folder)
    assert verify_bundle(folder).exit_code == code


def not_validated(folder: Path) -> None:
    (folder / "certificate.json").write_text('{"variants": {"fp32": {"verdict": "not validated"}}}')
    write_manifest(folder)


def test_numbers_that_were_never_compared_are_skipped_and_strictly_fail(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "golden.npz").unlink()
    not_validated(folder)
    report = verify_bundle(folder)
    assert (report.ok, report.exit_code, report.skipped) == (True, 0, ("numbers fp32",))
    assert "never compared with PyTorch" in report.checks[-1].detail
    assert report.to_dict()["skipped"] == ["numbers fp32"]
    strict = verify_bundle(folder, strict=True)
    assert (strict.exit_code, failed(strict), strict.skipped) == (1, ["numbers fp32"], ())
    assert main(["verify", str(folder)]) == 0
    shown = capsys.readouterr()
    assert "skip  numbers fp32" in shown.out and "its numbers were never checked" in shown.err
    assert main(["verify", str(folder), "--strict"]) == 1
    assert "FAIL  numbers fp32" in capsys.readouterr().out
    # Damage is found as in any bundle.
    (folder / "model.onnx").write_bytes(b"")
    assert verify_bundle(folder).exit_code == 3


def test_golden_numbers_count_whatever_the_certificate_says(folder: Path) -> None:
    not_validated(folder)
    report = verify_bundle(folder)
    assert report.skipped == () and report.checks[-1].detail.startswith("2 cases")


def write_bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a/in/x.npy", "w") as member:
        for _ in range((MAX_BYTES >> 20) + 1):
            member.write(bytes(1 << 20))


def write_pickle(path: Path) -> None:
    arrays: dict[str, Any] = {"a/in/x": np.array([{}], object), "a/out/y": np.zeros(1)}
    np.savez(path, **arrays)


def write_names(path: Path) -> None:
    np.savez(path, input_ids=np.zeros(1))


def write_half(path: Path) -> None:
    arrays: dict[str, Any] = {"a/in/x": np.zeros(1)}
    np.savez(path, **arrays)


def write_member(content: bytes, damage: bytes = b"") -> Callable[[Path], None]:
    """Write an archive of one array; ``damage`` stands in place of its compressed bytes."""

    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a/in/x.npy", content)
            start = archive.getinfo("a/in/x.npy").header_offset + 30 + len("a/in/x.npy")
        data = path.read_bytes()
        path.write_bytes(data[:start] + damage + data[start + len(damage) :])

    return write


@pytest.mark.parametrize(
    ("write", "word"),
    [
        (write_member(b"\x93NUMPY\x01\x00\x08\x00{'descr'(" + bytes(99)), "not a readable"),  # a tokenize.TokenError
        (write_member(bytes(range(256)) * 9, b"\xff" * 40), "not a readable"),  # a zlib.error
        (write_bomb, "refused"),
        (write_pickle, "not a readable"),
        (write_names, "expected CASE/in"),
        (write_half, "no whole case"),
        (lambda path: path.write_bytes(b"PK no"), "not a readable"),
    ],
)
def test_golden_files_that_are_none(tmp_path: Path, write: Callable[[Path], None], word: str) -> None:
    write(tmp_path / "golden.npz")
    with pytest.raises(BundleError, match=rf"golden\.npz .*{word}"):
        read_golden(tmp_path / "golden.npz")


def test_other_shapes_and_missing_outputs(folder: Path) -> None:
    with np.load(folder / "golden.npz") as arrays:
        kept: dict[str, Any] = {name: arrays[name] for name in arrays.files}
    name = "padded/out/last_hidden_state"
    for change, word in (({name: kept[name][:1]}, "has the shape [2, 5, 4], expected [1, 5, 4]"), ({}, "no golden")):
        np.savez(
            folder / "golden.npz",
            **{k: v for k, v in kept.items() if k != name},
            **change,
            **{"padded/out/x": kept[name]},
        )
        write_manifest(folder)
        report = verify_bundle(folder)
        assert report.exit_code == 1 and word in report.checks[-1].detail


def test_what_cannot_be_verified_at_all(folder: Path) -> None:
    with pytest.raises(BundleError, match="no folder"):
        verify_bundle(folder / "absent")
    with pytest.raises(UsageError, match="unknown device"):
        verify_bundle(folder, device="abacus")


def test_the_picture_of_a_bundle(folder: Path) -> None:
    facts = describe(folder)
    fp32 = facts["variants"]["fp32"]
    assert fp32["layers"]["/bert/encoder/layer.0"] == {"Cast": 1, "MatMul": 1, "Mul": 1, "Unsqueeze": 1}
    assert fp32["layers"]["/bert/embeddings"] == {"Add": 1, "Gather": 2}
    assert fp32["parameters"] == 11 * 4 + 2 * 4 + 4 * 4 + 1
    assert fp32["bytes"] == sum((folder / name).stat().st_size for name in ("model.onnx", "model.safetensors"))
    assert json.loads(json.dumps(facts)) == facts
    picture = render(facts)
    for word in ("feature-extraction · BertModel", "input_ids: int64 [batch, sequence]", "layer.0: Cast", "from tiny"):
        assert word in picture
    assert len(picture.splitlines()) < 45


def test_equal_layers_are_one_line(folder: Path) -> None:
    def repeat(model: onnx.ModelProto) -> None:
        nodes = list(model.graph.node)
        made = nodes[:7]
        for index in range(1, 12):
            copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes[3:7]]
            for copy in copies:
                copy.name = copy.name.replace("layer.0", f"layer.{index}")
                copy.output[0] = f"{copy.output[0]}{index}"
            made += copies
        del model.graph.node[:]
        model.graph.node.extend([*made, nodes[7]])

    def label(data: dict[str, Any]) -> None:
        data["labels"] = [f"LABEL_{i}" for i in range(20)]
        data["pooling"] = {"mode": "mean", "normalize": True}
        data["variants"]["fp32"].update(degraded=True, islands=["pooler"])

    model = onnx.load(folder / "model.onnx", load_external_data=False)
    repeat(model)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    write_manifest(folder, label)
    picture = render(describe(folder))
    assert "/bert/encoder/layer.0-11: Cast, MatMul, Mul, Unsqueeze (each of 12)" in picture
    assert "LABEL_7 and 12 more" in picture and "mode mean, normalize True" in picture
    assert "DEGRADED" in picture and "in fp32: pooler" in picture
    (folder / "certificate.json").write_text("{")
    assert "is not JSON" in describe(folder)["certificate"]["state"]


def test_certificates_in_words() -> None:
    outputs = {"logits": {"max_abs": 2e-6}, "other": {"max_abs": 5e-6}, "odd": 3}
    record = {"verdict": "passed", "cases": ["a", "b"], "outputs": outputs}
    summary = certificate_summary({"variants": {"fp32": record, "fp16": {"verdict": "not validated"}, "int8": 5}})
    assert summary["fp32"] == "passed in 2 cases, largest difference 5e-06 (other)"
    assert (summary["fp16"], summary["int8"]) == ("not validated", "without a verdict")


def test_goldens_may_be_recorded_again(folder: Path) -> None:
    write_golden(folder)
    write_manifest(folder)
    assert verify_bundle(folder).ok


def test_the_doctor_looks_at_everything() -> None:
    findings = doctor.diagnose()
    subjects = {finding.subject for finding in findings}
    assert {"system", "processor", "cores", "memory", "onnxruntime", "packages", "cache"} <= subjects
    for finding in findings:
        assert finding.level in (doctor.OK, doctor.WARN, doctor.FAIL)
        assert finding.level == doctor.OK or finding.remedy, finding
        assert finding.to_dict()["text"]


MILAN = "processor\t: 0\nmodel name\t: AMD EPYC 7763\nflags\t\t: fpu avx avx2 fma\n"


def test_the_doctor_on_other_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    milan = cpu.from_cpuinfo(MILAN)
    assert [f.subject for f in doctor.processor_findings(milan) if f.level == doctor.WARN] == ["int8"]
    exact = cpu.from_cpuinfo(MILAN.replace("fma", "fma avx512_vnni"))
    assert [f.level for f in doctor.processor_findings(exact)] == [doctor.OK]
    old = [f.text for f in doctor.processor_findings(cpu.from_cpuinfo("flags : sse2\n"))]
    assert any("no AVX2" in text for text in old)
    (unknown,) = doctor.processor_findings(cpu.from_cpuinfo(""))
    assert unknown.level == doctor.OK and "features unknown" in unknown.text


@pytest.mark.parametrize(
    ("installed", "levels"),
    [
        ({"torch": "2.13.0+cpu", "onnx": "1.23.2", "onnxruntime": "1.32.0", "transformers": "5.23.0"}, []),
        ({"torch": "2.5.1"}, ["fail"]),
        ({"torch": "2.9.1+cu128"}, ["warn"]),
        ({"transformers": "4.57.6"}, ["warn"]),
        ({"transformers": "4.55.0"}, []),
        ({"onnx": "1.20.1", "onnxruntime": "1.20"}, ["warn", "fail"]),
        ({"onnxruntime-gpu": "1.23.2", "numpy": "1.25.2", "starlette": "0.39.1"}, ["fail", "fail", "warn"]),
        ({name: package.least or "0" for name, package in doctor.PACKAGES.items()}, []),
    ],
)
def test_known_hazards(installed: dict[str, str], levels: list[str]) -> None:
    assert [finding.level for finding in doctor.hazards_of(installed)] == levels


def test_the_doctor_knows_what_is_installed_with_pinnace() -> None:
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    extras = {f"extra {name}": needed for name, needed in project["optional-dependencies"].items() if name != "dev"}
    declared = {}
    for use, needed in {"core": project["dependencies"], **extras}.items():
        for requirement in needed:
            found = re.fullmatch(r"([\w-]+)(?:\[[\w,]+\])?(?:>=([\d.]+))?", requirement)
            assert found, requirement
            declared[found[1]] = doctor.Package(use, found[2])
    declared["onnxruntime-gpu"] = doctor.Package("core, for a GPU", declared["onnxruntime"].least)
    used = {name: package for name, package in doctor.PACKAGES.items() if package.use != "not used by Pinnace"}
    assert used == declared


def test_installed_builds_are_found_without_asking_for_metadata() -> None:
    """What a start reads off folders is what the metadata say; and a start does not import these."""
    builds = (ort.CPU_PACKAGE, ort.GPU_PACKAGE)
    known = {found.name: found.version for found in importlib.metadata.distributions() if found.name in builds}
    assert ort.package_versions() == known != {}
    code = "import sys, pinnace.runtime.engine.ort; print('importlib.metadata' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_the_doctor_sees_clashes_threads_and_no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "blocked").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "blocked"))
    monkeypatch.setenv(threads.THREADS_VARIABLE, "900")
    monkeypatch.setattr(ort, "package_versions", lambda: {"onnxruntime": "1", "onnxruntime-gpu": "1"})
    bad = {finding.subject: finding for finding in doctor.diagnose() if finding.level != doctor.OK}
    assert {"cache", "threads", "onnxruntime"} <= set(bad)
    assert "pip uninstall" in bad["onnxruntime"].remedy
    assert doctor.worst_level(list(bad.values())) == doctor.FAIL
    monkeypatch.setenv(threads.THREADS_VARIABLE, "many")
    assert any(f.subject == "threads" and f.level == doctor.FAIL for f in doctor.diagnose())
    assert doctor.worst_level([]) == doctor.OK


def test_two_builds_are_told_on_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "package_versions", lambda: {"onnxruntime": "1", "onnxruntime-gpu": "1"})
    assert "onnxruntime-gpu[cuda,cudnn]" in str(ort.clash())
