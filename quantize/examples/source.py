"""Examples that calibrate and judge variants: from a user's file, or public-domain texts of the package, and split."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, overload

from pinnace.errors import UsageError
from pinnace.quantize.examples import defaults, files
from pinnace.quantize.examples.example import Example, normalized
from pinnace.quantize.examples.forms import MASKED_TASKS
from pinnace.runtime.tokenization.tokenizer import load_tokenizer
from pinnace.spec import canonical_task

CALIBRATION: Final = 128
USUAL_MASK: Final = "[MASK]"


@dataclasses.dataclass(frozen=True)
class Examples(Sequence[Example]):
    """Examples of one task, in order.

    Attributes:
        task: the task's full name.
        items: the examples.
        source: the file's name, or "built-in texts", for reports: never a path.
    """

    task: str
    items: tuple[Example, ...]
    source: str

    @property
    def labelled(self) -> bool:
        """Whether every example has a label."""
        return bool(self.items) and all(item.label is not None for item in self.items)

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Example]:
        return iter(self.items)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        return self.items[index]


def read_examples(
    path: Path | None,
    task: str,
    *,
    mask_token: str = USUAL_MASK,
    tokens: int | None = None,
) -> Examples:
    """Read examples of a task from a file, or take the built-in ones.

    Args:
        path: a text file (one text a line; for text-generation with blank lines in it, one a paragraph), JSON lines or
            a JSON list (a text or an object with the pipeline's fields and perhaps a label), or SQuAD's JSON. None
            takes texts in the public domain that lie in the package and have no labels.
        task: a task's name or alias.
        mask_token: what the model writes for a mask, see `mask_of`; a text of a task with masks that has none gets one.
        tokens: most tokens of a row, within which a mask is set; None where it is not known.

    Raises:
        UsageError: no such file, or one that cannot be read.
        InputError: what is not an example of this task, with its line.
    """
    name = canonical_task(task)
    if path is None:
        return Examples(name, tuple(defaults.make(name, mask_token, tokens)), defaults.SOURCE)
    return Examples(name, tuple(files.read(Path(path), name, mask_token, tokens)), Path(path).name)


def mask_of(folder: Path, task: str) -> str:
    """What the tokenizer of a bundle or checkpoint writes for a mask; for a task without masks, nothing is read.

    Args:
        folder: has a tokenizer.
        task: a task's name or alias.

    Raises:
        UsageError: a task with masks, and a tokenizer that names none.
        BundleError: files that make no tokenizer.
    """
    if canonical_task(task) not in MASKED_TASKS:
        return ""
    token = load_tokenizer(folder).mask_token
    if token is None:
        raise UsageError(
            f"{task} is judged on masked words, and the tokenizer of {folder.name} names no mask; "
            "add mask_token to its tokenizer_config.json"
        )
    return token


def split(examples: Examples, seed: int = 0, calibration: int | None = None) -> tuple[Examples, Examples]:
    """Split into examples that calibrate and examples that judge, without a text in common.

    Examples that share a content, letter case and blanks aside, stay together. Which go where depends on their texts
    and the seed, not on their order.

    Args:
        examples: at least two with different contents.
        seed: another one gives another split.
        calibration: how many examples to calibrate with, about, as they go in groups; None takes a third, at most 128.

    Returns:
        The examples to calibrate with and those to judge with, each in the order of ``examples``.

    Raises:
        UsageError: fewer than two groups that share nothing, or a senseless number.
    """
    if len(examples) < 2:
        raise UsageError(
            f"{examples.source} has {len(examples)} example{'' if len(examples) == 1 else 's'}, expected at least two: "
            "what calibrates never judges. Give more examples"
        )
    if calibration is None:
        calibration = min(CALIBRATION, max(1, len(examples) // 3))
    if not 0 < calibration < len(examples):
        raise UsageError(
            f"{calibration} examples to calibrate with were asked for, of {len(examples)} from {examples.source}; "
            "expected at least 1, and at least 1 left over to judge with. Give more examples"
        )
    contents = [tuple(map(normalized, item.content)) for item in examples]
    groups = sorted(_groups(contents), key=lambda group: _rank(contents, group, seed))
    if len(groups) < 2:
        raise UsageError(
            f"the {len(examples)} examples of {examples.source} all share a text, so what calibrates would also judge; "
            "expected at least two without a common text. Give other examples"
        )
    chosen: set[int] = set()
    for group in groups:
        if len(chosen) + len(group) <= calibration:
            chosen.update(group)
    if not chosen:  # every group is larger than what was asked for: the smallest must do
        smallest = min(groups, key=len)
        chosen.update(smallest)
    used = tuple(item for i, item in enumerate(examples) if i in chosen)
    rest = tuple(item for i, item in enumerate(examples) if i not in chosen)
    return dataclasses.replace(examples, items=used), dataclasses.replace(examples, items=rest)


def _groups(contents: Sequence[Sequence[str]]) -> list[list[int]]:
    """Join the examples that share a content, also by way of others; places in rising order."""
    parent = list(range(len(contents)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    owner: dict[str, int] = {}
    for i, texts in enumerate(contents):
        for text in texts:
            parent[root(i)] = root(owner.setdefault(text, i))
    groups: dict[int, list[int]] = {}
    for i in range(len(contents)):
        groups.setdefault(root(i), []).append(i)
    return list(groups.values())


def _rank(contents: Sequence[Sequence[str]], group: Sequence[int], seed: int) -> bytes:
    """A pseudo-random place of a group, the same wherever its examples stand in the file."""
    first = min(min(contents[i], default="") for i in group)
    return hashlib.sha256(f"{seed} {first}".encode(errors="surrogatepass")).digest()
