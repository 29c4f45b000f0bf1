"""Pre-training heads: the logits of masked tokens and of the next sentence, as they are."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from pinnace.runtime.arguments import check_return_tensors
from pinnace.runtime.pipelines.base import CallOptions, Pipeline
from pinnace.runtime.pipelines.items import Pair, check_pair


@dataclasses.dataclass(frozen=True)
class PretrainingOptions(CallOptions):
    """Options of the pre-training heads.

    Attributes:
        return_tensors: True or ``"np"`` returns float32 arrays, which is much faster than lists of floats.
    """

    return_tensors: bool | str = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_return_tensors(self.return_tensors)


class PretrainingPipeline(Pipeline[PretrainingOptions]):
    """Both logits of a text or pair: ``prediction_logits`` (tokens, vocabulary), ``seq_relationship_logits`` (2)."""

    task = "pretraining"
    bundle_tasks = ("pretraining",)
    output_names = ("prediction_logits", "seq_relationship_logits")
    options_type = PretrainingOptions

    def check_input(self, item: Any, place: str) -> Pair:
        """Accept a text or ``{"text", "text_pair"}``."""
        return check_pair(item, place)

    def answer(self, items: list[Pair], options: PretrainingOptions) -> list[Any]:
        """Return the logits of each text or pair."""
        rows = self.encode_pairs(items, between=options.seconds_left)
        results: list[Any] = [None] * len(items)
        for places, outputs in self.batches(rows, options):
            for row, i in enumerate(places):
                logits = {
                    "prediction_logits": outputs["prediction_logits"][row, : len(rows[i])],
                    "seq_relationship_logits": outputs["seq_relationship_logits"][row],
                }
                # Copied, so that a result does not keep its whole batch in memory.
                found = {name: np.array(values, np.float32) for name, values in logits.items()}
                results[i] = found if options.return_tensors else {name: v.tolist() for name, v in found.items()}
        return results
