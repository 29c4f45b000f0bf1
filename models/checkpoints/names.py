"""How the names that checkpoints store become the names of a model: rules as data, one row per architecture."""

from __future__ import annotations

import math
import re
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final


@dataclass(frozen=True)
class NameRules:
    """The rules of one architecture.

    Attributes:
        base_prefix: what a head puts before the names of the model without a head.
        renames: pattern and replacement, each applied once to a stored name.
        ignored: stored names that are no weights and that nobody misses.
        tied: model name -> the name whose tensor it shares where ``tie_word_embeddings``.
        shared: those of ``tied`` that older programs shared, and so stored once, even where nothing was tied.
        counted: canonical name -> the key of config.json that counts its rows, where there may be two vocabularies.
        start: end of a model name -> the number that fresh weights of such names start at; others start at random.
        constants: those ends of ``start`` that no training changes, so that a fresh one is as good as a stored one.
    """

    base_prefix: str
    renames: tuple[tuple[re.Pattern[str], str], ...] = ()
    ignored: re.Pattern[str] | None = None
    tied: Mapping[str, str] = field(default_factory=dict)
    shared: frozenset[str] = frozenset()
    counted: Mapping[str, str] = field(default_factory=dict)
    start: Mapping[str, float] = field(default_factory=dict)
    constants: tuple[str, ...] = ()

    def canonical(self, stored: str) -> str:
        """Return today's spelling of a stored name."""
        for pattern, replacement in self.renames:
            stored = pattern.sub(replacement, stored)
        return stored

    def ignores(self, stored: str) -> bool:
        """Whether the name is one that no model has and nobody misses."""
        return self.ignored is not None and self.ignored.search(stored) is not None

    def spellings(self, name: str) -> tuple[str, ...]:
        """The canonical names under which a checkpoint may hold a model's weight, the likeliest first."""
        prefix = self.base_prefix
        return (name, name.removeprefix(prefix) if name.startswith(prefix) else prefix + name)

    def count_key(self, name: str) -> str | None:
        """The key of config.json that counts the rows of a model's weight, where one of `counted` does."""
        return next((self.counted[each] for each in self.spellings(name) if each in self.counted), None)


BERT_NAMES: Final = NameRules(
    base_prefix="bert.",
    # Checkpoints converted from TensorFlow before 2020 keep its words for the two halves of a LayerNorm.
    renames=(
        (re.compile(r"\bLayerNorm\.gamma$"), "LayerNorm.weight"),
        (re.compile(r"\bLayerNorm\.beta$"), "LayerNorm.bias"),
    ),
    # Once a saved buffer that counts 0, 1, 2, ...
    ignored=re.compile(r"(^|\.)embeddings\.position_ids$"),
    tied=types.MappingProxyType(
        {
            "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
            "cls.predictions.decoder.bias": "cls.predictions.bias",
        }
    ),
    shared=frozenset({"cls.predictions.decoder.bias"}),  # by transformers 4
    start=types.MappingProxyType({"LayerNorm.weight": 1.0, "bias": 0.0}),
)

# Slope 0.5 at 0 and curvature 0.8 on both sides, as published; both alphas as softplus takes them.
XIELU_START: Final[Mapping[str, float]] = types.MappingProxyType(
    {"alpha_p": math.log(math.expm1(0.8)), "alpha_n": math.log(math.expm1(0.3)), "beta": 0.5, "eps": -1e-6}
)
APERTUS_NAMES: Final = NameRules(
    base_prefix="model.",
    # Apertus 1.5 keeps its language model beside two others, for images and sounds, which no model here has.
    renames=((re.compile(r"^model\.language_model\."), "model."),),
    # Saved by programs that keep the angles' speeds as a buffer; the configuration has them.
    ignored=re.compile(r"(^|\.)rotary_emb\.(original_)?inv_freq$"),
    tied=types.MappingProxyType({"lm_head.weight": "model.embed_tokens.weight"}),
    counted=types.MappingProxyType({"model.embed_tokens.weight": "vocab_size", "lm_head.weight": "output_vocab_size"}),
    constants=("act_fn.beta", "act_fn.eps"),
    start=types.MappingProxyType(
        {"norm.weight": 1.0, "bias": 0.0, **{f"act_fn.{name}": number for name, number in XIELU_START.items()}}
    ),
)
