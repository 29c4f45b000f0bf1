"""Where a model comes from: a folder, a Hub id, a catalog name, or nowhere (random weights)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pinnace.errors import CheckpointError, ConfigError, UsageError
from pinnace.export.tasks import Task, find_task, tasks_of_head
from pinnace.export.tokenizer_files import read_pooling
from pinnace.models.checkpoints.hub import HubOptions, check_adapter, check_links, locate_checkpoint
from pinnace.models.configs.config import PreTrainedConfig
from pinnace.models.registry import ARCHS, Arch, arch_named, arch_of, catalog_entry
from pinnace.publishing import ELSEWHERE
from pinnace.spec import Pooling, Source, canonical_task


@dataclasses.dataclass(frozen=True)
class Origin:
    """What is known before anything is built.

    ``folder`` is None where there is no checkpoint at all (a catalog name with random weights). ``pooling`` is what a
    sentence-transformers folder says, for the task of making vectors. ``saved`` is the head that the checkpoint was
    saved with, empty where it names none that Pinnace has.
    """

    folder: Path | None
    source: Source
    arch: Arch
    config: Any
    task: Task
    head: str
    pooling: Pooling | None = None
    saved: str = ""

    @property
    def other_head(self) -> str:
        """What to add to an error about a head: that the checkpoint was saved with another; empty where it was not."""
        able = tasks_of_head(self.saved)
        if self.task.name in able or not able:
            return ""
        return (
            f"\n  {self.source.name} was saved as {self.saved}, which has no head for {self.task.name}; "
            f"it serves: {', '.join(able)}"
        )


def find_origin(
    model: str | Path,
    task: str | None,
    *,
    hub: HubOptions,
    subfolder: str = "",
    random_weights: bool = False,
    allow_pickle: bool = False,
    changes: str | Mapping[str, Any] = "",
    labels: Sequence[str] | None = None,
) -> Origin:
    """Resolve the model's name to a folder, a configuration, a task and a head.

    Args:
        model: an existing folder, a Hub id, or a catalog name such as ``bert``.
        task: name or alias; None takes the task of the head that ``config.json`` names.
        hub: how to fetch from the Hub.
        subfolder: folder inside the repository or folder.
        random_weights: only the configuration is needed; a catalog name then stands for the default shape.
        allow_pickle: accept a pickle where there are no safetensors.
        changes: fields of the configuration to set, as a mapping or as text (``key=value,...``).
        labels: names of the labels, in the order of the logits; None keeps the configuration's.

    Raises:
        UsageError: an unknown word. CheckpointError: nothing there, no Hub in reach, or a module of
            sentence-transformers that Pinnace does not have. ConfigError: bad values.
    """
    name = str(model)
    is_catalog = name in ARCHS and not Path(name).is_dir()
    if is_catalog and random_weights:
        arch = arch_named(name)
        config, folder, source = arch.config_class()(), None, Source(f"{name} (random weights)")
        found, head = find_task(_required(task, name), arch.name)
    else:
        if is_catalog:
            wanted = canonical_task(_required(task, name))
            entry = catalog_entry(arch_named(name), wanted)
            model, defaults = entry.repository, dict(entry.config)
        else:
            defaults = {}
        located = locate_checkpoint(
            model, hub, subfolder=subfolder, weights=not random_weights, allow_pickle=allow_pickle
        )
        folder = located.path
        if not (folder / "config.json").is_file():
            check_links(folder)
            check_adapter(folder)
            inside = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
            raise CheckpointError(f"{model} is not a checkpoint: it has no config.json\n  it has: {inside}")
        facts, _ = PreTrainedConfig.get_config_dict(folder)
        try:
            arch = arch_of(facts)
        except ConfigError as error:
            raise ConfigError(f"{model}: {error}") from None
        if labels is not None:
            defaults = {**_without_labels(facts), **defaults}
        config = arch.config_class().from_pretrained(folder, **defaults)
        is_folder = Path(model).is_dir()
        source = Source(_folder_name(Path(model)) if is_folder else str(model), located.revision)
        found, head = find_task(task or _own_task(config, model), arch.name)
    if isinstance(changes, str):
        if changes:
            config.update_from_string(changes)
    else:
        config.update(changes)
    if labels is not None:
        _name_labels(config, labels, fixed=folder is not None and not random_weights)
    saved = next((name for name in config.architectures or () if tasks_of_head(name)), "")
    if found.causal:
        config.update({"is_decoder": True})
    config.architectures = [head]
    pooling = read_pooling(folder) if folder is not None and found.name == "feature-extraction" else None
    origin = Origin(folder, source, arch, config, found, head, pooling, saved)
    if folder is not None and not random_weights and saved != head and {saved, head} <= {*arch.alike}:
        raise CheckpointError(
            f"{head} would take another head's weights, of the same names and another meaning{origin.other_head}"
            "\n  If its config.json is wrong, correct 'architectures' there"
        )
    return origin


def output_folder(model: str | Path, task: str, given: str | Path | None) -> Path:
    """The bundle's folder: the one that was asked for, or ``<model>-<task>`` in the current folder.

    Raises:
        UsageError: its path is not UTF-8, and ONNX Runtime opens no other.
    """
    short = _readable(Path(model).resolve().name) if Path(model).is_dir() else str(model).rpartition("/")[2]
    folder = Path(given) if given is not None else Path(f"{short}-{task}")
    path = str(folder.absolute())
    if path != _readable(path):
        raise UsageError(f"the output {_readable(path)} is not UTF-8, and ONNX Runtime opens no other; {ELSEWHERE}")
    return folder


def _name_labels(config: Any, labels: Sequence[str], *, fixed: bool) -> None:
    """Name the labels; their number is ``fixed`` where there are weights for it."""
    if len(set(labels)) != len(labels) or not labels:
        twice = sorted({label for label in labels if list(labels).count(label) > 1})
        raise UsageError(f"labels must be at least one and all different, got {len(labels)}, twice: {twice or 'none'}")
    if fixed and len(labels) != config.num_labels:
        raise UsageError(
            f"{len(labels)} labels are given, and the model has {config.num_labels}; give one for each "
            f"(where the checkpoint has no such head, --config num_labels={len(labels)} with --init-missing makes one)"
        )
    config.update({"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}})


def _without_labels(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a file with labels, whatever they are, one without: their number alone."""
    counts = (len(facts[key]) for key in ("id2label", "label2id") if isinstance(facts.get(key), dict | list))
    count = facts.get("num_labels") or next(counts, None)
    return {"id2label": None, "label2id": None, **({"num_labels": count} if count else {})}


def _required(task: str | None, model: str) -> str:
    if task is None:
        raise UsageError(f"{model!r} is a catalog name: say which task, for example --task qa")
    return task


def _own_task(config: Any, model: str | Path) -> str:
    """The task of the head that the checkpoint was saved with."""
    for head in config.architectures or ():
        if tasks := tasks_of_head(head):
            return tasks[0]
    raise UsageError(f"{model} does not say what it is for (architectures: {config.architectures}); give --task")


def _folder_name(folder: Path) -> str:
    """A name for a local folder that tells nothing of the machine: its own, or its repository's in a Hub cache."""
    parts = folder.resolve().parts
    if "snapshots" in parts:
        repository = parts[parts.index("snapshots") - 1]
        return _readable(repository.removeprefix("models--").replace("--", "/"))
    return _readable(parts[-1])


def _readable(name: str) -> str:
    """A file's name with a mark for each byte that is not UTF-8, which Python holds as half of a surrogate pair."""
    return "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in name)
