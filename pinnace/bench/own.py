"""Pinnace as a program that is measured: raw sessions on token ids, pipelines on texts, the generator on prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from pinnace.arrays import Array
from pinnace.bench.jobs import IDS, PROMPT, TEXTS, Texts, answer_text, rows_of, rows_to_compare
from pinnace.bench.loop import Prepared, Seen
from pinnace.runtime.bundles.bundle import Bundle
from pinnace.runtime.engine.session import Session
from pinnace.spec import Manifest

_EMBED: Final = "feature-extraction"


class Pinnace:
    """A bundle, opened once; each job says through which door it is used.

    Args:
        options: ``model``, ``precision``, ``device`` and ``threads``.
    """

    distribution = "pinnace"

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = options
        self._bundle = Bundle.open(options["model"])
        self._task = self._bundle.manifest.task
        self._pipe: Any = None
        self._session: Session | None = None
        if options.get("texts"):
            from pinnace.runtime.pipelines.table import pipeline

            where = {key: options[key] for key in ("precision", "device", "threads")}
            self._pipe = pipeline(options.get("task") or self._task, self._bundle, **where)
            self._pipe.tokenizer  # noqa: B018 - opens it, and the session with it
        else:
            self._open()
        self._jobs: dict[str, Callable[[Mapping[str, Any]], Prepared]] = {
            IDS: self._prepare_ids, TEXTS: self._prepare_texts, PROMPT: self._prepare_prompt,
        }  # fmt: skip

    def prepare(self, job: Mapping[str, Any]) -> Prepared:
        """Build the queries of a job."""
        return self._jobs[job["kind"]](job)

    def _open(self) -> Session:
        if self._session is None:
            options = self._options
            self._session = Session(
                self._bundle, options["precision"], device=options["device"], threads=options["threads"]
            )
        return self._session

    def _prepare_ids(self, job: Mapping[str, Any]) -> Prepared:
        session = self._open()
        feeds = ids_feeds(session.bundle.manifest, np.array(rows_of(job), np.int64))

        def read() -> list[Any]:
            return [output_rows(output) for output in session.run(feeds).values()]

        return Prepared([(job["batch"], job["batch"] * job["length"])], lambda _index, _seen: session.run(feeds), read)

    def _prepare_texts(self, job: Mapping[str, Any]) -> Prepared:
        given, pipe = Texts(job), self._pipe
        options = dict(job["options"])
        if self._task == _EMBED:
            options["return_tensors"] = True

        def read() -> list[Any]:
            answers = [pipe(query, **options) for query in given.queries]
            if self._task != _EMBED:
                return [answer_text(answer) for some in answers for answer in some]
            # Vectors of tokens are of unlike number; their mean speaks for a text.
            vectors = [np.asarray(vector) for some in answers for vector in some]
            return [v.reshape(-1, v.shape[-1]).mean(0).tolist() for v in vectors]

        return Prepared(given.sizes, lambda index, _seen: pipe(given.queries[index], **options), read)

    def _prepare_prompt(self, job: Mapping[str, Any]) -> Prepared:
        from pinnace.runtime.generation.generator import Generator

        generator, rows = Generator(self._open()), rows_of(job)
        # No token ends a row: all programs write as many.
        options: dict[str, Any] = {"eos_token_id": (), "max_new_tokens": job["output"], "do_sample": False}

        def ask(_index: int, seen: Seen) -> None:
            for token in generator.stream(rows, batch_size=len(rows), **options):
                if token.prompt == 0 and token.id is not None:
                    seen()

        def read() -> list[Any]:
            return [found.ids.tolist() for row in generator.generate(rows, **options) for found in row]

        return Prepared([(job["batch"], job["batch"] * job["prompt"])], ask, read)


def output_rows(output: Array) -> list[list[float]]:
    """Rows of an output of a graph [.., N], as many as are compared; one without axes is a row of one number."""
    vectors = output.reshape(-1, output.shape[-1] if output.ndim else 1)
    chosen = vectors[: rows_to_compare(vectors.shape[1], len(vectors))]
    return [[float(number) for number in vector] for vector in chosen]


def ids_feeds(manifest: Manifest, ids: Array) -> dict[str, Array]:
    """Build a graph's inputs from rows of token ids [B, T] without padding and without a past.

    Args:
        manifest: of the bundle.
        ids: int64; a graph with choices gets each row as its only choice, repeated as often as it wants.
    """
    B, T = ids.shape
    made: dict[str, Array] = {}
    for spec in manifest.inputs:
        if len(spec.shape) == 4:
            sizes = [
                B if axis == 0 else size if isinstance(size, int) else _past(manifest, T)
                for axis, size in enumerate(spec.shape)
            ]
            made[spec.name] = np.zeros(sizes, spec.dtype)
            continue
        values = {
            "input_ids": ids,
            "attention_mask": np.ones((B, T), np.int64),
            "position_ids": np.broadcast_to(np.arange(T), (B, T)),
        }.get(spec.name, np.zeros((B, T), np.int64))
        if len(spec.shape) == 3:
            choices = spec.shape[1] if isinstance(spec.shape[1], int) else 2
            values = np.repeat(values[:, None], choices, axis=1)
        made[spec.name] = np.ascontiguousarray(values)
    return made


def _past(manifest: Manifest, tokens: int) -> int:
    """Places of a cache before the first token: none where it grows, all where past and present share them."""
    return tokens if manifest.cache is not None and manifest.cache.in_place else 0


def open_own(options: Mapping[str, Any]) -> Pinnace:
    """Open the bundle that the options name."""
    return Pinnace({**options, "model": Path(options["model"])})
