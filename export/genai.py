"""``genai_config.json``: what ONNX Runtime GenAI must know to generate from a bundle's folder as it is.

Source: the documented fields of ONNX Runtime GenAI's configuration reference; held to its release 0.18 by running it.
"""

from __future__ import annotations

import json
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pinnace.errors import BundleError, CheckpointError
from pinnace.runtime.generation.config import CONFIG_NAME, GenerationConfig
from pinnace.spec import PAST, PRESENT, Manifest

GENAI_NAME: Final = "genai_config.json"
# GenAI knows families by name, and neither Apertus nor BERT is one. This type says no more than "a decoder that takes
# the inputs below", which is all that a graph with its positions and its cache in sight needs.
_TYPE: Final = "decoder"
# A shared cache is allocated for `max_length` before the first token, so a long context is not the default.
_DEFAULT_LENGTH: Final = 4096
# Names that both programs give the same meaning; GenAI has no others of ours.
_SEARCH: Final = (
    "do_sample", "length_penalty", "no_repeat_ngram_size", "num_beams", "num_return_sequences", "repetition_penalty",
    "temperature", "top_k", "top_p",
)  # fmt: skip
# GenAI's fields for the names of a cache's tensors -> those names, with the layer's number left open.
_PAST: Final[Mapping[str, str]] = types.MappingProxyType(
    {"past_key_names": f"{PAST}.%d.key", "past_value_names": f"{PAST}.%d.value"}
)
_PRESENT: Final[Mapping[str, str]] = types.MappingProxyType(
    {"present_key_names": f"{PRESENT}.%d.key", "present_value_names": f"{PRESENT}.%d.value"}
)


def check_generation_config(folder: Path) -> None:
    """Read a checkpoint's ``generation_config.json``, if it has one, as every run of its bundle will.

    Raises:
        CheckpointError: it asks for what Pinnace does not have, or is wrong.
    """
    if (folder / CONFIG_NAME).is_file():
        try:
            GenerationConfig.from_folder(folder)
        except BundleError as error:
            raise CheckpointError(str(error)) from None


def write_genai_config(folder: Path, manifest: Manifest, config: Any) -> bool:
    """Write ``genai_config.json`` beside the graphs of a decoder whose shapes are not fixed.

    Args:
        folder: the bundle's folder, its ``generation_config.json`` in place where there is one.
        manifest: facts of the bundle.
        config: the model's configuration.

    Returns:
        whether a file was written: not for a graph without a cache or of fixed shape.
    """
    axes = manifest.inputs[0].shape
    if manifest.cache is None or manifest.cache.fixed or not all(isinstance(axis, str) for axis in axes):
        return False
    facts = genai_config(manifest, config, GenerationConfig.from_folder(folder))
    (folder / GENAI_NAME).write_text(json.dumps(facts, indent=2) + "\n", "utf-8")
    return True


def genai_config(manifest: Manifest, config: Any, generation: GenerationConfig) -> dict[str, Any]:
    """Describe a decoder's bundle in GenAI's words: its fp32 graph, its names, its cache, its default search.

    Args:
        manifest: facts of a bundle with a cache.
        config: the model's configuration.
        generation: default options; ids of tokens that it lacks are the configuration's.
    """
    cache, variant = manifest.cache, manifest.variants["fp32"]
    if cache is None:
        raise ValueError(f"{manifest.head} keeps no keys and values")
    ends = list(generation.eos_token_id) or _listed(config.eos_token_id)
    pad = generation.pad_token_id if generation.pad_token_id is not None else config.pad_token_id
    bos = generation.bos_token_id if generation.bos_token_id is not None else config.bos_token_id
    ids = {
        "bos_token_id": bos,
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        # A row that has ended is padded with something, and nobody reads it.
        "pad_token_id": pad if pad is not None else (ends or [0])[0],
    }
    given = {spec.name: spec.name for spec in manifest.inputs if "." not in spec.name}
    return {
        "model": {
            "type": _TYPE,
            **{name: value for name, value in ids.items() if value is not None},
            "context_length": cache.capacity,
            "vocab_size": manifest.outputs[0].shape[-1],
            "decoder": {
                "filename": variant.graph,
                "session_options": {"provider_options": []},
                "hidden_size": config.hidden_size,
                "head_size": cache.head_size,
                "num_attention_heads": config.num_attention_heads,
                "num_key_value_heads": cache.heads,
                "num_hidden_layers": cache.layers,
                "inputs": {**given, **_PAST},
                "outputs": {"logits": "logits", **_PRESENT},
            },
        },
        "search": {
            **{name: getattr(generation, name) for name in _SEARCH},
            "max_length": generation.max_length or min(cache.capacity, _DEFAULT_LENGTH),
            "past_present_share_buffer": cache.in_place,
        },
    }


def _listed(value: Any) -> list[int]:
    return [] if value is None else [value] if isinstance(value, int) else list(value)
