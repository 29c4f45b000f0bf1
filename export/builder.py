"""Export: the one file that knows the order. Checkpoint in, verified bundle out, whole or not at all."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import onnx_ir as ir
import torch

from pinnace.card import model_card
from pinnace.errors import CheckFailed, UsageError, unknown_word
from pinnace.export import lowering_onnx, lowering_ort, lowering_static
from pinnace.export.cases import Case, golden_case, grid
from pinnace.export.certificate import certificate, to_json, tools
from pinnace.export.genai import check_generation_config, write_genai_config
from pinnace.export.graph import Row, lower
from pinnace.export.interface import Interface, Options, check_options
from pinnace.export.model_weights import ModelWeights, find_weights, make_weights
from pinnace.export.passes import tidy
from pinnace.export.quantized import QUANTIZED, add_variant, check_request
from pinnace.export.sentence import sentence_case
from pinnace.export.source import Origin, find_origin, output_folder
from pinnace.export.static_cache import fix_shapes, graph_interface
from pinnace.export.tasks import limits_of
from pinnace.export.tokenizer_files import complete_tokenizer, copy_settings, has_tokenizer
from pinnace.export.tracer import trace
from pinnace.export.validate import Validation, run_reference, validate
from pinnace.export.weights import bind_weights, read_number, unbound
from pinnace.models.checkpoints.hub import HubOptions
from pinnace.models.checkpoints.resolution import Resolution
from pinnace.models.loading import fill
from pinnace.publishing import file_facts, publishing, staging
from pinnace.quantize.fp16 import to_fp16
from pinnace.quantize.islands import too_large_for_fp16
from pinnace.runtime.checks.golden import GoldenCase, write_golden
from pinnace.spec import (
    CERTIFICATE_NAME,
    GOLDEN_NAME,
    GRAPH_NAMES,
    MANIFEST_FORMAT,
    MANIFEST_NAME,
    TARGETS,
    Manifest,
    Variant,
)

STATIC: Final = "onnx, fixed cache"  # the target onnx, where the cache has a fixed capacity
# Target and precision -> lowering. An fp16 variant is for CUDA, where other kernels are fast.
ROWS: Final[Mapping[tuple[str, str], Mapping[str, Row]]] = types.MappingProxyType(
    {
        ("ort", "fp32"): lowering_ort.CPU_ROWS,
        ("ort", "fp16"): lowering_ort.CUDA_ROWS,
        ("onnx", "fp32"): lowering_onnx.ROWS,
        ("onnx", "fp16"): lowering_onnx.HALF_ROWS,
        (STATIC, "fp32"): lowering_static.ROWS,
        (STATIC, "fp16"): lowering_static.HALF_ROWS,
    }
)
DEFAULT_OPSET: Final = 23
OPSETS: Final = range(18, 25)
# Precision -> the variants that are made of the trace; fp32 comes first, the others are measured against it.
WRITTEN: Final[Mapping[str, tuple[str, ...]]] = types.MappingProxyType(
    {"fp32": ("fp32",), "fp16": ("fp32", "fp16"), **dict.fromkeys(QUANTIZED, ("fp32",))}
)
# Layout -> folder of the graphs.
FOLDERS: Final[Mapping[str, str]] = types.MappingProxyType({"flat": "", "hub": "onnx"})
INIT_FILE: Final = "model-init.safetensors"
Progress = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Exported:
    """What an export made: the bundle's folder, its manifest and its certificate."""

    path: Path
    manifest: Manifest
    certificate: dict[str, Any]
    unexpected: tuple[str, ...]
    fresh: tuple[str, ...]


def export(
    model: str | Path,
    *,
    task: str | None = None,
    output: str | Path | None = None,
    precision: str = "fp32",
    target: str = "ort",
    opset: int = DEFAULT_OPSET,
    static: Mapping[str, int] | None = None,
    hidden_states: bool = False,
    attentions: bool = False,
    all_logits: bool = False,
    random_weights: bool = False,
    config: str | Mapping[str, Any] = "",
    labels: Sequence[str] | None = None,
    init_missing: bool = False,
    allow_pickle: bool = False,
    layout: str = "flat",
    validate: bool = True,
    data: str | Path | None = None,
    allow_degraded: bool = False,
    hub: HubOptions | None = None,
    subfolder: str = "",
    progress: Progress | None = None,
) -> Exported:
    """Export a checkpoint into a bundle and check it against PyTorch.

    Args:
        model: folder, Hub id, or catalog name such as ``bert``.
        task: task name or alias; None takes the one that the checkpoint was saved with.
        output: the bundle's folder; by default ``<model>-<task>`` in the current folder.
        precision: ``fp32``; or ``fp16``, ``int8`` or ``int4``, written beside fp32.
        target: ``ort`` (ONNX Runtime's fused operators) or ``onnx`` (standard operators only).
        opset: version of the standard operators, 18 to 24.
        static: axis -> fixed size, for accelerators that need fixed shapes; see `Options`.
        hidden_states: give every layer's output too, as ``hidden_states.0``, ``hidden_states.1``, ...
        attentions: give every layer's attention weights too, as ``attentions.0``, ...
        all_logits: a causal task gives logits for every position.
        random_weights: no checkpoint: random weights in the configured shape.
        config: fields of the configuration to set, as a mapping or as text (``key=value,...``).
        labels: names of a classifier's labels, in the order of its logits; None takes the checkpoint's own.
        init_missing: give missing weights fresh random numbers instead of failing.
        allow_pickle: accept a pickle checkpoint where there are no safetensors.
        layout: ``flat``, or ``hub`` (graphs in ``onnx/``, as transformers.js reads them).
        validate: run the written graph beside PyTorch; False is recorded in the certificate, and leaves fp16 without
            the search for numbers beyond its range.
        data: for int8 and int4, examples that calibrate and judge; None takes texts that lie in the package.
        allow_degraded: write an int8 or int4 variant that misses its gate, and say so in the manifest.
        hub: how to fetch from the Hub.
        subfolder: folder inside the repository or folder.
        progress: called with a line of text at each stage.

    Raises:
        UsageError: an unknown word or impossible combination. CheckpointError, ConfigError: the checkpoint is not fit.
        CheckFailed: the written graph does not agree with PyTorch, or int8 or int4 misses its gate; nothing is
            published.
        MachineError: disk, permissions, or another process exports to the same folder.
    """
    _check_words(precision=precision, target=target, layout=layout)
    if opset not in OPSETS:
        raise UsageError(f"opset {opset!r} is not supported; choose a number from {OPSETS[0]} to {OPSETS[-1]}")
    _check_types(static, labels)
    say = progress or (lambda _line: None)
    origin = find_origin(
        model, task, hub=hub or HubOptions(), subfolder=subfolder, random_weights=random_weights,
        allow_pickle=allow_pickle, changes=config, labels=labels,
    )  # fmt: skip
    options = Options(dict(static or {}), hidden_states, attentions, all_logits)
    check_options(origin.task, options)
    folder = output_folder(model, origin.task.name, output)
    check_request(precision, origin.task, options, origin.folder, data, allow_degraded)

    def build_in(place: Path) -> Exported:
        build = _Build(origin, options, target, opset, layout, place, say)
        model_weights = build.find_weights(random_weights, init_missing, allow_pickle)
        return dataclasses.replace(build.run(model_weights, WRITTEN[precision], validate), path=folder)

    with publishing(folder) as scratch:
        if precision not in QUANTIZED:
            return build_in(scratch)
        with staging(scratch) as first:
            exported = build_in(first)
            manifest, record = add_variant(first, scratch, precision, data, allow_degraded=allow_degraded, say=say)
            return dataclasses.replace(exported, manifest=manifest, certificate=record)


def _check_words(*, precision: str, target: str, layout: str) -> None:
    words = (("precision", precision, WRITTEN), ("target", target, TARGETS), ("layout", layout, FOLDERS))
    for kind, got, known in words:
        if got not in known:
            raise unknown_word(kind, got, known)


def _check_types(static: Any, labels: Any) -> None:
    """Refuse the command line's words where a function takes values."""
    if static is not None and not isinstance(static, Mapping):
        raise UsageError(f"static is {static!r}; expected axes and their sizes, as {{'batch': 1, 'sequence': 128}}")
    for axis, size in (static or {}).items():
        if isinstance(size, bool) or not isinstance(size, int):
            raise UsageError(f"static[{axis!r}] is {size!r}; expected a whole number")
    if isinstance(labels, str):
        raise UsageError(f"labels is the text {labels!r}; expected a list of texts, one for each logit")


class _Build:
    """One export under way; every method is one stage."""

    def __init__(
        self, origin: Origin, options: Options, target: str, opset: int, layout: str, scratch: Path, say: Progress
    ) -> None:
        self.origin, self.options, self.target, self.opset, self.say = origin, options, target, opset, say
        self.scratch = scratch
        self.graph_folder, self.graph_names = scratch / FOLDERS[layout], GRAPH_NAMES[layout]
        self.graph_folder.mkdir(exist_ok=True)
        self.config = origin.config
        self.limits = limits_of(self.config)

    def _weights_file(self, precision: str) -> str:
        """Name of a converted weights file; fp32 ones in the flat layout are still a Hugging Face checkpoint."""
        flat = self.graph_folder == self.scratch
        return "model.safetensors" if precision == "fp32" and flat else f"{self.graph_names[precision]}_data"

    def find_weights(self, at_random: bool, init_missing: bool, allow_pickle: bool) -> ModelWeights:
        """Locate every weight, or make random ones in the scratch folder."""
        if at_random or self.origin.folder is None:
            return make_weights(self.origin, self.graph_folder / self._weights_file("fp32"))
        return find_weights(
            self.origin, self.origin.folder, self.graph_folder / INIT_FILE,
            init_missing=init_missing, allow_pickle=allow_pickle,
        )  # fmt: skip

    def run(self, weights: ModelWeights, precisions: Sequence[str], check: bool) -> Exported:
        """Trace, lower, bind, validate, describe."""
        face = graph_interface(
            self.origin.task, self.config, self.options,
            target=self.target, opset=self.opset, pooler=weights.has_pooler,
        )  # fmt: skip
        if face.cache is not None and face.cache.fixed:
            self.limits = dataclasses.replace(self.limits, sequence=face.cache.capacity)
        if self.origin.folder:
            copy_settings(self.origin.folder, self.scratch)
            if face.cache is not None:
                check_generation_config(self.origin.folder)
        special = complete_tokenizer(self.scratch) if has_tokenizer(self.scratch) else {}
        self.say(f"tracing {self.origin.head} for {self.origin.task.name}")
        traced = trace(weights.build, face.traced.call, face.traced.inputs, face.traced.outputs)
        fix_shapes(traced, face)
        cases = self._cases(face)
        reference = self._reference(weights) if check else None
        checks: dict[str, Validation | None] = {}
        variants: dict[str, Variant] = {}
        for precision in precisions:
            rows = ROWS[STATIC if face.cache is not None and face.cache.fixed else self.target, precision]
            variants[precision] = self._write(traced.clone(), rows, weights.found, precision, cases if check else ())
            checks[precision] = None
            if reference is not None:
                self.say(f"checking {precision} against PyTorch on {len(cases)} cases")
                path = self.scratch / variants[precision].graph
                checks[precision] = validate(path, reference, face, cases, precision)
        if not any(Path(name).name == INIT_FILE for each in variants.values() for name in each.weights):
            (self.graph_folder / INIT_FILE).unlink(missing_ok=True)  # its numbers went into a converted file
        if reference is not None:
            golden = golden_case(face, self.limits)
            outputs = run_reference(reference, face, golden.inputs)
            write_golden(self.scratch / GOLDEN_NAME, {"random": GoldenCase({**golden.inputs}, {**outputs})})
        self.config.dtype, self.config.name_or_path = "float32", ""
        (self.scratch / "config.json").write_text(self.config.to_json_string(use_diff=False), "utf-8")
        record = certificate(checks, f"pinnace.models on PyTorch {torch.__version__.partition('+')[0]}")
        (self.scratch / CERTIFICATE_NAME).write_text(to_json(record), "utf-8")
        manifest = self._manifest(face, variants, special)
        write_genai_config(self.scratch, manifest, self.config)
        (self.scratch / "README.md").write_text(model_card(manifest, record), "utf-8")
        manifest = dataclasses.replace(manifest, files=file_facts(self.scratch))
        (self.scratch / MANIFEST_NAME).write_text(manifest.to_json(), "utf-8")
        return Exported(self.scratch, manifest, record, weights.found.unexpected, weights.fresh)

    def _cases(self, face: Interface) -> tuple[Case, ...]:
        cases = list(grid(face, self.limits))
        if has_tokenizer(self.scratch) and (case := sentence_case(self.scratch, face, self.limits)) is not None:
            cases.append(case)
        return tuple(cases)

    def _reference(self, weights: ModelWeights) -> torch.nn.Module:
        self.say("loading the PyTorch reference")
        with torch.device("meta"):
            model = weights.build()
        fill(model, weights.found, torch.float32)
        reference: torch.nn.Module = model.eval()
        return reference

    def _write(
        self, model: ir.Model, rows: Mapping[str, Row], found: Resolution, precision: str, cases: Sequence[Case]
    ) -> Variant:
        """Lower a traced model for one precision, bind its weights and save it."""
        folded = lower(model, rows, self.opset, lambda name: read_number(name, found.bound[name]))
        tidy(model)
        graph = self.graph_names[precision]
        islands: tuple[str, ...] = ()
        missing = unbound(model).keys() - found.bound.keys()
        if missing:
            raise CheckFailed(f"the traced graph has weights that the model lacks: {', '.join(sorted(missing))}")
        if precision == "fp16":
            # Without cases there is nothing to find them by, and the weights need not be loaded.
            if cases:
                fp32 = self.graph_folder / self.graph_names["fp32"]
                islands = too_large_for_fp16(model, fp32, [case.inputs for case in cases])
            to_fp16(model, islands)
        weights = bind_weights(model, found.bound, self.graph_folder, self._weights_file(precision), folded)
        path = self.graph_folder / graph
        ir.save(model, path)
        inside = path.relative_to(self.scratch).as_posix()
        prefix = inside.removesuffix(graph)
        return Variant(self.target, self.opset, inside, tuple(prefix + name for name in weights), islands)

    def _manifest(self, face: Interface, variants: dict[str, Variant], special: dict[str, int]) -> Manifest:
        labels = [self.config.id2label[i] for i in range(self.config.num_labels)]
        return Manifest(
            format=MANIFEST_FORMAT,
            task=face.task.name,
            architecture=self.origin.arch.name,
            head=self.origin.head,
            inputs=face.inputs,
            outputs=face.outputs,
            limits=self.limits,
            labels=tuple(labels) if any("labels" in axes for axes in face.axes.values()) else (),
            problem_type=self.config.problem_type,
            special_tokens=special,
            pooling=self.origin.pooling,
            cache=face.cache,
            source=self.origin.source,
            variants=variants,
            tools=tools(),
            files={},
        )
