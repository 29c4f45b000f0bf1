"""A readable picture of a bundle: what goes in and out, what its graphs are made of, how large it is."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from pinnace.errors import BundleError
from pinnace.runtime.bundles import hygiene, integrity
from pinnace.runtime.bundles.bundle import Bundle
from pinnace.runtime.bundles.certificate import certificate_summary, read_certificate
from pinnace.runtime.bundles.onnx_graph import GraphModel
from pinnace.runtime.bundles.onnx_reader import read_graph
from pinnace.runtime.bundles.variants import describe_choice
from pinnace.spec import CERTIFICATE_NAME, TensorSpec, Variant
from pinnace.units import in_bytes

_LAYER: Final = re.compile(r"(.*?[./](?:layers?|blocks?|h)[./])(\d+)(?=/|$)")
_SHOWN_LABELS: Final = 8
TOP: Final = "(top)"  # nodes of the whole model, above all modules


def describe(path: str | Path) -> dict[str, Any]:
    """Return the facts of a bundle as plain data. Files are not verified, so that a damaged bundle can be looked at.

    Raises:
        BundleError: no such bundle, or a graph that cannot be read.
    """
    bundle = Bundle.open(path, verify=False)
    manifest = bundle.manifest
    return {
        "path": str(bundle.path),
        "task": manifest.task,
        "architecture": manifest.architecture,
        "head": manifest.head,
        "source": {"name": manifest.source.name, "revision": manifest.source.revision},
        "bytes": sum(fact.bytes for fact in manifest.files.values()),
        "files": {name: fact.bytes for name, fact in sorted(manifest.files.items())},
        "inputs": [_tensor(spec) for spec in manifest.inputs],
        "outputs": [_tensor(spec) for spec in manifest.outputs],
        "limits": {
            "sequence": manifest.limits.sequence,
            "vocabulary": manifest.limits.vocabulary,
            "token_types": manifest.limits.token_types,
        },
        "labels": list(manifest.labels),
        "problem_type": manifest.problem_type,
        "pooling": None if manifest.pooling is None else vars(manifest.pooling).copy(),
        "cache": None if manifest.cache is None else vars(manifest.cache).copy(),
        "tools": dict(sorted(manifest.tools.items())),
        "variants": {name: _variant(bundle, variant) for name, variant in manifest.variants.items()},
        "auto": describe_choice(bundle),
        "certificate": _certificate(bundle),
    }


def render(facts: Mapping[str, Any]) -> str:
    """Return the picture of what `describe` found, for a terminal."""
    source = facts["source"]
    revision = f" @ {source['revision'][:12]}" if source["revision"] else ""
    lines = [
        facts["path"],
        f"  {facts['task']} · {facts['head']} ({facts['architecture']}) · from {source['name']}{revision}",
        f"  {len(facts['files'])} files, {in_bytes(facts['bytes'])}",
        "",
        "inputs",
        *_tensor_lines(facts["inputs"]),
        "outputs",
        *_tensor_lines(facts["outputs"]),
        "limits",
        "  {sequence:,} tokens a row, vocabulary {vocabulary:,}, {token_types} token types".format(**facts["limits"]),
    ]
    if facts["labels"]:
        shown, more = facts["labels"][:_SHOWN_LABELS], len(facts["labels"]) - _SHOWN_LABELS
        kind = f" ({facts['problem_type']})" if facts["problem_type"] else ""
        lines += [f"labels{kind}", f"  {', '.join(shown)}{f' and {more} more' if more > 0 else ''}"]
    for title in ("pooling", "cache"):
        if facts[title]:
            lines += [title, "  " + ", ".join(f"{key} {value}" for key, value in facts[title].items())]
    for name, variant in facts["variants"].items():
        lines += ["", *_variant_lines(name, variant)]
    lines += ["", f"auto takes {facts['auto']['precision'] or 'nothing'} here"]
    lines += [f"  {name}: {why}" for name, why in facts["auto"]["reasons"].items()]
    if facts["certificate"]:
        lines += ["", "certificate", *(f"  {key}: {value}" for key, value in facts["certificate"].items())]
    lines += ["", "made with", "  " + ", ".join(f"{name} {version}" for name, version in facts["tools"].items())]
    return "\n".join(lines)


def operators_by_layer(model: GraphModel) -> dict[str, dict[str, int]]:
    """Count the operators of each layer or module, in the order of the graph.

    A node's name is its module's path, so ``/bert/encoder/layer.0/attention/MatMul`` belongs to
    ``/bert/encoder/layer.0``, and ``/bert/embeddings/LayerNorm/Add`` to ``/bert/embeddings``.
    """
    layers: dict[str, Counter[str]] = {}
    for node in model.graph.walk():
        layers.setdefault(layer_of(node.name), Counter())[node.op_type] += 1
    return {layer: dict(sorted(counts.items())) for layer, counts in layers.items()}


def layer_of(node: str) -> str:
    """Return the layer or module that a node's name tells, ``(top)`` for one of the whole model."""
    if match := _LAYER.match(node):
        return match[0]
    return "/".join(node.split("/")[:-1][:3]) or TOP


def split_layer(layer: str) -> tuple[str, int | None]:
    """Split a repeated layer into what stands before its number, and the number; None for any other module."""
    match = _LAYER.fullmatch(layer)
    return (layer, None) if match is None else (match[1], int(match[2]))


def _variant(bundle: Bundle, variant: Variant) -> dict[str, Any]:
    integrity.identify(bundle.path, variant.graph)
    model = read_graph(bundle.path / variant.graph)
    names = {variant.graph, *variant.weights}
    return {
        "target": variant.target,
        "opset": variant.opset,
        "files": {name: bundle.manifest.files[name].bytes for name in sorted(names)},
        "bytes": sum(bundle.manifest.files[name].bytes for name in names),
        "parameters": sum(hygiene.elements(tensor) for tensor in model.graph.tensors),
        "nodes": sum(1 for _ in model.nodes()),
        "operators": dict(Counter(node.op_type for node in model.nodes()).most_common()),
        "layers": operators_by_layer(model),
        "islands": list(variant.islands),
        "degraded": variant.degraded,
        "scheme": variant.scheme,
        "needs": list(variant.needs),
        "made_on": variant.made_on,
    }


def _certificate(bundle: Bundle) -> dict[str, Any]:
    """Return the certificate's verdicts; its absence or damage in words, which `verify` makes an error."""
    if CERTIFICATE_NAME not in bundle.manifest.files:
        return {"state": "missing"}
    try:
        data = read_certificate(bundle)
    except BundleError as error:
        return {"state": str(error)}
    oracle = data.get("oracle")
    return {**({"compared with": oracle} if isinstance(oracle, str) else {}), **certificate_summary(data)}


def _variant_lines(name: str, variant: Mapping[str, Any]) -> Iterable[str]:
    degraded = ", DEGRADED" if variant["degraded"] else ""
    files = ", ".join(f"{file} {in_bytes(size)}" for file, size in variant["files"].items())
    yield f"{name}: target {variant['target']}, opset {variant['opset']}, {variant['parameters']:,} weights{degraded}"
    yield f"  {files}"
    if variant["scheme"]:
        needs = f", needs {', '.join(variant['needs'])}" if variant["needs"] else ""
        yield f"  scheme {variant['scheme']}{needs}, made on {variant['made_on'] or 'an unknown processor'}"
    if variant["islands"]:
        yield f"  in fp32: {', '.join(variant['islands'])}"
    yield f"  {variant['nodes']} nodes: {_counts(variant['operators'])}"
    # Equal layers that follow each other are one line.
    rows = [(*split_layer(layer), _counts(counts)) for layer, counts in variant["layers"].items()]
    for (stem, numbered, counts), group in groupby(rows, key=lambda row: (row[0], row[1] is not None, row[2])):
        numbers = [row[1] for row in group]
        span = f"{numbers[0]}-{numbers[-1]}" if len(numbers) > 1 else str(numbers[0])
        each = f" (each of {len(numbers)})" if len(numbers) > 1 else ""
        yield f"    {stem}{span if numbered else ''}: {counts}{each}"


def _counts(operators: Mapping[str, int]) -> str:
    ordered = sorted(operators.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(op if count == 1 else f"{op} x{count}" for op, count in ordered)


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)}


def _tensor_lines(tensors: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    for tensor in tensors:
        yield f"  {tensor['name']}: {tensor['dtype']} [{', '.join(map(str, tensor['shape']))}]"
