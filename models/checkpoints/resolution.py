"""Which weight of a model lies where, and what a checkpoint lacks for it, in words that help."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pinnace.errors import CheckpointError

# What programs of training put before a model's names: DataParallel, torch.compile, peft, a class around the model.
_WRAPPERS: Final = re.compile(r"^(?:(?:module|_orig_mod|base_model|model)\.)+")
_SHOWN: Final = 20
_UNUSED_SHOWN: Final = 3


@dataclass(frozen=True)
class TensorLocation:
    """Where a weight lies: file, type in the words of safetensors, shape, and absolute byte range in the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Resolution:
    """What a checkpoint has for a model.

    Attributes:
        bound: model name -> location, for every weight that the checkpoint has in the right shape.
        missing: model names that it lacks.
        unexpected: stored names that the model does not use, in today's spelling.
        mismatched: model name, the model's shape, the stored shape.
        untied: model names that should share another's tensor and are stored apart from it with other numbers.
        counts: key of config.json -> what it would have to be, for a mismatched weight whose rows it counts.
    """

    bound: Mapping[str, TensorLocation]
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()
    untied: tuple[str, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)

    def require(self, source: str | Path, model: str, *, init_missing: bool = False) -> None:
        """Raise unless the checkpoint has every weight of the model.

        Args:
            source: the checkpoint, for the text.
            model: name of the model's class, for the text.
            init_missing: accept missing weights, which the caller then makes afresh.

        Raises:
            CheckpointError: a shape differs, or a weight is missing; the text names every one up to a limit.
        """
        if self.mismatched:
            rows = [f"{name}: the model needs {list(need)}, got {list(got)}" for name, need, got in self.mismatched]
            said = ", ".join(f"{key} is {rows}" for key, rows in self.counts.items())
            raise CheckpointError(
                f"{source} does not fit {model}: {counted(len(rows), 'weight')} of another shape\n  {listed(rows)}\n"
                "  check that config.json belongs to these weights, num_labels and vocab_size first"
                + (f"\n  they fit where config.json says: {said}" if said else "")
            )
        if self.missing and not init_missing:
            unused = ", ".join([*self.unexpected[:_UNUSED_SHOWN], *["..."] * (len(self.unexpected) > _UNUSED_SHOWN)])
            remedy = (
                "choose a task that the checkpoint was trained for, or accept fresh random ones with --init-missing"
            )
            if wrapped := self._wrapped():
                remedy = (
                    f"{len(wrapped)} of them stand there behind {wrapped[0]!r}, which a training program put before "
                    "the names: save them without it"
                )
            raise CheckpointError(
                f"{source} lacks {counted(len(self.missing), 'weight')} of {model}\n  {listed(self.missing)}\n"
                + (f"  it holds, unused: {unused}\n" if unused else "")
                + f"  {remedy}"
            )

    def _wrapped(self) -> list[str]:
        """What stands before the name of each missing weight that is stored behind words of a training program."""
        stored = {_WRAPPERS.sub("", name): name for name in self.unexpected}
        found = []
        for name in self.missing:
            for spelling in (name, _WRAPPERS.sub("", name), name.partition(".")[2]):
                if (whole := stored.get(spelling)) is not None:
                    found.append(whole.removesuffix(name) if whole.endswith(name) else whole.removesuffix(spelling))
                    break
        return found


def counted(count: int, noun: str) -> str:
    """A number with its noun: ``1 weight``, ``2 weights``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def listed(names: Iterable[str]) -> str:
    """Names one below the other, the first of many."""
    rows = list(names)
    more = [f"... and {len(rows) - _SHOWN} more"] if len(rows) > _SHOWN else []
    return "\n  ".join([*rows[:_SHOWN], *more])
