"""BERT's configuration.

Source: Devlin et al. 2018 (arXiv 1810.04805); names and defaults of Hugging Face's ``BertConfig``, transformers 5.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pinnace.errors import ConfigError
from pinnace.models.configs.activation_names import ACTIVATIONS
from pinnace.models.configs.config import PreTrainedConfig
from pinnace.models.configs.fields import probability, setting, size
from pinnace.models.configs.keys import KEPT

# Left by Google's own multilingual and Chinese checkpoints; no program ever read them.
GOOGLE_KEYS = frozenset(
    {
        "directionality",
        "pooler_fc_size",
        "pooler_num_attention_heads",
        "pooler_num_fc_layers",
        "pooler_size_per_head",
        "pooler_type",
    }
)
# Left in TinyBERT's checkpoints by the program that searched their shape.
TINYBERT_KEYS = frozenset({"cell", "emb_size", "pre_trained", "structure", "training"})


class BertConfig(PreTrainedConfig):
    """The shape of a BERT model; the defaults are those of bert-base-uncased.

    Args:
        vocab_size: entries of the vocabulary.
        hidden_size: width of the model; a multiple of ``num_attention_heads``.
        num_hidden_layers: number of layers.
        num_attention_heads: heads of each attention.
        intermediate_size: width inside the feed-forward layers.
        hidden_act: activation of the feed-forward layers, a word of ``ACTIVATIONS``.
        hidden_dropout_prob: dropout of embeddings and layers, in training.
        attention_probs_dropout_prob: dropout of attention probabilities, in training.
        max_position_embeddings: longest row in tokens.
        type_vocab_size: number of segments.
        initializer_range: standard deviation of fresh weights.
        layer_norm_eps: added to the variance in layer normalization.
        pad_token_id: token that fills short rows.
        use_cache: whether a decoder returns its keys and values.
        classifier_dropout: dropout before a classification head; ``None`` is ``hidden_dropout_prob``.
        is_decoder: attend to earlier tokens only.
        add_cross_attention: also attend to an encoder's output; needs ``is_decoder``.
        bos_token_id: token that begins a generated text.
        eos_token_id: token, or tokens, that end one.
        tie_word_embeddings: whether the output layer shares the input embeddings.
        **kwargs: the fields of ``PreTrainedConfig``.
    """

    model_type = "bert"
    kept: ClassVar[frozenset[str]] = KEPT | GOOGLE_KEYS | TINYBERT_KEYS

    vocab_size: int = size(30522)
    hidden_size: int = size(768)
    num_hidden_layers: int = size(12, at_most=4096)
    num_attention_heads: int = size(12)
    intermediate_size: int = size(3072)
    hidden_act: str = setting("gelu", one_of=ACTIVATIONS)
    hidden_dropout_prob: float = probability(0.1)
    attention_probs_dropout_prob: float = probability(0.1)
    max_position_embeddings: int = size(512)
    type_vocab_size: int = size(2)
    initializer_range: float = setting(0.02, at_least=0, at_most=1e6)
    layer_norm_eps: float = probability(1e-12)
    pad_token_id: int | None = size(0, at_least=0)
    use_cache: bool = True
    classifier_dropout: float | None = probability(None)
    is_decoder: bool = False
    add_cross_attention: bool = False
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    tie_word_embeddings: bool = True

    @classmethod
    def upgrade_keys(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Drop an ``embedding_size`` that only repeats ``hidden_size``; any other is of a model that is not BERT."""
        hidden = values.get("hidden_size", cls.hidden_size)
        if "embedding_size" in values and values["embedding_size"] in (None, hidden):
            del values["embedding_size"]
        return values

    def validate(self) -> None:
        """Check the fields and that they fit each other.

        Raises:
            ConfigError: the text names the keys.
        """
        super().validate()
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"BertConfig: hidden_size is {self.hidden_size}, "
                f"expected a multiple of num_attention_heads, {self.num_attention_heads}"
            )
        if self.pad_token_id is not None and self.pad_token_id >= self.vocab_size:
            raise ConfigError(
                f"BertConfig: pad_token_id is {self.pad_token_id}, expected below vocab_size, {self.vocab_size}"
            )
        if self.add_cross_attention and not self.is_decoder:
            raise ConfigError("BertConfig: add_cross_attention is true with is_decoder false; set is_decoder too")
