"""Frozen facts that travel in ``manifest.json``: tensors, caches, variants, tasks' words.

This file is the meeting point of the exporting half (torch) and the serving half (numpy). It imports neither.
"""

from __future__ import annotations

import binascii
import dataclasses
import json
import re
import types
from collections.abc import Mapping
from typing import Any, Final

from pinnace.errors import BundleError, unknown_word
from pinnace.records import build

MANIFEST_NAME: Final = "manifest.json"
CERTIFICATE_NAME: Final = "certificate.json"
NOT_VALIDATED: Final = "not validated"  # verdict on a variant that was compared with nothing
GOLDEN_NAME: Final = "golden.npz"
MANIFEST_FORMAT: Final = 1
CHECKSUM: Final = "crc32"  # key of the manifest's own checksum
AUTO: Final = "auto"  # in place of a precision: the best variant for the device at hand
CHOSEN_BY_AUTO: Final = "chosen_by_auto"  # certificate: the fastest of several that were measured
EXACT_INT8_DOT: Final = "exact-int8-dot"  # a variant's need: sums of int8 products that do not saturate
# A decoder's keys and values, before a run and after it: ``past_key_values.0.key``, ``present.0.key``.
PAST: Final = "past_key_values"
PRESENT: Final = "present"
PRECISIONS: Final = ("fp32", "fp16", "int8", "int4")
REFERENCE: Final = "fp32"  # the precision that the others are made from and compared with
TARGETS: Final = ("ort", "onnx")
# Layout -> precision -> name of the graph's file; the hub's names are those of transformers.js.
GRAPH_NAMES: Final[Mapping[str, Mapping[str, str]]] = types.MappingProxyType(
    {
        "flat": types.MappingProxyType(
            {"fp32": "model.onnx", "fp16": "model_fp16.onnx", "int8": "model_int8.onnx", "int4": "model_q4.onnx"}
        ),
        "hub": types.MappingProxyType(
            {"fp32": "model.onnx", "fp16": "model_fp16.onnx", "int8": "model_quantized.onnx", "int4": "model_q4.onnx"}
        ),
    }
)

# Task -> the other words that name it. The one list of task names, and where a new task begins: it needs a row in each
# table that tests/test_registry.py names, and a file in runtime/pipelines.
TASK_ALIASES: Final[Mapping[str, tuple[str, ...]]] = types.MappingProxyType(
    {
        "feature-extraction": ("embed", "embedding", "sentence-similarity"),
        "fill-mask": ("mlm",),
        "question-answering": ("qa",),
        "token-classification": ("ner",),
        "text-classification": ("classify", "sentiment", "sentiment-analysis"),
        "text-ranking": ("rerank",),
        "zero-shot-classification": ("zero-shot",),
        "multiple-choice": ("mc",),
        "next-sentence-prediction": ("nsp",),
        "pretraining": (),
        "text-generation": ("generate",),
    }
)


def golden_name(precision: str) -> str:
    """File of what a quantized variant gave on the golden inputs where it was made."""
    return f"golden_{precision}.npz"


def canonical_task(word: str) -> str:
    """Return the full name of a task from its name or an alias.

    Raises:
        UsageError: no task has this name; the text names the nearest.
    """
    if word in TASK_ALIASES:
        return word
    for task, aliases in TASK_ALIASES.items():
        if word in aliases:
            return task
    raise unknown_word("task", word, [*TASK_ALIASES, *(a for aliases in TASK_ALIASES.values() for a in aliases)])


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """One input or output: its name, numpy dtype name, and shape of sizes or symbolic names.

    A name such as ``"batch"`` means any size of at least one, the same wherever the name stands.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclasses.dataclass(frozen=True)
class CacheSpec:
    """The key/value cache of a decoder: ``layers`` pairs of ``[batch, heads, past, head_size]``.

    ``in_place`` is true where the graph writes new keys into the buffer it was given (past and present share it), and
    ``fixed`` where that buffer has ``capacity`` tokens in every run.
    """

    layers: int
    heads: int
    head_size: int
    capacity: int
    in_place: bool
    fixed: bool = False


@dataclasses.dataclass(frozen=True)
class Limits:
    """What the model can take.

    Attributes:
        sequence: tokens in a row.
        vocabulary: entries of the vocabulary.
        token_types: segments.
        in_pieces: tokens of a row up to which a key does not depend on how long the row is, so that it may be read in
            pieces; None where it never does.
    """

    sequence: int
    vocabulary: int
    token_types: int
    in_pieces: int | None = None


@dataclasses.dataclass(frozen=True)
class Pooling:
    """How a sentence-transformers folder makes one vector of the tokens' vectors.

    Attributes:
        mode: ``"mean"``, ``"cls"`` or ``"max"``.
        normalize: the vector is scaled to length 1.
        include_prompt: the tokens of a prompt before the text count too.
    """

    mode: str
    normalize: bool
    include_prompt: bool = True


@dataclasses.dataclass(frozen=True)
class Variant:
    """One precision of a bundle: its graph, the files that the graph reads, and how it was lowered.

    Attributes:
        target: key of `TARGETS`.
        opset: of the standard operators.
        graph: its file.
        weights: files that hold its weights.
        islands: nodes that an fp16 graph computes in fp32.
        degraded: it missed its gate, and was wanted all the same.
        scheme: how it was quantized; empty where it was not.
        needs: what a processor must have to run it rightly, such as ``exact-int8-dot``.
        made_on: instruction set and features of the processor on which it was quantized and judged.
    """

    target: str
    opset: int
    graph: str
    weights: tuple[str, ...]
    islands: tuple[str, ...] = ()
    degraded: bool = False
    scheme: str = ""
    needs: tuple[str, ...] = ()
    made_on: str = ""


@dataclasses.dataclass(frozen=True)
class FileFact:
    """Size in bytes and SHA-256 (hex) of one file of the bundle."""

    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Source:
    """Where the weights came from: a Hub id or folder name, and the pinned revision (empty when local or random)."""

    name: str
    revision: str = ""


@dataclasses.dataclass(frozen=True)
class Manifest:
    """All that the runtime knows of a bundle. Written by the builder, read by everyone else."""

    format: int
    task: str
    architecture: str
    head: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    limits: Limits
    labels: tuple[str, ...]
    problem_type: str | None
    special_tokens: dict[str, int]
    pooling: Pooling | None
    cache: CacheSpec | None
    source: Source
    variants: dict[str, Variant]
    tools: dict[str, str]
    files: dict[str, FileFact]

    def to_json(self) -> str:
        """Serialize with sorted keys and a closing newline: the same facts give the same bytes.

        Every other file's hash stands here; `CHECKSUM` is for the facts themselves.
        """
        facts = dataclasses.asdict(self)
        return _sorted_json({**facts, CHECKSUM: _checksum(facts)})

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Read a manifest and check every field's type.

        Raises:
            BundleError: not JSON, changed after it was written, a missing or unknown field, a wrong type, or a newer
                format.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{MANIFEST_NAME} is not JSON: {error}") from None
        if isinstance(data, dict) and data.get("format") != MANIFEST_FORMAT:
            raise BundleError(
                f"{MANIFEST_NAME} has format {data.get('format')!r}, this Pinnace reads {MANIFEST_FORMAT}; "
                "export the model again or use the Pinnace that wrote it"
            )
        # Without one, somebody has written the facts by hand.
        checksum = data.pop(CHECKSUM, None) if isinstance(data, dict) else None
        if checksum is not None and checksum != (expected := _checksum(data)):
            raise BundleError(
                f"{MANIFEST_NAME} was changed after it was written: its {CHECKSUM} is {checksum!r}, expected "
                f"{expected!r}. Copy the bundle again, or export it again"
            )
        manifest = build(cls, data, MANIFEST_NAME, BundleError)
        for name in (*manifest.files, *(v.graph for v in manifest.variants.values())):
            if not is_plain_name(name):
                raise BundleError(f"{MANIFEST_NAME} names the file {name!r}, which is no plain name inside the bundle")
        return manifest


def _checksum(facts: Mapping[str, Any]) -> str:
    # Against damage, not against forgers, who would write a new one; hashlib would cost each start 8 ms.
    return f"{binascii.crc32(_sorted_json(facts).encode('utf-8', 'surrogatepass')):08x}"


def _sorted_json(facts: Mapping[str, Any]) -> str:
    return json.dumps(facts, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def is_cached(name: str) -> bool:
    """Whether an input or output of a graph holds keys or values of a decoder's cache."""
    return name.startswith((f"{PAST}.", f"{PRESENT}."))


def is_plain_name(name: str) -> bool:
    """Whether ``name`` is a relative file name that stays inside its folder on every system."""
    parts = name.split("/")
    return all(re.fullmatch(r"[\w.+-]+", part) and part not in (".", "..") for part in parts) and len(parts) <= 2
