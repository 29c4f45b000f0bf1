"""A small decoder with a byte tokenizer and a chat template, exported once for a run of the suite, in several forms.

Run as a program, it writes the checkpoint ``data/tiny-generate``.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from safetensors.numpy import load_file, save_file
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from pinnace.runtime.engine.session import Session, load
from pinnace.runtime.generation.generator import Generator
from pinnace.runtime.tokenization.tokenizer import load_tokenizer

DATA = Path(__file__).parent / "data"
CHECKPOINT = DATA / "tiny-generate"
VOCABULARY, LENGTH = 262, 128
LAYERS, HEADS, HEAD_SIZE = 2, 4, 8
SPECIAL = ("<s>", "</s>", "<pad>")
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
# Name -> how it is exported.
BUNDLES: dict[str, dict[str, Any]] = {
    "ort": {"target": "ort"},
    "onnx": {"target": "onnx"},
    "ort-all": {"target": "ort", "all_logits": True},
    "onnx-all": {"target": "onnx", "all_logits": True},
    "static": {"target": "onnx", "opset": 24, "static": {"capacity": LENGTH}},
    "static-all": {"target": "onnx", "opset": 24, "static": {"capacity": LENGTH}, "all_logits": True},
    "other": {"target": "ort"},
    "apertus-ort": {"target": "ort"},
    "apertus-onnx": {"target": "onnx"},
    "apertus-static": {"target": "onnx", "opset": 24, "static": {"capacity": 512}},
    "apertus-ort-all": {"target": "ort", "all_logits": True},
}
MakeBundle = Callable[[str], Path]


@pytest.fixture(scope="session")
def decoder_of(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> MakeBundle:
    """Make a bundle of `BUNDLES` once, however many processes run the tests."""
    base = tmp_path_factory.getbasetemp()
    shared = (base if worker_id == "master" else base.parent) / "decoders"
    shared.mkdir(exist_ok=True)

    def make(name: str) -> Path:
        output = shared / name
        with (shared / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not output.exists():
                from pinnace.export.builder import export

                checkpoint = DATA / "apertus-glossary" if name.startswith("apertus") else CHECKPOINT
                if name == "other":
                    checkpoint = _changed(shared / "changed")
                export(checkpoint, task="generate", output=output, validate=False, **BUNDLES[name])
        return output

    return make


def _changed(folder: Path) -> Path:
    """The same model with other weights."""
    shutil.copytree(CHECKPOINT, folder)
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: -array for name, array in weights.items()}, folder / "model.safetensors", metadata={"format": "pt"}
    )
    return folder


def save_checkpoint(folder: Path) -> None:
    """Save a random BertLMHeadModel whose weights are large enough for lively texts."""
    import torch
    from transformers import BertConfig, BertLMHeadModel

    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=HEADS * HEAD_SIZE, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=64, max_position_embeddings=LENGTH, is_decoder=True, initializer_range=0.4,
        bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    model = BertLMHeadModel(config).eval()
    with torch.no_grad():
        model.bert.embeddings.token_type_embeddings.weight.zero_()
    model.save_pretrained(folder)
    save_tokenizer(folder)
    (folder / "generation_config.json").write_text(json.dumps({"max_new_tokens": 12, "pad_token_id": 2}))


def save_tokenizer(folder: Path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*SPECIAL, *alphabet, "th", "ing", "Ġa"]
    backend = tokenizers.Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [("t", "h")], unk_token=None))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    backend.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>",
        "model_max_length": LENGTH, "clean_up_tokenization_spaces": False, "chat_template": TEMPLATE,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


class Opened:
    """Sessions and generators of the bundles, opened once in a process."""

    def __init__(self, make: MakeBundle) -> None:
        self.make = make
        self._sessions: dict[str, Session] = {}

    def session(self, name: str) -> Session:
        if name not in self._sessions:
            self._sessions[name] = load(self.make(name), threads=1)
        return self._sessions[name]

    def generator(self, name: str, **options: Any) -> Generator:
        session = self.session(name)
        return Generator(session, load_tokenizer(session.bundle.path), **options)


@pytest.fixture(scope="session")
def opened(decoder_of: MakeBundle) -> Opened:
    """The bundles, open."""
    return Opened(decoder_of)


def prompts(*lengths: int, seed: int = 0) -> list[np.ndarray[Any, Any]]:
    """Random prompts without special tokens."""
    generator = np.random.default_rng(seed)
    return [generator.integers(len(SPECIAL), VOCABULARY, length) for length in lengths]


def full_logits(session: Session, ids: Any) -> np.ndarray[Any, Any]:
    """Logits of the last position, with everything computed anew."""
    T = len(ids)
    inputs: dict[str, Any] = {
        "input_ids": np.array([ids]), "attention_mask": np.ones((1, T), np.int64), "position_ids": np.arange(T)[None],
    }  # fmt: skip
    for layer in range(LAYERS):
        for part in ("key", "value"):
            inputs[f"past_key_values.{layer}.{part}"] = np.zeros((1, HEADS, 0, HEAD_SIZE), np.float32)
    logits: np.ndarray[Any, Any] = session.run(inputs, outputs=["logits"])["logits"][0, -1]
    return logits


def uncached(session: Session, prompt: Any, count: int) -> list[int]:
    """Greedy tokens, with everything computed anew at each step: what all other ways must give."""
    ids = [int(token) for token in prompt]
    for _ in range(count):
        ids.append(int(full_logits(session, ids).argmax()))
    return ids[len(prompt) :]


if __name__ == "__main__":
    save_checkpoint(CHECKPOINT)
