"""The fields of one input of each task: what a command line, a file of inputs and a file of examples have in common."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from typing import Final


@dataclasses.dataclass(frozen=True)
class Form:
    """What one input of a task is made of.

    Attributes:
        text: the field that TEXT fills.
        required: further fields, all needed.
        optional: further fields that may be left out.
        option: a field that the pipeline takes as an option of the call.
        example: TEXT and flags of an example.
    """

    text: str
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    option: str = ""
    example: str = '"It works."'

    @property
    def fields(self) -> tuple[str, ...]:
        """All fields that an input may have."""
        return (self.text, *self.required, *self.optional, *([self.option] if self.option else []))


_QUESTION: Final = '"Who wrote it?" --context "Ada wrote it in 1843."'
_FOLLOWS: Final = '"It rained all night." --text-pair "The street is wet."'
_RANKED: Final = '"how to moor a boat" --document "Tie it to a bollard." --document "Bread needs yeast."'
_SORTED: Final = '"The engine failed." --candidate-labels "machines,cooking"'
_CHOSEN: Final = '"The boat reached the" --choice "shore." --choice "sky."'
FORMS: Final[Mapping[str, Form]] = types.MappingProxyType(
    {
        "feature-extraction": Form("text"),
        "fill-mask": Form("text", example='"The boat reached the [MASK]."'),
        "question-answering": Form("question", ("context",), example=_QUESTION),
        "token-classification": Form("text", example='"Ada Lovelace lived in London."'),
        "text-classification": Form("text", optional=("text_pair",), example='"I like it."'),
        "text-ranking": Form("query", ("documents",), example=_RANKED),
        "zero-shot-classification": Form("text", option="candidate_labels", example=_SORTED),
        "multiple-choice": Form("prompt", ("choices",), example=_CHOSEN),
        "next-sentence-prediction": Form("text", ("text_pair",), example=_FOLLOWS),
        "pretraining": Form("text", optional=("text_pair",), example='"The boat [MASK] the shore."'),
        "text-generation": Form("text", example='"The boat reached the" --option max_new_tokens=32'),
    }
)
