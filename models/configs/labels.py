"""The coupling of ``id2label``, ``label2id``, ``num_labels`` and ``problem_type``."""

from __future__ import annotations

import logging
from typing import Any, Final

from pinnace.errors import ConfigError
from pinnace.models.configs.fields import wrong

PROBLEM_TYPES: Final = ("regression", "single_label_classification", "multi_label_classification")
DEFAULT_LABELS: Final = 2
LARGEST_LABELS: Final = 1_000_000

logger = logging.getLogger(__name__)


def generic_labels(owner: str, count: Any) -> dict[int, str]:
    """Return ``{0: "LABEL_0", ...}`` for a head of ``count`` outputs."""
    if type(count) is not int or not 1 <= count <= LARGEST_LABELS:
        raise wrong(owner, "num_labels", count, f"an int from 1 to {LARGEST_LABELS}")
    return {index: f"LABEL_{index}" for index in range(count)}


def label_index(labels: dict[int, str]) -> dict[str, int]:
    """Return the map from label to index."""
    return {label: index for index, label in labels.items()}


def numbered(owner: str, labels: Any) -> dict[int, str]:
    """Return ``id2label`` with whole numbers for keys, which JSON can only write as strings, and texts for labels.

    A label that is a whole number, such as a grade, becomes its text.

    Raises:
        ConfigError: not a dict, a label that is neither a whole number nor a string of whole characters, or keys that
            are not exactly 0 to n-1.
    """
    expected = "a dict that numbers its labels, which are texts, 0, 1, 2, ... without a gap"
    if not isinstance(labels, dict) or not labels:
        raise wrong(owner, "id2label", labels, expected)
    labels = {index: str(label) if type(label) is int else label for index, label in labels.items()}
    if not all(isinstance(label, str) for label in labels.values()):
        raise wrong(owner, "id2label", labels, expected)
    try:
        result = {int(index): label for index, label in labels.items()}
    except (ValueError, TypeError):
        raise wrong(owner, "id2label", labels, expected) from None
    if sorted(result) != list(range(len(labels))):
        raise wrong(owner, "id2label", labels, expected)
    try:
        "".join(labels.values()).encode()
    except UnicodeEncodeError:
        raise wrong(owner, "id2label", labels, "labels of whole characters, not half of a surrogate pair") from None
    return result


def couple(owner: str, id2label: Any, label2id: Any, count: Any) -> tuple[dict[int, str], Any]:
    """Complete the label maps of a new configuration from whichever part of them was given.

    A count that contradicts ``id2label`` wins and resets the labels, as in transformers: old files carry a
    right ``num_labels`` beside the two generic labels.
    """
    if id2label is None and isinstance(label2id, dict) and count in (None, len(label2id)):
        id2label = _turned(owner, label2id)
    if id2label is None:
        labels = generic_labels(owner, DEFAULT_LABELS if count is None else count)
        return labels, label_index(labels)
    labels = numbered(owner, id2label)
    if count is not None and count != len(labels):
        logger.warning("num_labels=%s replaces the %d labels of id2label by generic ones", count, len(labels))
        labels = generic_labels(owner, count)
        return labels, label_index(labels)
    return labels, label_index(labels) if label2id is None else label2id


def _turned(owner: str, label2id: dict[Any, Any]) -> dict[Any, Any]:
    if not all(type(index) in (int, str) for index in label2id.values()):
        raise wrong(owner, "label2id", label2id, "a dict of label to number")
    return {index: label for label, index in label2id.items()}


def check_problem(owner: str, problem_type: str | None, count: int) -> None:
    """Refuse one label to choose from.

    Raises:
        ConfigError: ``single_label_classification`` with one label.
    """
    if problem_type == "single_label_classification" and count == 1:
        raise ConfigError(
            f"{owner}: problem_type is 'single_label_classification' with num_labels 1, expected at least 2 labels; "
            "for one output use problem_type 'regression'"
        )
