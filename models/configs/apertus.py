"""Apertus's configuration, and the text part of Apertus 1.5's.

Source: Apertus technical report 2025 (arXiv 2509.14233); names and defaults of Hugging Face's ``ApertusConfig``,
transformers 5. Of Apertus 1.5: the files of swiss-ai/Apertus-v1.5-8B, and transformers' pull request 47662.
"""

from __future__ import annotations

import re
import types
from collections.abc import Mapping
from typing import Any, ClassVar, Final

from pinnace.errors import ConfigError
from pinnace.models.configs.activation_names import ACTIVATIONS
from pinnace.models.configs.config import PreTrainedConfig
from pinnace.models.configs.fields import probability, setting, size
from pinnace.models.configs.keys import FIXED
from pinnace.models.configs.rotary_parameters import check_rotary, in_one_dialect

XIELU: Final = "xielu"
DEFAULT_ROTARY: Final[Mapping[str, Any]] = types.MappingProxyType(
    {
        "rope_type": "llama3",
        "rope_theta": 12000000.0,
        "factor": 8.0,
        "original_max_position_embeddings": 8192,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    }
)
# Apertus 1.5 reads images and sounds as tokens of a larger embedding, and writes text only. Its language model is an
# Apertus, whose keys stand in ``text_config``; what is said of images and sounds is about models that are not ours.
COMPOSITE: Final = "apertus1p5"
TEXT_PART: Final = "apertus1p5_text"
_OTHER_SENSES: Final = re.compile(r"(image|vision|audio)_\w+")
_HEADS: Final[Mapping[str, str]] = types.MappingProxyType(
    {
        "Apertus1p5ForConditionalGeneration": "ApertusForCausalLM",
        "Apertus1p5TextForCausalLM": "ApertusForCausalLM",
        "Apertus1p5Model": "ApertusModel",
        "Apertus1p5TextModel": "ApertusModel",
    }
)


class ApertusConfig(PreTrainedConfig):
    """The shape of an Apertus model; the defaults are those of the 8B model's class in transformers.

    Args:
        vocab_size: tokens that can be read: rows of the embedding.
        output_vocab_size: tokens that can be written: rows of the output layer, the first of the vocabulary; ``None``
            is all of them. Apertus 1.5 reads codes of images and sounds that it never writes.
        hidden_size: width of the model.
        intermediate_size: width inside the feed-forward layers.
        num_hidden_layers: number of layers.
        num_attention_heads: query heads of each attention.
        num_key_value_heads: key and value heads, each shared by a group of query heads; ``None`` is as many.
        head_dim: size of a head; ``None`` is ``hidden_size // num_attention_heads`` (see ``head_size``).
        hidden_act: activation of the feed-forward layers, ``xielu`` or a word of ``ACTIVATIONS``.
        max_position_embeddings: longest row in tokens.
        initializer_range: standard deviation of fresh weights.
        rms_norm_eps: added to the mean square in RMS normalization.
        use_cache: whether keys and values are returned.
        pad_token_id: token that fills short rows.
        bos_token_id: token that begins a text.
        eos_token_id: token, or tokens, that end one.
        tie_word_embeddings: whether the output layer shares the input embeddings.
        rope_parameters: rotary positions: ``rope_type`` (default, linear, dynamic, llama3 or yarn), ``rope_theta`` and
            the numbers of that type; ``rope_theta`` and ``rope_scaling`` of older files are understood.
        attention_bias: whether the attention's projections have biases.
        attention_dropout: dropout of attention probabilities, in training.
        classifier_dropout: dropout before a classification head, in training.
        hidden_dropout: used for the same where ``classifier_dropout`` is ``None``; 0.1 where both are.
        **kwargs: the fields of ``PreTrainedConfig``.
    """

    model_type = "apertus"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    # Files name these parts of the architecture; another value would be another architecture.
    fixed: ClassVar[Mapping[str, tuple[Any, ...]]] = types.MappingProxyType(
        {
            **FIXED,
            "mlp_bias": (False, None),
            "partial_rotary_factor": (1, 1.0, None),
            "post_norm": (False, None),
            "pretraining_tp": (1, None),
            "qk_norm": (True, None),
        }
    )

    vocab_size: int = size(131072)
    output_vocab_size: int | None = setting(None, at_least=1)
    hidden_size: int = size(4096)
    intermediate_size: int = size(14336)
    num_hidden_layers: int = size(32, at_most=4096)
    num_attention_heads: int = size(32)
    num_key_value_heads: int = size(32)
    head_dim: int | None = setting(None, at_least=1, at_most=2**20)
    hidden_act: str = setting(XIELU, one_of=(XIELU, *ACTIVATIONS))
    max_position_embeddings: int = size(65536)
    initializer_range: float = setting(0.02, at_least=0, at_most=1e6)
    rms_norm_eps: float = probability(1e-5)
    use_cache: bool = True
    pad_token_id: int | None = size(3, at_least=0)
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = False
    rope_parameters: dict[str, Any] = setting(dict(DEFAULT_ROTARY))
    attention_bias: bool = False
    attention_dropout: float = probability(0.0)
    classifier_dropout: float | None = probability(None)
    hidden_dropout: float | None = probability(None)

    @classmethod
    def upgrade_keys(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Take the text part of Apertus 1.5, and give key/value heads and rotary positions today's form."""
        if values.get("model_type") in (COMPOSITE, TEXT_PART):
            values = _text_part(values)
        if values.get("num_key_value_heads") is None:
            values["num_key_value_heads"] = values.get("num_attention_heads", 32)
        return in_one_dialect(values, DEFAULT_ROTARY, values.get("max_position_embeddings", 65536))

    @classmethod
    def _own_part(cls, values: dict[str, Any]) -> dict[str, Any]:
        # What stands beside the text part of Apertus 1.5 counts too; `upgrade_keys` joins the two.
        return values if values.get("model_type") == COMPOSITE else super()._own_part(values)

    @property
    def head_size(self) -> int:
        """D, the size of a head."""
        return self.hidden_size // self.num_attention_heads if self.head_dim is None else self.head_dim

    @property
    def longest_row(self) -> int:
        """Tokens that a row may have: dynamic scaling stretches the positions as a row grows."""
        rope = self.rope_parameters
        stretch = rope["factor"] if rope["rope_type"] == "dynamic" else 1
        return int(self.max_position_embeddings * stretch)

    @property
    def longest_in_pieces(self) -> int | None:
        """Tokens of a row up to which its keys are the same whether it is read at once or in pieces; None for any."""
        return self.max_position_embeddings if self.rope_parameters["rope_type"] == "dynamic" else None

    def to_dict(self) -> dict[str, Any]:
        """Return every key that is set: other programs take a ``head_dim`` of null at its word."""
        values = super().to_dict()
        for name in ("head_dim", "output_vocab_size"):
            if values[name] is None:
                del values[name]
        return values

    def validate(self) -> None:
        """Check the fields and that they fit each other.

        Raises:
            ConfigError: the text names the keys.
        """
        super().validate()
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"ApertusConfig: num_attention_heads is {self.num_attention_heads}, "
                f"expected a multiple of num_key_value_heads, {self.num_key_value_heads}"
            )
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"ApertusConfig: hidden_size is {self.hidden_size}, expected a multiple of num_attention_heads, "
                f"{self.num_attention_heads}, or head_dim beside it"
            )
        if self.output_vocab_size is not None and self.output_vocab_size > self.vocab_size:
            raise ConfigError(
                f"ApertusConfig: output_vocab_size is {self.output_vocab_size}, expected at most vocab_size, "
                f"{self.vocab_size}: what is written must be readable"
            )
        if self.tie_word_embeddings and self.output_vocab_size not in (None, self.vocab_size):
            raise ConfigError(
                f"ApertusConfig: output_vocab_size is {self.output_vocab_size} and vocab_size {self.vocab_size}, so "
                "that tie_word_embeddings must be false: the two layers are not of one shape"
            )
        if self.pad_token_id is not None and self.pad_token_id >= self.vocab_size:
            raise ConfigError(
                f"ApertusConfig: pad_token_id is {self.pad_token_id}, expected below vocab_size, {self.vocab_size}"
            )
        check_rotary("ApertusConfig", self.rope_parameters, self.head_size)


def _text_part(values: Mapping[str, Any]) -> dict[str, Any]:
    """Turn the keys of Apertus 1.5 into those of an Apertus that reads its tokens and writes text.

    Raises:
        ConfigError: the file has no ``text_config``, or one of another model.
    """
    if values["model_type"] == COMPOSITE:
        inner = values.get("text_config")
        if not isinstance(inner, Mapping) or inner.get("model_type") not in (TEXT_PART, "apertus"):
            kind = inner.get("model_type") if isinstance(inner, Mapping) else type(inner).__name__
            raise ConfigError(
                f"ApertusConfig: model_type is {COMPOSITE!r} (Apertus 1.5), whose language model stands in "
                f"text_config: got {kind!r} there, expected a model_type of {TEXT_PART!r}"
            )
        # What stands outside counts, where anything does: a tied output layer is said there.
        outer = {name: value for name, value in values.items() if name != "text_config" and value is not None}
        values = {**inner, **{name: value for name, value in outer.items() if _OTHER_SENSES.fullmatch(name) is None}}
    heads = values.get("architectures")
    named = [_HEADS.get(head, head) for head in heads] if isinstance(heads, list) else heads
    return {**values, "model_type": "apertus", "architectures": named}
