"""Judging variants: the answers of fp32 and of a variant, from the bundle's own pipeline; feeds to calibrate with."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from pinnace.arrays import Array
from pinnace.compare import Evaluation
from pinnace.errors import NumericalError, UsageError
from pinnace.quantize.examples.example import Example
from pinnace.quantize.examples.forms import MASKED_TASKS
from pinnace.quantize.examples.source import Examples
from pinnace.quantize.judging.evaluate_tokens import POSITIONS, TokenJudge, prompt_feeds
from pinnace.quantize.judging.metrics import cosines, divergence, largest_difference
from pinnace.quantize.judging.task_metrics import metric_of
from pinnace.runtime.bundles.bundle import Bundle
from pinnace.runtime.engine.session import Session
from pinnace.runtime.pipelines.base import Pipeline
from pinnace.runtime.pipelines.table import pipeline

# The same batches on every machine, whatever its cache: what is measured must not depend on it.
BATCH_TOKENS: Final = 512
# Outputs of fp32 that are kept to be compared with a variant's; those of later batches are not.
KEPT_BYTES: Final = 128 << 20

Run = Callable[..., dict[str, Array]]


def feeds(bundle_path: Path, examples: Examples) -> Iterator[dict[str, Array]]:
    """Yield the inputs of the graph for examples, as the task's own pipeline makes them, to calibrate with.

    Args:
        bundle_path: the bundle's folder; of its files the graph is opened, and not run.
        examples: inputs of the bundle's task.

    Yields:
        Input name to array. One row each, so without padding; a question's windows are rows. For a decoder one prompt
        each, with an empty cache.

    Raises:
        InputError: an example that the pipeline does not take.
        UsageError: a bundle for another task.
    """
    bundle = Bundle.open(bundle_path)
    if examples.task == "text-generation":
        yield from prompt_feeds(bundle, examples)
        return
    pipe = pipeline(examples.task, bundle, "fp32", batch_tokens=BATCH_TOKENS)
    seen: list[dict[str, Array]] = []

    def record(run: Run, inputs: Mapping[str, Array], outputs: Sequence[str], **_: Any) -> dict[str, Array]:
        seen.append({name: np.array(array) for name, array in inputs.items()})
        return _zeros(pipe, inputs, outputs)

    options = metric_of(examples.task, pipe.manifest).options(pipe, examples)
    for example in examples:
        with _watched(pipe.session, record):
            pipe([example.input], **options, **example.options, batch_size=1)
        yield from seen
        seen.clear()


class Judge:
    """Measures variants against fp32 on examples: opened once, asked for each candidate.

    Args:
        bundle_path: folder of a bundle with an fp32 variant.
        examples: of the bundle's task, or of another that its head serves. Where all have a label, labels judge; if
            not, agreement with fp32's own answers does.
        threads: threads of one run; None takes what the machine grants.
        options: options of the pipeline's calls, over those of the task's metric.
        positions: for text-generation, most distributions to compare.

    Raises:
        InputError: an example that the pipeline does not take, or a label that the model does not have.
        UsageError: no fp32 variant, a bundle for another task, no examples, labels of which fp32 meets none, or texts
            in which there is nothing to find.
    """

    def __init__(
        self,
        bundle_path: Path,
        examples: Examples,
        threads: int | None = None,
        *,
        options: Mapping[str, Any] | None = None,
        positions: int = POSITIONS,
    ) -> None:
        if not len(examples):
            raise UsageError(f"there are no examples from {examples.source} to judge with; give at least one")
        bundle = Bundle.open(bundle_path)
        self.task = examples.task
        self._tokens: TokenJudge | None = None
        if self.task == "text-generation":
            self._tokens = TokenJudge(bundle, examples, threads, positions)
            return
        self._examples, self._threads = examples, threads
        pipe = pipeline(self.task, bundle, "fp32", threads=threads, batch_tokens=BATCH_TOKENS)
        self._metric = metric_of(self.task, pipe.manifest)
        self._options = {**self._metric.options(pipe, examples), **(options or {})}
        self._labels: list[Any] | None = None
        if examples.labelled:
            self._labels = [self._metric.gold(item.label, item, pipe.manifest) for item in examples]
        self._predictions, self._kept = self._run(pipe)
        self._own = self._metric.own(self._predictions)
        self._golds = self._own if self._labels is None else self._labels
        self._value, self._each = self._metric.measure(self._predictions, self._golds)
        self._check()

    def _check(self) -> None:
        """Refuse examples by which any variant would pass."""
        metric, count = self._metric.name.replace("_", " "), len(self._examples)
        if not np.isfinite(self._value):
            raise UsageError(
                f"the {metric} of fp32 on the {count} examples of {self._examples.source} is {self._value}, with which "
                "nothing can be compared; check that their labels are numbers of the size of the model's"
            )
        if self._metric.finds and not any(map(len, (*self._predictions, *self._golds))):
            labels = "" if self._labels is None else ", and their labels name none"
            raise UsageError(
                f"fp32 finds no {self._metric.finds} in any of the {count} examples of {self._examples.source}{labels}"
                ", so that nothing could be lost; give texts in which the model finds something, or labels"
            )
        if self._labels is not None and self._value == 0:  # a share of nothing is nothing, so any variant would pass
            raise UsageError(
                f"fp32 gets none of the {count} labelled examples of {self._examples.source} right ({metric} 0), so "
                "that nothing could be lost; check that the labels are this model's, or leave them out of all examples"
            )

    def score(self, bundle: Path | Bundle, precision: str) -> Evaluation:
        """Measure a variant.

        Args:
            bundle: folder of the bundle that has the variant; its files are not checked against their hashes.
            precision: the variant.

        Returns:
            The figures; the main one is NaN where a run gave NaN or infinity.

        Raises:
            UsageError: the bundle has no such variant.
            MachineError: this machine cannot run it.
        """
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle, verify=False)
        if self._tokens is not None:
            return self._tokens.score(opened, precision)
        pipe = pipeline(self.task, opened, precision, threads=self._threads, batch_tokens=BATCH_TOKENS, verify=False)
        try:
            predictions, vectors = self._run(pipe)
        except NumericalError:
            return self._evaluation(precision, np.nan, {}, ())
        metric = self._metric
        details = {name: figure(predictions, self._golds) for name, figure in metric.details.items()}
        if self._labels is not None:
            details |= {
                f"reference_{name}": figure(self._predictions, self._golds) for name, figure in metric.details.items()
            }
            details["agreement"], _ = metric.measure(predictions, self._own)
        details |= self._nearness(predictions, vectors)
        value, each = metric.measure(predictions, self._golds)
        losses = self._each - each
        order = np.argsort(-losses, kind="stable")
        worst = tuple(int(i) for i in order[:10] if losses[i] > 0)
        return self._evaluation(precision, value, details, worst)

    def _evaluation(
        self, precision: str, value: float, details: dict[str, float], worst: tuple[int, ...]
    ) -> Evaluation:
        return Evaluation(
            self.task, precision, self._metric.name, value, self._value, len(self._examples),
            self._labels is not None, details, worst,
        )  # fmt: skip

    def _run(self, pipe: Pipeline[Any]) -> tuple[list[Any], list[list[Array]]]:
        """Each example's prediction, and the first batches' output vectors."""
        kept: list[list[Array]] = []
        room = KEPT_BYTES

        def record(run: Run, inputs: Mapping[str, Array], outputs: Sequence[str], **named: Any) -> dict[str, Array]:
            nonlocal room
            found = run(inputs, outputs=outputs, **named)
            if room > 0:
                vectors = _vectors(pipe, inputs, found)
                room -= sum(array.nbytes for array in vectors)
                kept.append(vectors)
            return found

        predictions = []
        with _watched(pipe.session, record):
            for chunk, options in _chunks(self._examples, self._metric.chunk):
                answers = pipe([example.input for example in chunk], **self._options, **options)
                predictions += [self._metric.predict(pipe, e, a) for e, a in zip(chunk, answers, strict=True)]
        return predictions, kept

    def _nearness(self, predictions: Sequence[Any], vectors: list[list[Array]]) -> dict[str, float]:
        """How near the variant's numbers are to fp32's: cosine of pooled vectors, or of the outputs; differences."""
        if self._metric.name == "neighbour_overlap":
            near = cosines(np.stack(predictions), np.stack(self._predictions))
            return {"mean_cosine": float(near.mean()), "min_cosine": float(near.min())}
        pairs = [
            (mine, theirs)
            for got, want in zip(vectors, self._kept, strict=True)
            for mine, theirs in zip(got, want, strict=True)
            if len(theirs)
        ]
        near = np.concatenate([cosines(mine, theirs) for mine, theirs in pairs])
        found = {"output_cosine": float(near.mean()), "min_output_cosine": float(near.min())}
        if self._metric.name == "correlation":
            found["largest_difference"] = largest_difference(np.stack(predictions), np.stack(self._predictions))
        if self.task not in MASKED_TASKS:
            return found
        # Every other output of these tasks has two numbers.
        words = [divergence(theirs, mine) for mine, theirs in pairs if theirs.shape[-1] > 2]
        return {**found, "masked_kl": float(np.concatenate(words).mean())}


@contextlib.contextmanager
def _watched(session: Session, record: Callable[..., dict[str, Array]]) -> Iterator[None]:
    """Let every run of a session go through ``record``, which gets the session's own ``run`` first."""
    run = session.run
    vars(session)["run"] = lambda inputs, **named: record(run, inputs, **named)
    try:
        yield
    finally:
        del vars(session)["run"]


def _chunks(examples: Examples, most: int) -> Iterator[tuple[list[Example], dict[str, Any]]]:
    """Examples in a row that share their call options, not more than ``most`` at a time."""
    for _, group in itertools.groupby(examples, key=lambda example: json.dumps(dict(example.options))):
        while chunk := list(itertools.islice(group, most)):
            yield chunk, dict(chunk[0].options)


def _vectors(pipe: Pipeline[Any], inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> list[Array]:
    """The outputs as lists of vectors [n, D]: of real tokens, or of masked ones where masks are the task."""
    found = []
    mask = np.asarray(inputs["attention_mask"], bool)
    masked = np.asarray(inputs["input_ids"]) == pipe.tokenizer.mask_token_id
    for array in outputs.values():
        values = np.asarray(array, np.float32)
        if values.shape[:2] != mask.shape:
            # One number a row has no direction: the batch's numbers together have.
            found.append(values.reshape(1, -1) if values.shape[-1] == 1 else values)
        elif values.ndim == 2:
            found += [row[real][None] for row, real in zip(values, mask, strict=True)]
        else:
            found.append(values[masked if pipe.task in MASKED_TASKS else mask])
    return found


def _zeros(pipe: Pipeline[Any], inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
    """Outputs of the right shapes without a run."""
    sizes: dict[str, int] = {}
    for spec in pipe.manifest.inputs:
        sizes |= {dim: size for dim, size in zip(spec.shape, inputs[spec.name].shape, strict=True) if type(dim) is str}
    return {
        spec.name: np.zeros([dim if isinstance(dim, int) else sizes[dim] for dim in spec.shape], np.float32)
        for spec in pipe.manifest.outputs
        if spec.name in outputs
    }
