"""What a graph takes and gives for one task and configuration, and how the reference model is called for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pinnace.errors import UsageError
from pinnace.export.lowering_ort import shares_cache
from pinnace.export.tasks import DYNAMIC_AXES, TASKS, Task, limits_of, sizes, with_sizes
from pinnace.models.ops import last_position
from pinnace.spec import PAST, PRESENT, CacheSpec, TensorSpec

CAPACITY: Final = "capacity"  # of a cache that does not grow: a size that only the option fixes
FLAT_CHOICES: Final = "batch*choices"  # the rows that several choices of each question are flattened into


@dataclasses.dataclass(frozen=True)
class Options:
    """Choices that shape the graph.

    Attributes:
        static: axis name -> fixed size, for accelerators that need fixed shapes; ``capacity`` stands for a cache whose
            past and present have this one size.
        hidden_states: give the embeddings' and every layer's output too.
        attentions: give every layer's attention weights too.
        all_logits: a causal task gives logits for every position instead of each row's last.
    """

    static: Mapping[str, int] = dataclasses.field(default_factory=dict)
    hidden_states: bool = False
    attentions: bool = False
    all_logits: bool = False


@dataclasses.dataclass(frozen=True)
class Interface:
    """Inputs and outputs in order, the cache of a causal task, and the call that gives them.

    ``axes`` names the axes of every output, those of fixed size too.
    """

    task: Task
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    axes: Mapping[str, tuple[int | str, ...]]
    cache: CacheSpec | None
    options: Options

    @property
    def traced(self) -> Interface:
        """The interface that the model is traced with."""
        return self

    @property
    def free_tokens(self) -> bool:
        """Whether a run may have any number of rows and new tokens."""
        return not self.options.static.keys() - {CAPACITY}

    def call(self, model: Any, *tensors: Any) -> Sequence[Any]:
        """Call a reference model with tensors in the order of ``inputs``; results come in the order of ``outputs``."""
        given = dict(zip((spec.name for spec in self.inputs), tensors, strict=True))
        extra: dict[str, Any] = {}
        if self.cache is not None:
            extra[PAST] = tuple(
                tuple(given.pop(f"{PAST}.{i}.{part}") for part in ("key", "value")) for i in range(self.cache.layers)
            )
            extra["use_cache"] = True
            if not self.options.all_logits:
                extra["logits_to_keep"] = last_position(given["attention_mask"], given["input_ids"])
        result = model(
            **given, **extra, return_dict=True,
            output_hidden_states=self.options.hidden_states, output_attentions=self.options.attentions,
        )  # fmt: skip
        return [_pick(result, spec.name) for spec in self.outputs]


def _pick(result: Any, name: str) -> Any:
    """Find an output by the graph's name: ``hidden_states.3``, ``present.0.key``, or a field of the result."""
    field, *place = name.split(".")
    if field == PRESENT:
        return result.past_key_values[int(place[0])][("key", "value").index(place[1])]
    value = getattr(result, field)
    return value[int(place[0])] if place else value


def check_options(task: Task, options: Options) -> None:
    """Refuse an option that the task has no meaning for, before the long work begins. Raises UsageError."""
    if options.all_logits and not task.causal:
        able = ", ".join(name for name, row in TASKS.items() if row.causal)
        raise UsageError(f"--all-logits is for {able}; got the task {task.name}")


def interface(task: Task, config: Any, options: Options, *, target: str, pooler: bool) -> Interface:
    """Work out a graph's inputs and outputs.

    Args:
        task: the row of the task table.
        config: the model's configuration.
        options: choices that shape the graph.
        target: the lowering; it decides whether a cache is written in place.
        pooler: whether the checkpoint has one (feature-extraction then gives its output too).

    Raises:
        UsageError: a fixed size for an axis that the task does not have, or that is impossible.
    """
    known = sizes(config)
    cache = _cache(config, target, options) if task.causal else None
    inputs = list(task.inputs_of(config.model_type))
    outputs = [spec for spec in task.outputs if pooler or spec.name != "pooler_output"]
    if options.all_logits:
        outputs = [_every_position(spec) for spec in outputs]
    rows = _rows_of_text(task)
    if options.hidden_states:
        count = config.num_hidden_layers + 1
        outputs += [TensorSpec(f"hidden_states.{i}", "float32", (*rows, "hidden")) for i in range(count)]
    if options.attentions:
        heads, keys = config.num_attention_heads, "total_sequence" if task.causal else "sequence"
        weights = (rows[0], heads, "sequence", keys)
        outputs += [TensorSpec(f"attentions.{i}", "float32", weights) for i in range(config.num_hidden_layers)]
    if cache is not None:
        for part_of, axis, into in ((PAST, "past_sequence", inputs), (PRESENT, "total_sequence", outputs)):
            shape = ("batch", cache.heads, axis, cache.head_size)
            names = (f"{part_of}.{i}.{part}" for i in range(cache.layers) for part in ("key", "value"))
            into.extend(TensorSpec(name, "float32", shape) for name in names)
    known |= _fixed(options.static, inputs, config, cache)
    axes = {spec.name: spec.shape for spec in outputs}
    return Interface(task, with_sizes(tuple(inputs), known), with_sizes(tuple(outputs), known), axes, cache, options)


def _rows_of_text(task: Task) -> tuple[str, str]:
    """Axes of one flat batch of texts; several choices of one question are flattened into rows."""
    return (FLAT_CHOICES if "choices" in task.inputs[0].shape else "batch", "sequence")


def _every_position(spec: TensorSpec) -> TensorSpec:
    return dataclasses.replace(spec, shape=("batch", "sequence", *spec.shape[2:]))


def _cache(config: Any, target: str, options: Options) -> CacheSpec:
    heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    head_size = getattr(config, "head_size", config.hidden_size // config.num_attention_heads)
    return CacheSpec(
        layers=config.num_hidden_layers,
        heads=heads,
        head_size=head_size,
        capacity=limits_of(config).sequence,
        in_place=target == "ort" and shares_cache(head_size, attentions=options.attentions),
    )


def _fixed(
    static: Mapping[str, int], inputs: Sequence[TensorSpec], config: Any, cache: CacheSpec | None
) -> dict[str, int]:
    # The total is the past and the new tokens together, never chosen by itself.
    axes = {axis for spec in inputs for axis in spec.shape if axis in DYNAMIC_AXES} - {"total_sequence"}
    longest = limits_of(config).sequence
    for axis, size in static.items():
        if axis not in axes:
            raise UsageError(f"--static {axis}={size}: this task has the axes {', '.join(sorted(map(str, axes)))}")
        if size < 1:
            raise UsageError(f"--static {axis}={size}: a size is at least 1")
        if "sequence" in axis and size > longest:
            raise UsageError(f"--static {axis}={size}: the model takes at most {longest} tokens")
    past, new = static.get("past_sequence", 0), static.get("sequence", 1)
    if past + new > longest:
        raise UsageError(
            f"--static past_sequence={past}: with {new} more the model would see {past + new} tokens, "
            f"it takes at most {longest}"
        )
    if cache is not None and cache.in_place and past and new > 1 and static.get("batch", 1) > 1:
        raise UsageError(
            f"--static batch={static['batch']},sequence={new},past_sequence={past}: with a cache in place, many new "
            "tokens after a past fit in a single row only; fix sequence=1 or batch=1, or take --target onnx"
        )
    fixed = dict(static)
    if {"sequence", "past_sequence"} <= fixed.keys():
        fixed.setdefault("total_sequence", fixed["sequence"] + fixed["past_sequence"])
    if {"batch", "choices"} <= fixed.keys():
        fixed.setdefault(FLAT_CHOICES, fixed["batch"] * fixed["choices"])
    return fixed
