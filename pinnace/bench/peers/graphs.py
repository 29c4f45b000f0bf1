"""Peers that run a bundle's own ONNX graph, each in its own environment: fastembed, OpenVINO, bare ONNX Runtime.

Only the standard library is imported before a class is opened.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pinnace.bench.jobs import Texts, rows_of, rows_to_compare
from pinnace.bench.loop import Prepared, Seen

_FASTEMBED_BATCH: Final = 32


class FastEmbed:
    """fastembed with the bundle's graph, in batches of 32.

    Args:
        options: ``model``, ``graph``, ``threads``, ``pooling``, ``width``.
    """

    distribution = "fastembed"

    def __init__(self, options: Mapping[str, Any]) -> None:
        start = time.perf_counter()
        from fastembed import TextEmbedding
        from fastembed.common.model_description import ModelSource, PoolingType

        self.import_s = time.perf_counter() - start
        if options["task"] != "feature-extraction":
            raise SystemExit(f"fastembed gives vectors of texts and has no {options['task']}")
        pooling = options["pooling"] or {"mode": "mean", "normalize": False}
        if pooling["mode"] not in ("mean", "cls"):
            raise SystemExit(f"fastembed has no {pooling['mode']} pooling")
        name = "pinnace/bench"
        TextEmbedding.add_custom_model(
            model=name, pooling=PoolingType[pooling["mode"].upper()], normalization=pooling["normalize"],
            sources=ModelSource(hf=name), dim=options["width"], model_file=options["graph"],
        )  # fmt: skip
        self._model = TextEmbedding(name, specific_model_path=str(options["model"]), threads=options["threads"])

    def prepare(self, job: Mapping[str, Any]) -> Prepared:
        """Read the texts."""
        given = Texts(job)

        def embed(index: int, _seen: Seen = lambda: None) -> list[Any]:
            return list(self._model.embed(given.queries[index], batch_size=_FASTEMBED_BATCH))

        def read() -> list[Any]:
            return [row.tolist() for index in range(len(given.queries)) for row in embed(index)]

        return Prepared(given.sizes, embed, read)


class _Ids:
    """A graph that is run on rows of token ids."""

    def prepare(self, job: Mapping[str, Any]) -> Prepared:
        """Build the arrays."""
        import numpy as np

        ids = np.array(rows_of(job), np.int64)
        values = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        unknown = sorted(set(job["inputs"]) - set(values))
        if unknown:
            raise SystemExit(f"the graph has inputs that are not given here: {', '.join(unknown)}")
        feeds = {name: values[name] for name in job["inputs"]}

        def read() -> list[Any]:
            first = self._run(feeds)
            vectors = first.reshape(-1, first.shape[-1])
            rows: list[Any] = vectors[: rows_to_compare(vectors.shape[1], len(vectors))].tolist()
            return rows

        return Prepared([(job["batch"], job["batch"] * job["length"])], lambda _index, _seen: self._run(feeds), read)

    def _run(self, feeds: dict[str, Any]) -> Any:
        raise NotImplementedError


class OpenVino(_Ids):
    """OpenVINO on the bundle's graph; it takes graphs of standard operators (``--target onnx``) best."""

    distribution = "openvino"

    def __init__(self, options: Mapping[str, Any]) -> None:
        start = time.perf_counter()
        import openvino

        self.import_s = time.perf_counter() - start
        core = openvino.Core()
        settings = {"INFERENCE_NUM_THREADS": options["threads"], "PERFORMANCE_HINT": "LATENCY"}
        settings["INFERENCE_PRECISION_HINT"] = "f32"  # otherwise newer processors compute in bfloat16
        self._model = core.compile_model(str(Path(options["model"]) / options["graph"]), "CPU", settings)

    def _run(self, feeds: dict[str, Any]) -> Any:
        return self._model(feeds)[0]


class BareOnnxRuntime(_Ids):
    """ONNX Runtime by hand: its defaults, but for the number of threads."""

    distribution = "onnxruntime"

    def __init__(self, options: Mapping[str, Any]) -> None:
        start = time.perf_counter()
        import onnxruntime

        self.import_s = time.perf_counter() - start
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = options["threads"]
        graph = str(Path(options["model"]) / options["graph"])
        self._model = onnxruntime.InferenceSession(graph, settings, providers=["CPUExecutionProvider"])

    def _run(self, feeds: dict[str, Any]) -> Any:
        return self._model.run(None, feeds)[0]
