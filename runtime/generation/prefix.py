"""A beginning that many prompts share, computed once: its keys and values, in memory or in a file."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

import numpy as np

from pinnace.arrays import Array
from pinnace.errors import BundleError, CheckpointError, InputError
from pinnace.replacing import replacing
from pinnace.runtime.generation.decoder import Decoder
from pinnace.runtime.generation.kvcache_base import RowState
from pinnace.safetensors_header import read_header, read_metadata
from pinnace.safetensors_writer import write_safetensors

_WORDS: Final = {"float32": "F32", "float16": "F16", "int64": "I64"}
_FORMAT: Final = "pinnace-prefix-1"


class Prefix:
    """Tokens and their keys and values. It never changes, so any number of threads and requests may share it.

    Args:
        ids: the tokens [T].
        states: for each layer a key and a value [heads, T, head_size].
        model: `fingerprint` of the model that computed them.
    """

    def __init__(self, ids: Array, states: RowState, model: str) -> None:
        self.ids = np.array(ids, np.int64)
        self._states = [np.ascontiguousarray(state) for state in states]
        self.model = model

    def __len__(self) -> int:
        return len(self.ids)

    def shared(self, prompt: Array, decoder: Decoder) -> int:
        """Return how many first tokens a prompt takes from here: all that are equal, but for the prompt's last.

        None of them where the keys of so long a prompt are other ones.
        """
        if not decoder.splits(len(prompt)):
            return 0
        most = min(len(self.ids), len(prompt) - 1)
        different = np.flatnonzero(self.ids[:most] != prompt[:most])
        return int(different[0]) if len(different) else most

    def state(self, tokens: int) -> RowState:
        """Return keys and values of the first ``tokens`` tokens."""
        return [state[:, :tokens] for state in self._states]

    def check(self, decoder: Decoder) -> None:
        """Check that a model can use it.

        Raises:
            InputError: another model, or another precision of it, computed it.
        """
        if self.model != fingerprint(decoder):
            raise InputError(
                f"the prefix was computed by another model or precision than {decoder.session.bundle.path.name} "
                f"{decoder.session.precision}; keys and values fit only the weights that made them. Compute it again"
            )

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, whole or not at all.

        Raises:
            MachineError: it cannot be written.
        """
        tensors = {"ids": self.ids} | {f"state.{i}": state for i, state in enumerate(self._states)}
        facts = {"format": _FORMAT, "model": self.model, "sha256": _digest(tensors)}
        entries = {name: (_WORDS[tensor.dtype.name], tensor.shape) for name, tensor in tensors.items()}
        with replacing(Path(path)) as file:
            write_safetensors(file, entries, lambda name: iter([tensors[name].data]), facts)

    @classmethod
    def load(cls, path: str | Path, decoder: Decoder) -> Prefix:
        """Read a file that `save` wrote; it may come from a stranger.

        Raises:
            BundleError: no such file, not a prefix, or a damaged one.
            InputError: another model's.
        """
        source = Path(path)
        try:
            entries, facts = read_header(source), read_metadata(source)
        except CheckpointError as error:
            raise BundleError(f"prefix: {error}") from None
        if facts.get("format") != _FORMAT:
            raise BundleError(f"{source.name} is not a saved prefix; expected a file that Prefix.save wrote")
        made = cls(np.zeros(0, np.int64), [], facts.get("model", ""))
        made.check(decoder)
        spec, word = decoder.spec, _WORDS[decoder.cache_dtype]
        tokens = entries["ids"].shape[0] if "ids" in entries and len(entries["ids"].shape) == 1 else 0
        expected = {"ids": ("I64", (tokens,))} | {
            f"state.{i}": (word, (spec.heads, tokens, spec.head_size)) for i in range(2 * spec.layers)
        }
        if not 0 < tokens <= decoder.limit or {n: (e.dtype, e.shape) for n, e in entries.items()} != expected:
            raise BundleError(f"{source.name}: its tensors are not the keys and values of this model; compute it again")
        tensors = {}
        with source.open("rb") as file:
            for name, entry in entries.items():
                file.seek(entry.start)
                dtype = np.dtype("int64" if name == "ids" else decoder.cache_dtype)
                data = file.read(entry.end - entry.start)
                if len(data) != entry.end - entry.start:
                    raise BundleError(f"{source.name} was cut off while it was read")
                tensors[name] = np.frombuffer(data, dtype).reshape(entry.shape)
        if _digest({name: tensors[name] for name in expected}) != facts.get("sha256"):
            raise BundleError(f"{source.name} was changed after it was written: its SHA-256 differs. Compute it again")
        decoder.check(tensors["ids"], f"the prefix {source.name}")
        return cls(tensors["ids"], [tensors[f"state.{i}"] for i in range(2 * spec.layers)], made.model)


def fingerprint(decoder: Decoder) -> str:
    """Return what names a model and precision: a hash of its graph's and weights' hashes."""
    bundle = decoder.session.bundle
    variant = bundle.variant(decoder.session.precision)
    files = [variant.graph, *variant.weights]
    return hashlib.sha256("\n".join(bundle.manifest.files[name].sha256 for name in files).encode()).hexdigest()


def _digest(tensors: dict[str, Array]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors.values():
        digest.update(np.ascontiguousarray(tensor).data)
    return digest.hexdigest()
