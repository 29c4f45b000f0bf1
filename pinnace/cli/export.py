"""``pinnace export``: a checkpoint becomes a verified bundle, and what was done is told."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from pinnace.card import quality_cells
from pinnace.cli.flags import shown_path
from pinnace.cli.inputs import near_path, read_labels
from pinnace.cli.output import Console
from pinnace.cli.progress import stages
from pinnace.errors import CheckpointError, UsageError, nearest_word
from pinnace.forms import FORMS
from pinnace.models.registry import ARCHS
from pinnace.units import in_bytes

# Flags that are arguments of the builder under the same name; what is not given is left to its defaults.
_PASSED: Final = (
    "task", "output", "precision", "target", "opset", "static", "hidden_states", "attentions", "all_logits",
    "random_weights", "config", "init_missing", "allow_pickle", "layout", "subfolder", "data", "allow_degraded",
)  # fmt: skip

_TOKENIZER_FILES: Final = frozenset({"tokenizer.json", "vocab.txt"})


def run(arguments: SimpleNamespace, console: Console) -> int:
    """Export; the flags are those of the command table."""
    if arguments.task is not None:
        from pinnace.spec import canonical_task

        canonical_task(arguments.task)  # a wrong word is told before PyTorch is imported
    from pinnace.export import export
    from pinnace.models.checkpoints.hub import HubOptions

    console.stage("starting PyTorch")
    model = arguments.model
    if model.startswith("~"):
        model = str(Path(model).expanduser())
    given = {name: value for name in _PASSED if (value := getattr(arguments, name)) not in (None, False)}
    if arguments.labels is not None:
        given["labels"] = read_labels("labels", arguments.labels)
    hub = HubOptions(
        revision=arguments.revision or HubOptions.revision,
        cache_dir=arguments.cache_dir,
        local_files_only=arguments.local_files_only,
    )
    try:
        exported = export(model, **given, validate=not arguments.no_validate, hub=hub, progress=stages(console))
    except (CheckpointError, UsageError) as error:
        if hint := near_model(model):
            raise type(error)(f"{error}{hint}") from error
        raise
    console.clear()
    _warn(exported, console)
    if console.json:
        console.result_json(facts(exported, console.seconds))
    else:
        console.result(summary(exported, console.seconds))
    folder = shown_path(str(exported.path))
    example = FORMS[exported.manifest.task].example
    speaks = _TOKENIZER_FILES & set(exported.manifest.files)
    console.next(f"pinnace run {folder} {example}" if speaks else f"pinnace inspect {folder}")
    return 0


def near_model(model: str) -> str:
    """A hint at the catalog name or folder that is most like a word which named no model; empty where none is."""
    if model in ARCHS or Path(model).exists():
        return ""
    if near := nearest_word(model, ARCHS, 0.6):
        return f"\n  Did you mean the catalog name {near!r}?"
    return near_path(model).replace(". Did", "\n  Did", 1)


def facts(exported: Any, seconds: float) -> dict[str, Any]:
    """All that an export did, as plain data; sizes in bytes."""
    manifest, certificate = exported.manifest, exported.certificate
    return {
        "path": str(exported.path),
        "task": manifest.task,
        "architecture": manifest.architecture,
        "head": manifest.head,
        "source": {"name": manifest.source.name, "revision": manifest.source.revision},
        "bytes": sum(fact.bytes for fact in manifest.files.values()),
        "variants": {
            name: {
                "target": variant.target,
                "opset": variant.opset,
                "files": {file: manifest.files[file].bytes for file in (variant.graph, *variant.weights)},
                "verdict": certificate["variants"][name]["verdict"],
                "largest_difference": largest_difference(certificate["variants"][name]),
                "islands": list(variant.islands),
                "scheme": variant.scheme,
                "degraded": variant.degraded,
            }
            for name, variant in manifest.variants.items()
        },
        "unexpected": list(exported.unexpected),
        "fresh": list(exported.fresh),
        "certificate": certificate,
        "seconds": round(seconds, 3),
    }


def largest_difference(check: dict[str, Any]) -> float | None:
    """The largest difference from PyTorch in any output; None where nothing was compared."""
    return max((found["max_abs"] for found in check.get("outputs", {}).values()), default=None)


def summary(exported: Any, seconds: float) -> str:
    """What an export did, for a terminal."""
    told = facts(exported, seconds)
    source = told["source"]
    revision = f" @ {source['revision'][:12]}" if source["revision"] else ""
    lines = [
        told["path"],
        f"  {told['head']} for {told['task']}, from {source['name']}{revision}",
    ]
    for name, variant in told["variants"].items():
        files = ", ".join(f"{file} {in_bytes(count)}" for file, count in variant["files"].items())
        lines.append(f"  {name} ({variant['target']}, opset {variant['opset']}): {files}")
        worst = variant["largest_difference"]
        cases = len(told["certificate"]["variants"][name].get("cases", ()))
        shown = "not validated" if worst is None else f"largest difference from PyTorch {worst:.1e} over {cases} cases"
        if variant["scheme"]:
            shown = ", ".join(quality_cells(told["certificate"]["variants"][name]).values())
        lines.append(f"  {' ' * len(name)} {shown}")
        if variant["islands"]:
            lines.append(f"  {' ' * len(name)} in fp32: {', '.join(variant['islands'])}")
    lines.append(f"  {in_bytes(told['bytes'])} in all, {seconds:.1f} s")
    return "\n".join(lines)


def _warn(exported: Any, console: Console) -> None:
    if exported.unexpected:
        console.warn(
            f"the model has no place for {len(exported.unexpected)} stored weights: {_few(exported.unexpected)}"
        )
    if exported.fresh:
        console.warn(
            f"{len(exported.fresh)} weights are random, the checkpoint lacks them: {_few(exported.fresh)}; "
            "answers mean nothing until it is trained"
        )


def _few(names: tuple[str, ...], most: int = 4) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
