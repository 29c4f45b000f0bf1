"""A Hugging Face checkpoint folder as a table of byte ranges: which file holds which weight.

No weight is ever loaded here.

The folder may come from a stranger, so only safetensors are opened, every name is checked and every size is bounded.
"""

from __future__ import annotations

import json
import re
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pinnace.errors import CheckpointError
from pinnace.models.checkpoints.hub import check_adapter, check_links, check_pointer
from pinnace.models.checkpoints.names import NameRules
from pinnace.models.checkpoints.resolution import Resolution, TensorLocation, counted, listed
from pinnace.safetensors_header import read_header

SINGLE_NAME: Final = "model.safetensors"
INDEX_NAME: Final = "model.safetensors.index.json"
MAX_INDEX_BYTES: Final = 16 * 1024 * 1024
MAX_SHARDS: Final = 10_000
_SHARD_NAME: Final = re.compile(r"[\w-][\w.-]{0,199}\.safetensors", re.ASCII)
_PICKLE_SUFFIXES: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# The pickles that hold a model's weights; beside them lie those of the trainer: optimizer.pt, training_args.bin, ...
_MODEL_PICKLE: Final = re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin")
_FLOATS: Final = ("F32", "F16", "BF16", "F64")


@dataclass(frozen=True)
class Checkpoint:
    """The weights of a folder, by stored name.

    Attributes:
        folder: the checkpoint.
        tensors: stored name -> location.
        files: the safetensors files, in order.
    """

    folder: Path
    tensors: Mapping[str, TensorLocation]
    files: tuple[Path, ...]
    # Keeps the folder of a converted pickle alive as long as this object.
    _keep: Any = field(default=None, repr=False, compare=False)

    @classmethod
    def open(cls, folder: str | Path, *, allow_pickle: bool = False) -> Checkpoint:
        """Find the weights of a checkpoint folder and read their headers.

        Args:
            folder: holds ``model.safetensors``, or shards with ``model.safetensors.index.json``. A folder of the Hub
                cache, whose files are links, is as good as any.
            allow_pickle: where there are no safetensors, convert a pickle file with PyTorch's restricted reader.

        Raises:
            CheckpointError: no weights, pickles only, a damaged file, or an index that is unsafe or wrong.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise CheckpointError(f"there is no folder {folder}; give the one that holds config.json and {SINGLE_NAME}")
        if (folder / SINGLE_NAME).is_file():
            return cls.of_files(folder, (folder / SINGLE_NAME,))
        if (folder / INDEX_NAME).is_file():
            index = _read_index(folder)
            checkpoint = cls.of_files(folder, tuple(folder / name for name in sorted(set(index.values()))))
            _check_index(index, checkpoint)
            return checkpoint
        pickles = _pickles(folder)
        if pickles and allow_pickle:
            from pinnace.models.checkpoints.pickles import converted

            converted_folder = converted(pickles)
            file = Path(converted_folder.name) / SINGLE_NAME
            return cls(folder, cls.of_files(folder, (file,)).tensors, (file,), converted_folder)
        if pickles:
            raise CheckpointError(
                f"{folder} holds its weights as pickle ({', '.join(path.name for path in pickles[:3])}), which can run "
                f"code when it is read; refused.\n  use a revision that has {SINGLE_NAME}, or, where you trust "
                "the file, let it be converted: --allow-pickle (needs torch 2.10 or newer)"
            )
        check_links(folder)
        check_adapter(folder)
        if (folder / SINGLE_NAME).exists():
            raise CheckpointError(f"{folder / SINGLE_NAME} is not a regular file; expected a safetensors file")
        found = sorted(path.name for path in folder.iterdir())
        raise CheckpointError(f"{folder} has no {SINGLE_NAME}\n  it has: {listed(found) or 'nothing'}")

    @classmethod
    def of_files(cls, folder: Path, files: tuple[Path, ...]) -> Checkpoint:
        """Take the weights of these safetensors files as one checkpoint.

        Raises:
            CheckpointError: a damaged file, or a name that stands in two of them.
        """
        tensors: dict[str, TensorLocation] = {}
        for file in files:
            check_pointer(file)
            for name, entry in read_header(file).items():
                if name in tensors:
                    raise CheckpointError(f"{folder}: {name!r} is both in {tensors[name].file.name} and in {file.name}")
                tensors[name] = TensorLocation(file, *entry)
        return cls(folder, types.MappingProxyType(tensors), files)

    def resolve(self, needed: Mapping[str, tuple[int, ...]], rules: NameRules, *, tied: bool = True) -> Resolution:
        """Find each weight of a model.

        Args:
            needed: model name -> shape.
            rules: of the architecture.
            tied: the configuration's ``tie_word_embeddings``.

        Raises:
            CheckpointError: two stored names mean the same weight, or a weight is not of a floating-point type.
        """
        stored = self._by_canonical_name(rules)
        own = {name: next((s for s in rules.spellings(name) if s in stored), None) for name in needed}
        bound: dict[str, TensorLocation] = {}
        missing: list[str] = []
        mismatched: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = []
        counts: dict[str, int] = {}
        used = {canonical for canonical in own.values() if canonical is not None}
        for name, shape in needed.items():
            canonical = own[name] or _shared(name, rules, stored, tied)
            if canonical is None:
                missing.append(name)
                continue
            place = self.tensors[stored[canonical]]
            if place.dtype not in _FLOATS:
                raise CheckpointError(
                    f"{place.file} holds {stored[canonical]!r} as {place.dtype}, expected one of {', '.join(_FLOATS)}; "
                    "a checkpoint quantized by another tool cannot be used: start from the original one"
                )
            used.add(canonical)
            if place.shape == tuple(shape):
                bound[name] = place
            else:
                mismatched.append((name, tuple(shape), place.shape))
                if (key := rules.count_key(name)) and place.shape[1:] == tuple(shape)[1:]:
                    counts[key] = place.shape[0]
        for target, source in rules.tied.items():
            # A graph may need the tied name only: its source is not unexpected then.
            if target in needed:
                used.update(s for s in rules.spellings(source) if s in stored)
        unexpected = [name for name in stored if name not in used and not rules.ignores(name)]
        return Resolution(
            types.MappingProxyType(bound), tuple(sorted(missing)), tuple(sorted(unexpected)), tuple(mismatched),
            _untied(bound, rules) if tied else (), counts,
        )  # fmt: skip

    def _by_canonical_name(self, rules: NameRules) -> dict[str, str]:
        result: dict[str, str] = {}
        for name in self.tensors:
            canonical = rules.canonical(name)
            if canonical in result:
                raise CheckpointError(f"{self.folder}: {name!r} and {result[canonical]!r} are the same weight")
            result[canonical] = name
        return result


def _pickles(folder: Path) -> tuple[Path, ...]:
    """The pickle files of a folder: the model's own where their names say so, else all."""
    found = sorted(path for path in folder.iterdir() if path.suffix in _PICKLE_SUFFIXES)
    named = [path for path in found if _MODEL_PICKLE.fullmatch(path.name)]
    whole = [path for path in named if path.name == "pytorch_model.bin"]  # counts before its shards, as in transformers
    return tuple(whole or named or found)


def _shared(name: str, rules: NameRules, stored: Mapping[str, str], tied: bool) -> str | None:
    """The stored tensor that a tied name borrows, in either direction."""
    pairs = [(target, source) for target, source in rules.tied.items() if tied or target in rules.shared]
    partners = [source for target, source in pairs if target == name]
    partners += [target for target, source in pairs if name in rules.spellings(source)]
    return next((s for partner in partners for s in rules.spellings(partner) if s in stored), None)


def _untied(bound: Mapping[str, TensorLocation], rules: NameRules) -> tuple[str, ...]:
    pairs = ((name, bound.get(name), bound.get(source)) for name, source in rules.tied.items())
    return tuple(name for name, mine, other in pairs if mine and other and not _same_bytes(mine, other))


def _same_bytes(one: TensorLocation, other: TensorLocation) -> bool:
    if one == other:
        return True
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    left = one.end - one.start
    with one.file.open("rb") as a, other.file.open("rb") as b:
        a.seek(one.start)
        b.seek(other.start)
        while left > 0:
            size = min(left, 1 << 20)
            if a.read(size) != b.read(size):
                return False
            left -= size
    return True


def _read_index(folder: Path) -> dict[str, str]:
    """Read which shard holds which weight; every shard's name is plain and in the folder."""
    path = folder / INDEX_NAME
    if path.stat().st_size > MAX_INDEX_BYTES:
        raise CheckpointError(f"{path} is larger than {MAX_INDEX_BYTES:,} bytes; refused")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {str(error)[:200]}") from None
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not names or not all(isinstance(shard, str) for shard in names.values()):
        raise CheckpointError(f"{path} must have a weight_map from weight names to file names")
    shards = sorted(set(names.values()))
    if len(shards) > MAX_SHARDS:
        raise CheckpointError(f"{path} names {len(shards):,} shards, at most {MAX_SHARDS:,} are read")
    for shard in shards:
        if _SHARD_NAME.fullmatch(shard) is None:
            raise CheckpointError(
                f"{path} names the file {shard[:200]!r}; expected a plain name such as {SINGLE_NAME!r}"
            )
        if not (folder / shard).is_file():
            raise CheckpointError(f"{path} names {shard}, which is not in the folder; download it again")
    return names


def _check_index(index: Mapping[str, str], checkpoint: Checkpoint) -> None:
    actual = {name: place.file.name for name, place in checkpoint.tensors.items()}
    wrong = sorted(name for name in {*index, *actual} if index.get(name) != actual.get(name))
    if wrong:
        name = wrong[0]
        raise CheckpointError(
            f"{checkpoint.folder / INDEX_NAME} disagrees with its shards on {counted(len(wrong), 'weight')}: {name!r} "
            f"is in {index.get(name, 'no file')} says the index, in {actual.get(name, 'no file')} say the shards"
        )
