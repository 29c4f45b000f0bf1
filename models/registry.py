"""ARCHS: the architectures, their heads, the rules of their checkpoints and the documented checkpoint for each task.

The one place that asks for a name of an architecture. Nothing is imported before it is asked for.
"""

from __future__ import annotations

import importlib
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pinnace.errors import ConfigError, UsageError, unknown_word
from pinnace.models.checkpoints.names import APERTUS_NAMES, BERT_NAMES, NameRules


@dataclass(frozen=True)
class CatalogEntry:
    """A Hub checkpoint for a task.

    Attributes:
        repository: Hub id.
        untrained: it lacks the weights of the task's head, which an export makes at random if it is told to.
        config: fields of the configuration that the task needs and the checkpoint does not set.
    """

    repository: str
    untrained: bool = False
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Arch:
    """One architecture.

    Attributes:
        name: its ``model_type``, and its word on the command line.
        config: its configuration class, as ``module:class``.
        heads: class name -> ``module:class``.
        names: how stored names become the model's.
        catalog: task -> checkpoint.
        other_types: further ``model_type`` words, which its configuration class brings into its own form.
        alike: heads whose own weights have the same names, so that one's checkpoint would load into another's.
    """

    name: str
    config: str
    heads: Mapping[str, str]
    names: NameRules
    catalog: Mapping[str, CatalogEntry]
    other_types: tuple[str, ...] = ()
    alike: tuple[str, ...] = ()

    def config_class(self) -> type[Any]:
        """Import the configuration class; needs no PyTorch."""
        return imported(self.config)


_HEADS: Final = "pinnace.models.bert_heads"
_APERTUS: Final = "pinnace.models.apertus"
_MINILM: Final = "sentence-transformers/all-MiniLM-L6-v2"
_BASE: Final = "google-bert/bert-base-uncased"

_ROWS: Final = (
    Arch(
        name="bert",
        config="pinnace.models.configs.bert:BertConfig",
        heads=types.MappingProxyType(
            {
                "BertModel": "pinnace.models.bert:BertModel",
                "BertForPreTraining": f"{_HEADS}:BertForPreTraining",
                "BertLMHeadModel": f"{_HEADS}:BertLMHeadModel",
                "BertForMaskedLM": f"{_HEADS}:BertForMaskedLM",
                "BertForNextSentencePrediction": f"{_HEADS}:BertForNextSentencePrediction",
                "BertForSequenceClassification": f"{_HEADS}:BertForSequenceClassification",
                "BertForMultipleChoice": f"{_HEADS}:BertForMultipleChoice",
                "BertForTokenClassification": f"{_HEADS}:BertForTokenClassification",
                "BertForQuestionAnswering": f"{_HEADS}:BertForQuestionAnswering",
            }
        ),
        names=BERT_NAMES,
        catalog=types.MappingProxyType(
            {
                "feature-extraction": CatalogEntry(_MINILM),
                "fill-mask": CatalogEntry(_BASE),
                "question-answering": CatalogEntry("deepset/bert-base-cased-squad2"),
                "token-classification": CatalogEntry("dslim/bert-base-NER"),
                "text-classification": CatalogEntry("nlptown/bert-base-multilingual-uncased-sentiment"),
                "text-ranking": CatalogEntry("cross-encoder/ms-marco-MiniLM-L6-v2"),
                "zero-shot-classification": CatalogEntry("MoritzLaurer/xtremedistil-l6-h256-zeroshot-v1.1-all-33"),
                "multiple-choice": CatalogEntry(_BASE, untrained=True),
                "next-sentence-prediction": CatalogEntry(_BASE),
                "pretraining": CatalogEntry(_BASE),
                "text-generation": CatalogEntry(_BASE, config=types.MappingProxyType({"is_decoder": True})),
            }
        ),
        alike=("BertForSequenceClassification", "BertForTokenClassification", "BertForMultipleChoice"),
    ),
    Arch(
        name="apertus",
        config="pinnace.models.configs.apertus:ApertusConfig",
        heads=types.MappingProxyType(
            {
                "ApertusModel": f"{_APERTUS}:ApertusModel",
                "ApertusForCausalLM": f"{_APERTUS}:ApertusForCausalLM",
                "ApertusForTokenClassification": f"{_APERTUS}:ApertusForTokenClassification",
            }
        ),
        names=APERTUS_NAMES,
        # No trained checkpoint for tagging is documented, so a folder has to be named for that task.
        catalog=types.MappingProxyType(
            {
                "feature-extraction": CatalogEntry("swiss-ai/Apertus-8B-Instruct-2509"),
                "text-generation": CatalogEntry("swiss-ai/Apertus-8B-Instruct-2509"),
            }
        ),
        other_types=("apertus1p5", "apertus1p5_text"),
    ),
)
ARCHS: Final[Mapping[str, Arch]] = types.MappingProxyType({row.name: row for row in _ROWS})
# model_type -> architecture
MODEL_TYPES: Final[Mapping[str, Arch]] = types.MappingProxyType(
    {word: row for row in _ROWS for word in (row.name, *row.other_types)}
)

# Public name -> ``module:class``: all heads and configurations, which `pinnace.models` gives by name.
HOMES: Final[Mapping[str, str]] = types.MappingProxyType(
    {
        "AutoConfig": "pinnace.models.auto_config:AutoConfig",
        **{row.config.partition(":")[2]: row.config for row in _ROWS},
        **{name: home for row in _ROWS for name, home in row.heads.items()},
    }
)


def arch_of(config: Mapping[str, Any]) -> Arch:
    """Return the architecture of a ``config.json``.

    Raises:
        ConfigError: there is no ``model_type``, or it is none of ours; the text lists those.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise ConfigError(f"the configuration has no model_type; expected one of: {', '.join(sorted(ARCHS))}")
    # The nearest word would be no help: a file means what it says.
    if model_type not in MODEL_TYPES:
        raise ConfigError(f"the model_type is {model_type[:100]!r}; Pinnace has: {', '.join(sorted(ARCHS))}")
    return MODEL_TYPES[model_type]


def arch_named(name: str) -> Arch:
    """Return the architecture of a catalog name.

    Raises:
        UsageError: it is none of ours.
    """
    if name not in ARCHS:
        raise unknown_word("architecture", name, ARCHS)
    return ARCHS[name]


def head_class(arch: Arch, name: str) -> type[Any]:
    """Import the class of a head, and PyTorch with it.

    Args:
        arch: the architecture.
        name: of the class, such as ``"BertForQuestionAnswering"``.

    Raises:
        UsageError: the architecture has no such head; the text lists those that it has.
    """
    if name not in arch.heads:
        raise unknown_word(f"head of {arch.name}", name, arch.heads)
    return imported(arch.heads[name])


def catalog_entry(arch: Arch, task: str) -> CatalogEntry:
    """Return the documented checkpoint of an architecture for a task, by the task's canonical name.

    Raises:
        UsageError: there is none.
    """
    if task not in arch.catalog:
        raise UsageError(f"the catalog has no {arch.name} for {task!r}\n  it has: {', '.join(sorted(arch.catalog))}")
    return arch.catalog[task]


def supported() -> Iterator[tuple[Arch, str]]:
    """Yield every architecture with each of its heads' names."""
    for arch in ARCHS.values():
        for head in arch.heads:
            yield arch, head


def imported(path: str) -> type[Any]:
    """Import a class by ``module:class``."""
    module, _, name = path.partition(":")
    found: type[Any] = getattr(importlib.import_module(module), name)
    return found
