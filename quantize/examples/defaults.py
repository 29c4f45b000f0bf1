"""The package's own examples: for every task, inputs made of passages in the public domain, without labels."""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import re
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, TypeAlias

from pinnace.quantize.examples.example import Example
from pinnace.quantize.examples.forms import as_example

SOURCE: Final = "built-in texts"
FILE: Final = "defaults.txt"
CANDIDATE_LABELS: Final = ("nature", "politics", "travel", "family", "science", "religion")
# Passages that a question, a choice or a ranking may draw on together, and that a split therefore keeps together.
BLOCK: Final = 4
_FEWEST_WORDS: Final = 4
_SENTENCE_END: Final = re.compile(r"(?<=[.!?])(?<!\bMr\.)(?<!\bMrs\.)(?<!\b[A-Z]\.)[\"']?\s+(?=[\"'A-ZÀ-Þ¿])")


@dataclasses.dataclass(frozen=True)
class Passage:
    """A passage: where it is from, its text, its sentences of a few words at least, and questions that it answers."""

    title: str
    text: str
    sentences: tuple[str, ...]
    questions: tuple[str, ...]


Made: TypeAlias = Iterator[tuple[Any, str]]  # an input's fields or text, and its content


@functools.cache
def passages() -> tuple[Passage, ...]:
    """Read the package's file."""
    text = importlib.resources.files("pinnace.quantize.examples").joinpath(FILE).read_text(encoding="utf-8")
    found = []
    for block in text.split("\n## ")[1:]:
        title, *lines = block.strip().split("\n")
        body = " ".join(line for line in lines if not line.startswith("? "))
        sentences = tuple(s for s in _SENTENCE_END.split(body) if len(s.split()) >= _FEWEST_WORDS)
        questions = tuple(line[2:] for line in lines if line.startswith("? "))
        found.append(Passage(title, body.strip(), sentences, questions))
    return tuple(found)


def make(task: str, mask_token: str, tokens: int | None = None) -> list[Example]:
    """Make the examples of a task.

    Args:
        task: a task's full name.
        mask_token: what the model writes for a mask.
        tokens: most tokens of a row; None where it is not known.
    """
    examples = []
    for i, (value, content) in enumerate(_MAKERS[task]()):
        made = as_example(value, f"example {i} of the {SOURCE}", task, mask_token, tokens)
        examples.append(dataclasses.replace(made, content=(content,)))
    return examples


def _blocks() -> Iterator[tuple[tuple[Passage, ...], str]]:
    everything = passages()
    for first in range(0, len(everything), BLOCK):
        block = everything[first : first + BLOCK]
        yield block, block[0].title + block[0].text


def _texts() -> Made:
    """Sentences, and whole passages: short and long."""
    for passage in passages():
        yield from ((sentence, passage.text) for sentence in passage.sentences)
        yield passage.text, passage.text


def _sorted() -> Made:
    """Texts, each with the labels that it may have."""
    for text, content in _texts():
        yield {"text": text, "candidate_labels": list(CANDIDATE_LABELS)}, content


def _questions() -> Made:
    """Each question with its own passage; a passage's first also with a whole block, which is read in windows."""
    for block, content in _blocks():
        everything = " ".join(passage.text for passage in block)
        for passage in block:
            yield from (({"question": question, "context": passage.text}, content) for question in passage.questions)
            yield {"question": passage.questions[0], "context": everything}, content


def _rankings() -> Made:
    """Each question with the passages of its block."""
    for block, content in _blocks():
        documents = [passage.text for passage in block]
        for passage in block:
            yield from (({"query": question, "documents": documents}, content) for question in passage.questions)


def _choices() -> Made:
    """The first half of a sentence, and second halves of it and of its neighbours."""
    for block, content in _blocks():
        halves = [_halves(sentence) for passage in block for sentence in passage.sentences]
        for i, (beginning, _) in enumerate(halves):
            ends = [halves[(i + step) % len(halves)][1] for step in range(BLOCK)]
            turn = i % BLOCK  # so that the right one is not always the first
            yield {"prompt": beginning, "choices": ends[turn:] + ends[:turn]}, content


def _pairs() -> Made:
    """Each sentence with the one that follows it, and with one from another passage."""
    for block, content in _blocks():
        for i, passage in enumerate(block):
            others = block[(i + 1) % len(block)].sentences
            for j, (sentence, following) in enumerate(zip(passage.sentences, passage.sentences[1:], strict=False)):
                yield {"text": sentence, "text_pair": following}, content
                yield {"text": sentence, "text_pair": others[j % len(others)]}, content


def _halves(sentence: str) -> tuple[str, str]:
    words = sentence.split()
    return " ".join(words[: len(words) // 2]), " ".join(words[len(words) // 2 :])


_MAKERS: Final[Mapping[str, Callable[[], Made]]] = types.MappingProxyType(
    {
        "feature-extraction": _texts,
        "fill-mask": _texts,
        "question-answering": _questions,
        "token-classification": _texts,
        "text-classification": _texts,
        "text-ranking": _rankings,
        "zero-shot-classification": _sorted,
        "multiple-choice": _choices,
        "next-sentence-prediction": _pairs,
        "pretraining": _pairs,
        "text-generation": _texts,
    }
)
