"""Whether a graph has the inputs, outputs and cache that the manifest states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from pinnace.errors import BundleError
from pinnace.runtime.bundles.bundle import Bundle
from pinnace.spec import MANIFEST_NAME, PAST, PRESENT, CacheSpec, TensorSpec, is_cached

# ONNX Runtime's words for the types that inputs and outputs of a bundle may have.
_ORT_DTYPES: Final[Mapping[str, str]] = {
    "tensor(int64)": "int64", "tensor(int32)": "int32", "tensor(bool)": "bool",
    "tensor(float)": "float32", "tensor(float16)": "float16",
}  # fmt: skip
_FLOATS: Final = ("float32", "float16")


def match_manifest(bundle: Bundle, precision: str, native: Any) -> dict[str, str]:
    """Check that the graph has the manifest's inputs and outputs, and return the types that they have in it.

    Float types may differ: one manifest speaks for the fp32 and the fp16 variant.

    Raises:
        BundleError: a missing, additional, differently typed or shaped input or output, by name, or another cache.
    """
    manifest = bundle.manifest
    dtypes = match_values(bundle.variant(precision).graph, manifest.inputs, manifest.outputs, native)
    if manifest.cache is not None:
        _check_cache(manifest.cache, manifest.inputs, PAST)
        _check_cache(manifest.cache, manifest.outputs, PRESENT)
    return dtypes


def match_values(
    graph: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], native: Any
) -> dict[str, str]:
    """Check that a graph has the inputs and outputs of a manifest, and return the types that they have in it.

    Args:
        graph: the file's name, for the text.
        inputs: as the manifest states them, or will.
        outputs: likewise.
        native: ONNX Runtime's session.

    Raises:
        BundleError: as `match_manifest`.
    """
    dtypes: dict[str, str] = {}
    for kind, specs, values in (("input", inputs, native.get_inputs()), ("output", outputs, native.get_outputs())):
        found = {value.name: _ORT_DTYPES.get(value.type, value.type) for value in values}
        shapes = {value.name: value.shape for value in values}
        named = {spec.name: spec for spec in specs}
        for name in sorted(set(found) ^ set(named)):
            has, lacks = (graph, MANIFEST_NAME) if name in found else (MANIFEST_NAME, graph)
            raise BundleError(f"{has} has the {kind} {name!r}, {lacks} has not. Export it again")
        for name, spec in named.items():
            if found[name] not in _ORT_DTYPES.values() or not (
                found[name] == spec.dtype or (found[name] in _FLOATS and spec.dtype in _FLOATS)
            ):
                raise BundleError(
                    f"{graph}: the {kind} {name!r} has the type {found[name]}, {MANIFEST_NAME} says {spec.dtype}"
                )
            if not _same_sizes(shapes[name], spec.shape):
                raise BundleError(
                    f"{graph}: the {kind} {name!r} has the shape {shapes[name]}, {MANIFEST_NAME} says "
                    f"{list(spec.shape)}. Export it again"
                )
        dtypes |= found
    return dtypes


def _same_sizes(stated: Sequence[int | str | None], shape: Sequence[int | str]) -> bool:
    """Whether a graph's shape has the rank and the whole numbers of the manifest's; what it leaves open may be any."""
    if not stated:  # ONNX Runtime's word for a shape that the graph does not state
        return True
    return len(stated) == len(shape) and all(
        size is None or size == dim or (isinstance(size, str) and isinstance(dim, str))
        for size, dim in zip(stated, shape, strict=True)
    )


def _check_cache(cache: CacheSpec, specs: Sequence[TensorSpec], part_of: str) -> None:
    """Check that the manifest's words on the cache are those on its tensors, which were compared with the graph."""
    held = {spec.name: spec.shape for spec in specs if is_cached(spec.name)}
    names = [f"{part_of}.{i}.{part}" for i in range(len(held) // 2) for part in ("key", "value")]
    if not held or len(held) != 2 * cache.layers or set(held) != set(names):
        raise BundleError(
            f"{MANIFEST_NAME}: the cache has {cache.layers:,} layers, and {len(held)} tensors {part_of}.N.key and "
            f"{part_of}.N.value stand there; expected two for each layer. Export it again"
        )
    for name, shape in held.items():
        tokens = shape[2] if len(shape) == 4 else None
        sizes = (cache.heads, cache.head_size)
        if len(shape) != 4 or (shape[1], shape[3]) != sizes or (cache.fixed and tokens != cache.capacity):
            raise BundleError(
                f"{MANIFEST_NAME}: {name} has the shape {list(shape)}, and the cache {cache.heads} heads of "
                f"{cache.head_size} numbers{f', fixed to {cache.capacity} tokens' if cache.fixed else ''}. "
                "Export it again"
            )
