"""llama.cpp as a candidate of the benchmarks of decoding, on the same Apertus: its GGUF file, and a greedy loop."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

# Precision of ours that a kind of quantization stands beside -> llama.cpp's number for it.
KINDS: Final = {"fp32": 0, "int8": 7, "int4": 2}  # F32, Q8_0, Q4_0
XIELU: Final = ("alpha_n", "alpha_p", "beta", "eps")


class Llama:
    """llama.cpp through llama-cpp-python."""

    def __init__(self, model: Path, threads: int) -> None:
        import llama_cpp

        self.model = llama_cpp.Llama(
            str(model), n_ctx=4096, n_batch=512, n_threads=threads, n_threads_batch=threads, verbose=False
        )
        self.vocabulary = int(self.model.n_vocab())

    def generate(self, ids: list[int], count: int, seen: Callable[[int], None]) -> None:
        """Tell each new token as it comes."""
        self.model.reset()
        for number, token in enumerate(self.model.generate(ids, temp=0.0, repeat_penalty=1.0, reset=True), 1):
            seen(int(token))
            if number == count:
                return


def build(bundle: Path, file: Path, precision: str) -> None:
    """Write a bundle's fp32 checkpoint as GGUF, quantized by llama.cpp itself.

    Args:
        bundle: an exported Apertus, whose weights file is a checkpoint.
        file: what to write.
        precision: key of `KINDS`.
    """
    import ctypes

    import llama_cpp

    plain = file if precision == "fp32" else file.with_suffix(".f32.gguf")
    write_gguf(json.loads((bundle / "config.json").read_text("utf-8")), bundle / "model.safetensors", plain)
    if plain == file:
        return
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = KINDS[precision]
    params.pure = precision == "int4"  # the head in four bits too, as ours
    if llama_cpp.llama_model_quantize(str(plain).encode(), str(file).encode(), ctypes.byref(params)):
        raise SystemExit(f"llama.cpp could not quantize {plain}")
    plain.unlink()


def write_gguf(config: Mapping[str, Any], weights: Path, file: Path) -> None:
    """Write a checkpoint as GGUF with its token ids, and without a tokenizer."""
    import gguf
    import numpy as np
    from safetensors.numpy import load_file

    tensors = load_file(weights)
    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    rope, size = config["rope_parameters"], config["hidden_size"] // heads
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.APERTUS])
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(layers)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(rope["rope_theta"])
    for name in XIELU:
        values = [float(np.ravel(tensors[f"model.layers.{i}.mlp.act_fn.{name}"])[0]) for i in range(layers)]
        getattr(writer, f"add_xielu_{name}")(values)
    if rope["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", np.array(llama3_factors(rope, size), np.float32))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.APERTUS, layers)
    for name, tensor in tensors.items():
        if ".act_fn." not in name:
            writer.add_tensor(names.get_name(name, (".weight",)), np.asarray(tensor, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama3_factors(rope: Mapping[str, Any], size: int) -> list[float]:
    """By what each pair's speed is divided: llama3 scaling."""
    low, high = (rope["original_max_position_embeddings"] / rope[f"{end}_freq_factor"] for end in ("low", "high"))
    found = []
    for pair in range(size // 2):
        wave = 2 * math.pi * rope["rope_theta"] ** (2 * pair / size)
        if wave < high:
            found.append(1.0)
        elif wave > low:
            found.append(float(rope["factor"]))
        else:
            smooth = (rope["original_max_position_embeddings"] / wave - rope["low_freq_factor"]) / (
                rope["high_freq_factor"] - rope["low_freq_factor"]
            )
            found.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return found
