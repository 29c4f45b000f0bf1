"""The table of pipelines: which class answers a task."""

from __future__ import annotations

import importlib
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pinnace.runtime.bundles.bundle import Bundle
from pinnace.runtime.pipelines.base import Pipeline
from pinnace.spec import canonical_task

# Modules are named rather than imported: a process reads the code of its own task only.
PIPELINES: Final[Mapping[str, str]] = types.MappingProxyType(
    {
        "feature-extraction": "pinnace.runtime.pipelines.feature_extraction:FeatureExtractionPipeline",
        "fill-mask": "pinnace.runtime.pipelines.fill_mask:FillMaskPipeline",
        "question-answering": "pinnace.runtime.pipelines.question_answering:QuestionAnsweringPipeline",
        "token-classification": "pinnace.runtime.pipelines.token_classification:TokenClassificationPipeline",
        "text-classification": "pinnace.runtime.pipelines.text_classification:TextClassificationPipeline",
        "text-ranking": "pinnace.runtime.pipelines.text_ranking:TextRankingPipeline",
        "zero-shot-classification": "pinnace.runtime.pipelines.zero_shot:ZeroShotClassificationPipeline",
        "multiple-choice": "pinnace.runtime.pipelines.multiple_choice:MultipleChoicePipeline",
        "next-sentence-prediction": "pinnace.runtime.pipelines.next_sentence:NextSentencePipeline",
        "pretraining": "pinnace.runtime.pipelines.pretraining:PretrainingPipeline",
        "text-generation": "pinnace.runtime.pipelines.text_generation:TextGenerationPipeline",
    }
)


def pipeline(
    task: str,
    bundle: str | Path | Bundle,
    precision: str | None = None,
    device: str = "cpu",
    threads: int | None = None,
    batch_tokens: int | None = None,
    verify: bool = True,
    replicas: int | str = 1,
    spin: bool = False,
    memory_limit: int | None = None,
) -> Pipeline[Any]:
    """Open a bundle for a task: text in, answers out.

    Args:
        task: a task's name or alias, as ``"question-answering"`` or ``"qa"``.
        bundle: folder of a bundle, or an opened bundle.
        precision: the variant to run, as ``"int8"``; None takes the bundle's default, ``"auto"`` the best
            verified one here.
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
        threads: threads of all runs together; None takes what the machine grants this process.
        batch_tokens: most tokens in a batch, padding counted; None takes what fits the processor's cache.
        verify: check the bundle's files against their hashes.
        replicas: batches of a call that run at once, each on its share of the threads; or ``"auto"``.
        spin: let idle threads wait busily.
        memory_limit: most bytes that weights and runs may take; None for no limit.

    Returns:
        A callable: one input gives one result, a list gives a list, an iterator gives an iterator.

    Raises:
        UsageError: an unknown task or precision, or a bundle for another task.
        BundleError: no bundle, or a damaged one.
    """
    module, _, kind = PIPELINES[canonical_task(task)].partition(":")
    made: Pipeline[Any] = getattr(importlib.import_module(module), kind)(
        bundle, precision=precision, device=device, threads=threads, batch_tokens=batch_tokens, verify=verify,
        replicas=replicas, spin=spin, memory_limit=memory_limit,
    )  # fmt: skip
    return made
