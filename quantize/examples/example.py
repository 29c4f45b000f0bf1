"""One example: an input of a task, the right answer if that is known, and the texts by which it is kept apart."""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, Final

# A part of an input shorter than this ("yes", "Who wrote it?") may stand in many inputs that have nothing in common.
CONTENT_CHARACTERS: Final = 40


@dataclasses.dataclass(frozen=True)
class Example:
    """One input of a task, with what is right if that is known.

    Attributes:
        input: as the task's pipeline takes it.
        label: what is right, in the form of `pinnace.quantize.examples.labels.LABELS`; None where it is not known.
        options: call options that belong to this input, such as its candidate labels.
        content: texts that it must not share with an example of the other part of a split.
        place: where it came from, for messages.
    """

    input: Any
    label: Any = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    content: tuple[str, ...] = ()
    place: str = ""


def content_of(texts: Sequence[str]) -> tuple[str, ...]:
    """What an input of these texts must not share with another part: its long texts, and all together."""
    long = (text for text in texts if len(normalized(text)) >= CONTENT_CHARACTERS)
    return tuple(dict.fromkeys(["\n".join(texts), *long]))


def normalized(text: str) -> str:
    """The text in one spelling of letter case, blanks and compatible characters, for comparison."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
