"""Golden numbers of a bundle: inputs with the reference's outputs, and whether a variant still gives them here."""

from __future__ import annotations

import dataclasses
import re
import types
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import numpy as np

from pinnace.errors import BundleError
from pinnace.runtime.inputs import Array
from pinnace.runtime.session import Session

MAX_BYTES: Final = 512 << 20
MAX_ARRAYS: Final = 10_000
_NAME: Final = re.compile(r"([\w.+-]+)/(in|out)/([\w.+-]+)")


@dataclasses.dataclass
class Case:
    """One recorded call: inputs and outputs by name."""

    inputs: dict[str, Array] = dataclasses.field(default_factory=dict)
    outputs: dict[str, Array] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Distance:
    """How far an output is from the golden one; ``value`` is acceptable up to ``limit``."""

    measure: str
    value: float
    limit: float
    difference: float
    index: tuple[int, ...]


def read_golden(path: Path) -> dict[str, Case]:
    """Read ``golden.npz``, whose arrays are named ``case/in/input`` and ``case/out/output``.

    Raises:
        BundleError: not such a file, or too large a one.
    """
    cases: dict[str, Case] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            # Sizes are checked before anything is unpacked: a small file can claim to hold terabytes.
            if len(members) > MAX_ARRAYS or sum(member.file_size for member in members) > MAX_BYTES:
                raise BundleError(f"{path.name} holds more than {MAX_ARRAYS:,} arrays or {MAX_BYTES:,} bytes; refused")
        with np.load(path, allow_pickle=False) as arrays:
            for name in arrays.files:
                match = _NAME.fullmatch(name)
                if match is None:
                    raise BundleError(f"{path.name} holds {name!r}; expected CASE/in/NAME or CASE/out/NAME")
                case = cases.setdefault(match[1], Case())
                (case.inputs if match[2] == "in" else case.outputs)[match[3]] = arrays[name]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, NotImplementedError, SyntaxError, MemoryError) as error:
        raise BundleError(f"{path.name} is not a readable file of arrays: {str(error)[:200]}") from None
    if not cases or not all(case.inputs and case.outputs for case in cases.values()):
        raise BundleError(f"{path.name} holds no whole case of inputs and outputs")
    return cases


def compare(session: Session, cases: Mapping[str, Case]) -> tuple[bool, str]:
    """Run every case and compare every output with the golden one.

    Args:
        session: the variant to check.
        cases: from `read_golden`.

    Returns:
        Whether all is within the precision's limit, and the words for it: the first output that is not, or the worst.

    Raises:
        PinnaceError: the session refuses an input, or a run fails.
    """
    measure = MEASURES[session.precision]
    worst: tuple[float, str] = (-1.0, "")
    for case_name, case in cases.items():
        got = session.run(case.inputs)
        for spec in session.outputs:
            if spec.name not in case.outputs:
                return False, f"case {case_name!r} has no golden output {spec.name!r}"
            want, have = case.outputs[spec.name], got[spec.name]
            if have.shape != want.shape:
                return False, f"case {case_name!r}: {spec.name} has shape {have.shape}, expected {want.shape}"
            distance = measure(have.astype(np.float64), want.astype(np.float64))
            text = (
                f"{spec.name}: {distance.measure} {distance.value:.3g} (at most {distance.limit:g}), "
                f"largest difference {distance.difference:.3g} at {list(distance.index)}"
            )
            if not distance.value <= distance.limit:
                return False, f"case {case_name!r}, output {text}"
            worst = max(worst, (distance.value, text))
    return True, f"{len(cases)} cases; worst output {worst[1]}"


def _difference(got: Array, want: Array) -> tuple[float, tuple[int, ...]]:
    if got.size == 0:
        return 0.0, ()
    gaps = np.abs(got - want)
    place = np.unravel_index(int(np.argmax(gaps)), gaps.shape)
    return float(gaps[place]), tuple(int(i) for i in place)


def _scaled_difference(limit: float) -> Callable[[Array, Array], Distance]:
    """Absolute below one, relative above: a float has a fixed number of digits."""

    def measure(got: Array, want: Array) -> Distance:
        gaps = np.abs(got - want) / np.maximum(1.0, np.abs(want))
        return Distance("difference", float(gaps.max(initial=0.0)), limit, *_difference(got, want))

    return measure


def _cosine(limit: float) -> Callable[[Array, Array], Distance]:
    def measure(got: Array, want: Array) -> Distance:
        norms = float(np.linalg.norm(got) * np.linalg.norm(want))
        away = 1.0 - float((got * want).sum()) / norms if norms > 0 else float(bool(got.any() or want.any()))
        return Distance("1 - cosine", away, 1.0 - limit, *_difference(got, want))

    return measure


# Precision -> how its outputs are compared with the reference's. For the integer precisions this finds a broken kernel
# or file; whether they are accurate enough is measured on real data, before they are published.
MEASURES: Final[Mapping[str, Callable[[Array, Array], Distance]]] = types.MappingProxyType(
    {"fp32": _scaled_difference(1e-4), "fp16": _cosine(0.999), "int8": _cosine(0.95), "int4": _cosine(0.9)}
)
