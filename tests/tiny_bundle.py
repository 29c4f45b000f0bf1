"""A bundle of a few hundred bytes, made by hand: what the runtime's tests open, damage and run."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from safetensors.numpy import save_file

from pinnace.runtime.engine.ort import onnxruntime
from pinnace.safetensors_header import read_header
from pinnace.spec import CHECKSUM, FileFact, Limits, Manifest, Source, TensorSpec, Variant

VOCABULARY, TYPES, HIDDEN, LENGTH = 11, 2, 4, 16
INPUT_NAMES = ("input_ids", "attention_mask", "token_type_ids")


def weights(seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    generator = np.random.default_rng(seed)
    shapes = {"words": (VOCABULARY, HIDDEN), "types": (TYPES, HIDDEN), "dense": (HIDDEN, HIDDEN)}
    return {name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def external(name: str, dims: Sequence[int], pairs: Mapping[str, str], dtype: int = TensorProto.FLOAT) -> TensorProto:
    tensor = TensorProto(name=name, data_type=dtype, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, value in pairs.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def graph(weights_file: Path, nodes: Sequence[onnx.NodeProto] = ()) -> onnx.ModelProto:
    """``(words[ids] + types[segments]) * mask @ dense``, one node each, and then ``nodes``, which read ``encoded``."""
    layer = "/bert/encoder/layer.0"
    made = [
        helper.make_node("Gather", ["words", "input_ids"], ["w"], "/bert/embeddings/word_embeddings/Gather"),
        helper.make_node("Gather", ["types", "token_type_ids"], ["t"], "/bert/embeddings/token_type_embeddings/Gather"),
        helper.make_node("Add", ["w", "t"], ["e"], "/bert/embeddings/Add"),
        helper.make_node("Cast", ["attention_mask"], ["m"], f"{layer}/attention/Cast", to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["m", "last"], ["mask"], f"{layer}/attention/Unsqueeze"),
        helper.make_node("Mul", ["e", "mask"], ["masked"], f"{layer}/attention/Mul"),
        helper.make_node("MatMul", ["masked", "dense"], ["encoded"], f"{layer}/output/MatMul"),
        *(nodes or [helper.make_node("Identity", ["encoded"], ["last_hidden_state"], "/Identity")]),
    ]
    entries = read_header(weights_file)
    initializers = [
        external(name, e.shape, {"location": weights_file.name, "offset": str(e.start), "length": str(e.end - e.start)})
        for name, e in entries.items()
    ]
    initializers.append(helper.make_tensor("last", TensorProto.INT64, [1], [-1]))
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"]) for name in INPUT_NAMES]
    output = helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["batch", "sequence", HIDDEN])
    made_graph = helper.make_graph(made, "main", inputs, [output], initializers)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(made_graph, ir_version=10, opset_imports=opsets)


def make_manifest(folder: Path) -> Manifest:
    inputs = tuple(TensorSpec(name, "int64", ("batch", "sequence")) for name in INPUT_NAMES)
    return Manifest(
        format=1,
        task="feature-extraction",
        architecture="bert",
        head="BertModel",
        inputs=inputs,
        outputs=(TensorSpec("last_hidden_state", "float32", ("batch", "sequence", HIDDEN)),),
        limits=Limits(sequence=LENGTH, vocabulary=VOCABULARY, token_types=TYPES),
        labels=(),
        problem_type=None,
        special_tokens={"pad_token": 0},
        pooling=None,
        cache=None,
        source=Source("tiny"),
        variants={"fp32": Variant("ort", 21, "model.onnx", ("model.safetensors",))},
        tools={"onnx": onnx.__version__},
        files=file_facts(folder),
    )


def file_facts(folder: Path) -> dict[str, FileFact]:
    facts = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != "manifest.json" and not name.startswith("."):
            content = path.read_bytes()
            facts[name] = FileFact(len(content), hashlib.sha256(content).hexdigest())
    return facts


def facts_by_hand(folder: Path) -> dict[str, Any]:
    """The facts of a folder's manifest, to be changed and written as a person would: without a checksum."""
    data: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    data.pop(CHECKSUM, None)
    return data


def write_manifest(folder: Path, change: Callable[[dict[str, Any]], None] | None = None) -> None:
    """Write the manifest that fits the folder's files as they are, changed by ``change``."""
    data = json.loads(make_manifest(folder).to_json())
    del data[CHECKSUM]  # as of a manifest that was written by hand
    if change:
        change(data)
    (folder / "manifest.json").write_text(json.dumps(data))


def make_bundle(
    folder: Path,
    *,
    nodes: Sequence[onnx.NodeProto] = (),
    change_graph: Callable[[onnx.ModelProto], None] | None = None,
    golden: bool = True,
) -> Path:
    """Write a whole bundle and return its folder.

    Args:
        folder: a folder that does not exist yet.
        nodes: instead of the last node; they read ``encoded`` and make ``last_hidden_state``.
        change_graph: what to do to the ONNX model before it is written.
        golden: whether to record inputs and outputs; the graph must run then.
    """
    folder.mkdir(parents=True)
    save_file(weights(), folder / "model.safetensors", metadata={"format": "pt"})
    model = graph(folder / "model.safetensors", nodes)
    if change_graph:
        change_graph(model)
    (folder / "model.onnx").write_bytes(model.SerializeToString(deterministic=True))
    (folder / "config.json").write_text('{"model_type": "bert", "hidden_size": 4}')
    (folder / "README.md").write_text("# tiny\n")
    (folder / "certificate.json").write_text('{"variants": {"fp32": {"verdict": "passed", "cases": ["a"]}}}')
    if golden:
        write_golden(folder)
    write_manifest(folder)
    return folder


def hub_tree(folder: Path, target: Path) -> Path:
    """Lay a bundle out as the Hub's cache does, names in a snapshot and contents in blobs, and return the snapshot."""
    repository = target / "models--someone--tiny"
    snapshot = repository / "snapshots" / ("0" * 40)
    (repository / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for index, path in enumerate(sorted(folder.iterdir())):
        blob = repository / "blobs" / f"{index:040x}"
        shutil.copy(path, blob)
        (snapshot / path.name).symlink_to(os.path.relpath(blob, snapshot))
    return snapshot


def write_golden(folder: Path) -> None:
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    arrays: dict[str, Any] = {}
    for case, inputs in {"short": example(1, 3), "padded": example(2, 5, padding=2)}.items():
        arrays.update({f"{case}/in/{name}": array for name, array in inputs.items()})
        (result,) = session.run(["last_hidden_state"], inputs)
        arrays[f"{case}/out/last_hidden_state"] = result
    np.savez(folder / "golden.npz", **arrays)


def example(rows: int, tokens: int, padding: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    generator = np.random.default_rng(rows * 100 + tokens)
    mask = np.ones((rows, tokens), np.int64)
    mask[:, tokens - padding :] = 0 if padding else 1
    return {
        "input_ids": generator.integers(0, VOCABULARY, (rows, tokens)),
        "attention_mask": mask,
        "token_type_ids": generator.integers(0, TYPES, (rows, tokens)),
    }


def expected(inputs: Mapping[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """What the graph computes, in numpy."""
    w = weights()
    embedded = w["words"][inputs["input_ids"]] + w["types"][inputs["token_type_ids"]]
    result: np.ndarray[Any, Any] = (embedded * inputs["attention_mask"][..., None]) @ w["dense"]
    return result
