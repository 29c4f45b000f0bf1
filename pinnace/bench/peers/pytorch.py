"""Peers of the transformers family, each run in its own environment: transformers, sentence-transformers, optimum.

Only the standard library is imported before a class is opened.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from pinnace.bench.jobs import IDS, PROMPT, TEXTS, Texts, answer_text, rows_of, rows_to_compare
from pinnace.bench.loop import Prepared, Seen

# Task -> the class of transformers, and that of optimum.
AUTO: Final = {
    "feature-extraction": ("AutoModel", "ORTModelForFeatureExtraction"),
    "fill-mask": ("AutoModelForMaskedLM", "ORTModelForMaskedLM"),
    "question-answering": ("AutoModelForQuestionAnswering", "ORTModelForQuestionAnswering"),
    "token-classification": ("AutoModelForTokenClassification", "ORTModelForTokenClassification"),
    "text-classification": ("AutoModelForSequenceClassification", "ORTModelForSequenceClassification"),
    "text-generation": ("AutoModelForCausalLM", "ORTModelForCausalLM"),
}
_EMBED: Final = "feature-extraction"
_PIPELINE_BATCH: Final = 16  # the pipeline's own is 1, which is slower; the peer gets the better
_SENTENCE_BATCH: Final = 32  # what sentence-transformers takes by itself


class Torch:
    """A model of transformers, or of optimum in its place.

    Args:
        options: ``model``, ``task``, ``threads``, ``pooling`` (``{"mode", "normalize"}`` or None), ``length``.
        name: ``transformers`` or ``optimum``.
    """

    def __init__(self, options: Mapping[str, Any], name: str) -> None:
        start = time.perf_counter()
        import torch
        import transformers

        if name == "optimum":
            import optimum.onnxruntime as source
        else:
            source = transformers
        self.import_s = time.perf_counter() - start
        self.distribution = "optimum-onnx" if name == "optimum" else name
        torch.set_num_threads(options["threads"])
        self._torch, self._transformers, self._options = torch, transformers, options
        if options["task"] not in AUTO:
            raise SystemExit(f"{name} has no class for the task {options['task']}")
        kind = getattr(source, AUTO[options["task"]][name == "optimum"])
        self._model = kind.from_pretrained(options["model"], **_extras(name, options, torch))
        if name != "optimum":
            self._model.eval()
        self._jobs: dict[str, Callable[[Mapping[str, Any]], Prepared]] = {
            IDS: self._prepare_ids, TEXTS: self._prepare_texts, PROMPT: self._prepare_prompt,
        }  # fmt: skip

    def prepare(self, job: Mapping[str, Any]) -> Prepared:
        """Build the queries of a job."""
        made = self._jobs[job["kind"]](job)
        without_gradients = self._torch.inference_mode()
        return Prepared(made.sizes, without_gradients(made.ask), without_gradients(made.read))

    def _prepare_ids(self, job: Mapping[str, Any]) -> Prepared:
        ids = self._torch.tensor(rows_of(job))
        given = {"input_ids": ids, "attention_mask": self._torch.ones_like(ids)}
        if "token_type_ids" in job["inputs"]:
            given["token_type_ids"] = self._torch.zeros_like(ids)

        def read() -> list[Any]:
            first = next(iter(self._model(**given).values()))
            vectors = first.reshape(-1, first.shape[-1])
            rows: list[Any] = vectors[: rows_to_compare(vectors.shape[1], len(vectors))].tolist()
            return rows

        return Prepared(
            [(job["batch"], job["batch"] * job["length"])], lambda _index, _seen: self._model(**given), read
        )

    def _prepare_texts(self, job: Mapping[str, Any]) -> Prepared:
        given, pipe = Texts(job), self._pipeline()
        options = dict(job["options"])
        answer = self._vectors(pipe, given) if self._options["task"] == _EMBED else None

        def ask(index: int, _seen: Seen) -> Any:
            return answer(index) if answer else pipe(given.queries[index], **options)

        def read() -> list[Any]:
            found = [ask(index, lambda: None) for index in range(len(given.queries))]
            if answer:
                return [vector for some in found for vector in some.tolist()]
            texts = []
            for some, query in zip(found, given.queries, strict=True):
                texts += [answer_text(one) for one in (some if len(query) > 1 or isinstance(some, list) else [some])]
            return texts

        return Prepared(given.sizes, ask, read)

    def _pipeline(self) -> Any:
        options, transformers = self._options, self._transformers
        tokenizer = transformers.AutoTokenizer.from_pretrained(options["model"])
        return transformers.pipeline(
            options["task"], model=self._model, tokenizer=tokenizer, device="cpu", batch_size=_PIPELINE_BATCH
        )  # fmt: skip

    def _vectors(self, pipe: Any, given: Texts) -> Callable[[int], Any]:
        """Pool the pipeline's token vectors.

        It does not say which are padding, so lengths are counted before the clock starts, and arrays are asked for
        rather than lists: both are in its favour.
        """
        options, torch = self._options, self._torch
        cut = {"truncation": True, "max_length": options["length"]}
        pooling = options["pooling"] or {"mode": "mean", "normalize": False}
        lengths = [[len(row) for row in pipe.tokenizer(query, **cut)["input_ids"]] for query in given.queries]

        def vectors(index: int) -> Any:
            rows = pipe(given.queries[index], return_tensors=True, tokenize_kwargs=cut)
            pooled = torch.stack(
                [POOLERS[pooling["mode"]](row[0, :n]) for row, n in zip(rows, lengths[index], strict=True)]
            )
            return torch.nn.functional.normalize(pooled, dim=-1) if pooling["normalize"] else pooled

        return vectors

    def _prepare_prompt(self, job: Mapping[str, Any]) -> Prepared:
        torch, model, ids = self._torch, self._model, self._torch.tensor(rows_of(job))
        model.generation_config.eos_token_id = None

        class Streamer:
            """Is told the prompt first, and then each token."""

            def __init__(self, seen: Seen) -> None:
                self._told, self._seen = False, seen

            def put(self, _value: Any) -> None:
                if self._told:
                    self._seen()
                self._told = True

            def end(self) -> None:
                """Nothing is held back."""

        def generate(streamer: Any) -> Any:
            return model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=job["output"], do_sample=False,
                streamer=streamer, pad_token_id=0,
            )  # fmt: skip

        def ask(_index: int, seen: Seen) -> None:
            # A streamer takes one row; many rows are timed as a whole.
            generate(Streamer(seen) if len(ids) == 1 else None)

        def read() -> list[Any]:
            rows: list[Any] = generate(None)[:, ids.shape[1] :].tolist()
            return rows

        return Prepared([(job["batch"], job["batch"] * job["prompt"])], ask, read)


POOLERS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "mean": lambda row: row.mean(0),
    "cls": lambda row: row[0],
    "max": lambda row: row.max(0).values,
}


def _extras(name: str, options: Mapping[str, Any], torch: Any) -> dict[str, Any]:
    """What each library must be told besides the folder."""
    if name != "optimum":
        return {"dtype": torch.float32}
    import onnxruntime

    session = onnxruntime.SessionOptions()
    session.intra_op_num_threads = options["threads"]
    return {"session_options": session, "file_name": options["graph"], "provider": "CPUExecutionProvider"}


def open_transformers(options: Mapping[str, Any]) -> Torch:
    """Open a checkpoint with transformers on PyTorch."""
    return Torch(options, "transformers")


def open_optimum(options: Mapping[str, Any]) -> Torch:
    """Open a bundle's graph with optimum."""
    return Torch(options, "optimum")


class SentenceTransformers:
    """sentence-transformers, which sorts by length, with the pooling that the bundle's manifest names."""

    distribution = "sentence-transformers"

    def __init__(self, options: Mapping[str, Any]) -> None:
        start = time.perf_counter()
        import sentence_transformers
        import torch
        from sentence_transformers import models

        self.import_s = time.perf_counter() - start
        if options["task"] != _EMBED:
            raise SystemExit(f"sentence-transformers gives vectors of texts and has no {options['task']}")
        torch.set_num_threads(options["threads"])
        pooling = options["pooling"] or {"mode": "mean", "normalize": False}
        body = models.Transformer(str(options["model"]), max_seq_length=options["length"])
        parts: list[Any] = [body, models.Pooling(body.get_word_embedding_dimension(), pooling["mode"])]
        parts += [models.Normalize()] if pooling["normalize"] else []
        self._model = sentence_transformers.SentenceTransformer(modules=parts, device="cpu")

    def prepare(self, job: Mapping[str, Any]) -> Prepared:
        """Read the texts."""
        given = Texts(job)

        def embed(index: int, _seen: Seen = lambda: None) -> Any:
            return self._model.encode(given.queries[index], batch_size=_SENTENCE_BATCH, show_progress_bar=False)

        def read() -> list[Any]:
            return [row.tolist() for index in range(len(given.queries)) for row in embed(index)]

        return Prepared(given.sizes, embed, read)
