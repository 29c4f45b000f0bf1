"""Golden numbers of a bundle: inputs with the reference's outputs, and whether a variant still gives them here."""

from __future__ import annotations

import dataclasses
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from pinnace.arrays import Array
from pinnace.compare import GATES, difference, of_real_tokens
from pinnace.errors import BundleError, CheckFailed
from pinnace.runtime.engine.ort import as_halves
from pinnace.runtime.engine.session import Session
from pinnace.spec import TensorSpec

MAX_BYTES: Final = 512 << 20
MAX_ARRAYS: Final = 10_000
_NAME: Final = re.compile(r"([\w.+-]+)/(in|out)/([\w.+-]+)")


@dataclasses.dataclass
class GoldenCase:
    """One recorded call: inputs and outputs by name."""

    inputs: dict[str, Array] = dataclasses.field(default_factory=dict)
    outputs: dict[str, Array] = dataclasses.field(default_factory=dict)


def write_golden(path: Path, cases: Mapping[str, GoldenCase]) -> None:
    """Write cases in the form that `read_golden` reads."""
    arrays: dict[str, Any] = {}
    for name, case in cases.items():
        arrays |= {f"{name}/in/{key}": value for key, value in case.inputs.items()}
        arrays |= {f"{name}/out/{key}": value for key, value in case.outputs.items()}
    np.savez(path, allow_pickle=False, **arrays)


def read_golden(path: Path) -> dict[str, GoldenCase]:
    """Read ``golden.npz``, whose arrays are named ``case/in/input`` and ``case/out/output``.

    Raises:
        BundleError: not such a file, or too large a one.
    """
    cases: dict[str, GoldenCase] = {}
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
                case = cases.setdefault(match[1], GoldenCase())
                (case.inputs if match[2] == "in" else case.outputs)[match[3]] = arrays[name]
    except BundleError:
        raise
    except Exception as error:  # of damaged bytes, the readers of zip, zlib and numpy each raise errors of many kinds
        raise BundleError(f"{path.name} is not a readable file of arrays: {str(error)[:200]}") from None
    if not cases or not all(case.inputs and case.outputs for case in cases.values()):
        raise BundleError(f"{path.name} holds no whole case of inputs and outputs")
    return cases


def check_numbers(session: Session, cases: Mapping[str, GoldenCase]) -> str:
    """Run every case and compare every output with the golden one, by the gate of the session's precision.

    Args:
        session: the variant to check.
        cases: from `read_golden`.

    Returns:
        What was compared, in words, with the worst output.

    Raises:
        CheckFailed: the first output beyond the gate, with the largest difference and its place.
        PinnaceError: the session refuses an input, or a run fails.
    """
    if session.precision not in GATES:
        raise CheckFailed(f"it is not known how far {session.precision} may lie from the reference")
    # A rate needs more rows than a few golden cases have.
    gate = dataclasses.replace(GATES[session.precision], min_top1=0.0)
    worst: tuple[float, str] = (-1.0, "")
    # One set of golden numbers serves all precisions, and an fp16 decoder takes fp16 keys and values.
    halves = {spec.name for spec in session.inputs if spec.dtype == "float16"}
    for case_name, case in cases.items():
        got = session.run(as_halves(case.inputs, halves))
        for spec in session.outputs:
            where = f"case {case_name!r}, output {spec.name!r}"
            if spec.name not in case.outputs:
                raise CheckFailed(f"{where} has no golden numbers")
            want, have = case.outputs[spec.name], got[spec.name]
            if have.shape != want.shape:
                raise CheckFailed(f"{where} has the shape {list(have.shape)}, expected {list(want.shape)}")
            real = _real(spec, case, have), _real(spec, case, want)
            found = difference(*real)
            if missed := found.miss(gate):
                raise CheckFailed(f"{where}: {missed}; {_largest(*real)}")
            text = f"{spec.name}, largest difference {found.max_abs:.3g}, cosine {found.cosine:.6f}"
            worst = max(worst, (found.max_abs, text))
    return f"{len(cases)} case{'s' if len(cases) > 1 else ''}; worst output {worst[1]}"


def _real(spec: TensorSpec, case: GoldenCase, array: Array) -> Array:
    """What an output holds for tokens; a golden case's rows begin at their first place and are padded behind."""
    mask = case.inputs.get("attention_mask")
    if mask is None:
        return array
    keys = mask.reshape(-1, mask.shape[-1]) != 0
    return of_real_tokens(array, spec.shape, keys[:, : case.inputs["input_ids"].shape[-1]], keys)


def _largest(got: Array, want: Array) -> str:
    """Say where two arrays of one shape differ most, and what stands there."""
    gaps = np.abs(got.astype(np.float64) - want.astype(np.float64))
    place = np.unravel_index(int(np.argmax(gaps)), gaps.shape)
    index = [int(i) for i in place]
    return f"at {index} it is {float(got[place]):.6g}, the reference has {float(want[place]):.6g}"
