"""Reading the processor: real descriptions from many machines, and what they mean for int8 sums."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pinnace.runtime.machine import cpu

MILAN = "vendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC 7763\nflags\t\t: fpu avx avx2 fma\n"
SKYLAKE = "vendor_id\t: GenuineIntel\nmodel name\t: Xeon Gold 6148\nflags\t\t: fpu avx2 avx512f avx512bw avx512vl\n"
SAPPHIRE = SKYLAKE.replace("avx512vl", "avx_vnni avx512_vnni amx_tile amx_int8")
ALDER = "vendor_id\t: GenuineIntel\nmodel name\t: 12th Gen Core i5\nflags\t\t: fpu avx2 avx_vnni\n"
ATOM = "vendor_id\t: GenuineIntel\nmodel name\t: Atom\nflags\t\t: fpu sse2 sse4_1\n"
PI4 = "processor\t: 0\nFeatures\t: fp asimd evtstrm crc32 cpuid\nCPU implementer\t: 0x41\nCPU part\t: 0xd08\n"
NEOVERSE = PI4.replace("cpuid", "asimddp").replace("0xd08", "0xd0c")
GRAVITON3 = NEOVERSE.replace("asimddp", "asimddp sve i8mm")
SPARC = "cpu\t\t: TI UltraSparc\n"


@pytest.mark.parametrize(
    ("text", "name", "features", "dot"),
    [
        (MILAN, "AMD EPYC 7763", ("avx2",), "saturating"),
        (SKYLAKE, "Xeon Gold 6148", ("avx2", "avx512f"), "saturating"),
        (SAPPHIRE, "Xeon Gold 6148", ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8"), "exact"),
        (ALDER, "12th Gen Core i5", ("avx2", "avx_vnni"), "exact"),
        (ATOM, "Atom", (), "unknown"),
        (PI4, "ARM 0xd08", ("asimd",), "unknown"),
        (NEOVERSE, "ARM 0xd0c", ("asimd", "asimddp"), "exact"),
        (GRAVITON3, "ARM 0xd0c", ("asimd", "asimddp", "i8mm"), "exact"),
    ],
)
def test_descriptions_of_linux(tmp_path: Path, text: str, name: str, features: tuple[str, ...], dot: str) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(text * 4)
    read = cpu.read_cpu(tmp_path)
    assert (read.name, read.features, read.int8_dot(), read.known) == (name, features, dot, True)


def test_only_features_of_every_core_count() -> None:
    read = cpu.from_cpuinfo(SAPPHIRE + "\n" + MILAN)
    assert read.features == ("avx2",) and read.int8_dot() == "saturating"


def test_vendors() -> None:
    assert [cpu.from_cpuinfo(text).vendor for text in (MILAN, SKYLAKE, PI4, SPARC)] == [
        "AuthenticAMD", "GenuineIntel", "ARM", "",
    ]  # fmt: skip


APPLE_M1 = """machdep.cpu.brand_string: Apple M1
machdep.cpu.core_count: 8
hw.optional.arm.FEAT_DotProd: 1
hw.optional.arm.FEAT_I8MM: 0
hw.optional.AdvSIMD: 1
hw.optional.neon: 1
"""
MACBOOK_2019 = """machdep.cpu.vendor: GenuineIntel
machdep.cpu.brand_string: Intel(R) Core(TM) i9-9980HK CPU @ 2.40GHz
hw.optional.avx2_0: 1
hw.optional.avx512f: 0
"""


def test_descriptions_of_macos() -> None:
    apple, intel = cpu.from_sysctl(APPLE_M1), cpu.from_sysctl(MACBOOK_2019)
    assert (apple.vendor, apple.name, apple.features) == ("Apple", "Apple M1", ("asimd", "asimddp"))
    assert apple.int8_dot() == "exact"
    assert (intel.vendor, intel.features, intel.int8_dot()) == ("GenuineIntel", ("avx2",), "saturating")
    assert intel.name.startswith("Intel(R) Core(TM) i9")


def test_macos_is_asked_where_there_is_no_cpuinfo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cpu, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(cpu, "_sysctl", lambda: APPLE_M1)
    assert cpu.read_cpu(tmp_path).name == "Apple M1"


def test_nothing_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = cpu.read_cpu(tmp_path)
    assert (nothing.features, nothing.known, nothing.int8_dot()) == ((), False, "unknown")
    assert nothing.name
    assert not cpu.from_cpuinfo(SPARC).known
    monkeypatch.setattr(cpu, "_SYSCTL", str(tmp_path / "missing"))
    assert not cpu.from_sysctl(cpu._sysctl()).known


def test_this_machine_agrees_with_its_own_description() -> None:
    read = cpu.read_cpu()
    assert read.to_dict()["features"] == list(read.features) and read.name and read.machine
    path = Path("/proc/cpuinfo")
    if path.exists() and "avx2" in path.read_text():
        assert "avx2" in read.features and read.int8_dot() in ("exact", "saturating")
