"""Multiple choice: which of several texts best continues or answers a prompt."""

from __future__ import annotations

from typing import Any

import numpy as np

from pinnace.errors import InputError
from pinnace.runtime.arguments import check_text
from pinnace.runtime.pipelines.base import CallOptions, Pipeline
from pinnace.runtime.pipelines.items import check_fields
from pinnace.runtime.pipelines.scores import softmax


class MultipleChoicePipeline(Pipeline[CallOptions]):
    """Choose among texts: ``{choice, score, scores}``, ``choice`` the place of the best, ``scores`` in their order."""

    task = "multiple-choice"
    bundle_tasks = ("multiple-choice",)
    options_type = CallOptions

    def __call__(self, inputs: Any = None, choices: Any = None, *, prompt: str | None = None, **options: Any) -> Any:
        """Choose for one prompt, for a list of prompts, or lazily for any other iterable of them.

        Args:
            inputs: the prompt, with ``choices`` beside it; or ``{"prompt": ..., "choices": [...]}``; or many such.
            choices: list of at least one text.
            prompt: the same as ``inputs``, by its name.
            options: see `CallOptions`.

        Raises:
            InputError: an input of another form, or as many choices as a fixed-shape graph does not take.
            UsageError: an unknown or unfit option.
        """
        inputs = prompt if inputs is None else inputs
        if choices is not None:
            inputs = {"prompt": inputs, "choices": choices}
        return super().__call__(inputs, **options)

    def check_input(self, item: Any, place: str) -> tuple[str, list[str]]:
        """Accept ``{"prompt", "choices"}``."""
        prompt, choices = check_fields(item, place, ("prompt", "choices"))
        if not isinstance(choices, list | tuple) or not choices:
            got = "empty" if isinstance(choices, list | tuple) else type(choices).__name__
            raise InputError(f"'choices' of {place} is {got}, expected a list of at least one text; give one")
        fixed = next(spec.shape[1] for spec in self.manifest.inputs if spec.name == "input_ids")
        if isinstance(fixed, int) and len(choices) != fixed:
            raise InputError(
                f"'choices' of {place} has {len(choices)} texts, expected the {fixed} of this fixed-shape graph; "
                "export it without --static to take any number"
            )
        texts = [check_text(text, f"choice {i} of {place}") for i, text in enumerate(choices)]
        return check_text(prompt, f"'prompt' of {place}"), texts

    def answer(self, items: list[tuple[str, list[str]]], options: CallOptions) -> list[Any]:
        """Choose for each prompt. The head judges every choice on its own, so the choices of all share batches."""
        pairs = [(prompt, choice) for prompt, choices in items for choice in choices]
        logits = np.empty(len(pairs), np.float32)
        for places, outputs in self.batches(self.encode_pairs(pairs, between=options.seconds_left), options):
            logits[places] = outputs["logits"].reshape(-1)
        results, start = [], 0
        for _, choices in items:
            scores = softmax(logits[start : start + len(choices)])
            start += len(choices)
            best = int(scores.argmax())
            results.append({"choice": best, "score": float(scores[best]), "scores": scores.tolist()})
        return results
