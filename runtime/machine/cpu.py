"""The processor as quantization sees it: its name, its features, and whether its int8 sums are exact."""

from __future__ import annotations

import dataclasses
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from pinnace.runtime.machine.threads import ROOT

Int8Dot = Literal["exact", "saturating", "unknown"]

# Processor feature, by its name in Linux -> what it is good for.
FEATURES: Final[Mapping[str, str]] = {
    "avx2": "fp32 and int8 on x86",
    "avx512f": "wide fp32",
    "avx_vnni": "int8 without saturation",
    "avx512_vnni": "int8 without saturation",
    "amx_int8": "int8 in tiles",
    "asimd": "fp32 and int8 on ARM",
    "asimddp": "int8 on ARM",
    "i8mm": "int8 in tiles on ARM",
}
# Products of four bytes are added up in 32 bits at once.
EXACT_INT8: Final = frozenset({"avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm"})
# Without those, x86 multiplies unsigned by signed bytes and adds two products in 16 bits, which saturate.
SATURATING_INT8: Final = frozenset({"avx2", "avx512f"})

# ARM kernels write numbers where x86 ones write names.
_IMPLEMENTERS: Final[Mapping[str, str]] = {
    "0x41": "ARM", "0x46": "Fujitsu", "0x48": "HiSilicon", "0x4e": "NVIDIA", "0x50": "Ampere", "0x51": "Qualcomm",
    "0x61": "Apple", "0x6d": "Microsoft", "0xc0": "Ampere",
}  # fmt: skip
# Name in macOS -> name in Linux.
_SYSCTL_FEATURES: Final[Mapping[str, str]] = {
    "hw.optional.avx2_0": "avx2",
    "hw.optional.avx512f": "avx512f",
    "hw.optional.avx512vnni": "avx512_vnni",
    "hw.optional.neon": "asimd",
    "hw.optional.AdvSIMD": "asimd",
    "hw.optional.arm.FEAT_DotProd": "asimddp",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
}
_SYSCTL: Final = "/usr/sbin/sysctl"


@dataclasses.dataclass(frozen=True)
class Cpu:
    """Facts about a processor that decide which quantized variants are right and fast on it.

    Attributes:
        vendor: who designed it, as it says itself (``GenuineIntel``, ``AuthenticAMD``, ``ARM``), or ``""``.
        name: its name for a reader.
        machine: the instruction set, such as ``x86_64``, ``aarch64`` or ``arm64``.
        features: those of `FEATURES` that every core has, in that order.
        known: whether the features could be read at all.
    """

    vendor: str
    name: str
    machine: str
    features: tuple[str, ...]
    known: bool

    def int8_dot(self) -> Int8Dot:
        """Say how ONNX Runtime adds up products of unsigned and signed bytes here.

        ``exact``: in 32 bits. ``saturating``: two products in 16 bits, so that weights beyond 7 bits may give wrong
        sums. ``unknown``: nothing is known, and reduced range is the safe choice.
        """
        if EXACT_INT8.intersection(self.features):
            return "exact"
        return "saturating" if SATURATING_INT8.intersection(self.features) else "unknown"

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as plain data."""
        return {**dataclasses.asdict(self), "features": list(self.features)}


def read_cpu(root: Path = ROOT) -> Cpu:
    """Read the processor's facts; nothing is loaded or installed for it.

    Args:
        root: the folder that holds ``proc/cpuinfo``; tests have their own.
    """
    try:
        text = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return from_sysctl(_sysctl()) if sys.platform == "darwin" and root == ROOT else _unknown()
    return from_cpuinfo(text)


def from_cpuinfo(text: str) -> Cpu:
    """Read the text of Linux's ``/proc/cpuinfo``; features are those that all cores share."""
    cores = [set(line.split()) for line in _fields(text, "flags|Features")]
    shared = set.intersection(*cores) if cores else set()
    vendor = next(iter(_fields(text, "vendor_id")), "")
    if implementer := next(iter(_fields(text, "CPU implementer")), ""):
        vendor = _IMPLEMENTERS.get(implementer, implementer)
    part = next(iter(_fields(text, "CPU part")), "")
    name = next(iter(_fields(text, "model name")), f"{vendor} {part}".strip())
    return _cpu(vendor, name, shared, bool(cores))


def from_sysctl(text: str) -> Cpu:
    """Read the output of macOS's ``sysctl machdep.cpu hw.optional``."""
    pairs = dict(re.findall(r"^([\w.]+):\s*(.*)$", text, re.MULTILINE))
    features = {feature for key, feature in _SYSCTL_FEATURES.items() if pairs.get(key) == "1"}
    name = pairs.get("machdep.cpu.brand_string", "")
    vendor = pairs.get("machdep.cpu.vendor", "Apple" if name.startswith("Apple") else "")
    return _cpu(vendor, name, features, any(key.startswith("hw.optional.") for key in pairs))


def _fields(text: str, names: str) -> list[str]:
    return re.findall(rf"^(?:{names})[ \t]*:[ \t]*(.+)$", text, re.MULTILINE)


def _sysctl() -> str:
    try:
        done = subprocess.run([_SYSCTL, "machdep.cpu", "hw.optional"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout


def _cpu(vendor: str, name: str, features: set[str], known: bool) -> Cpu:
    machine = platform.machine()
    useful = tuple(feature for feature in FEATURES if feature in features)
    return Cpu(vendor, name or platform.processor() or machine, machine, useful, known)


def _unknown() -> Cpu:
    return _cpu("", "", set(), known=False)
