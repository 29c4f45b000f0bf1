"""Checkpoints by name: a folder is taken as it is, a Hub id becomes a folder of the local cache at a pinned revision.

Reading from the Hub stands here, writing in ``hub_upload``; no other file talks to ``huggingface_hub``,
which keeps its own cache and environment variables.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Final

from pinnace.errors import CheckpointError, MachineError, MissingExtra, UsageError

# Everything that is ever fetched: settings, vocabularies and weights that cannot carry code.
SETTINGS_FILES: Final = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "*[Pp]ooling/config.json",  # sentence-transformers calls the folder 1_Pooling; people choose other names
)
WEIGHT_FILES: Final = ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json")
PICKLE_FILES: Final = ("pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json")

_POINTER: Final = b"version https://git-lfs"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclasses.dataclass(frozen=True)
class Located:
    """Where a checkpoint or one of its files lies, and the commit it is pinned to (empty for a plain folder)."""

    path: Path
    revision: str


@dataclasses.dataclass(frozen=True)
class HubOptions:
    """How to fetch from the Hub.

    Attributes:
        revision: branch, tag or commit.
        cache_dir: cache folder; ``None`` is that of ``huggingface_hub`` (``HF_HUB_CACHE``, ``HF_HOME``).
        force_download: fetch again what the cache already holds.
        local_files_only: use the cache alone.
        token: an access token; ``None`` or ``True`` is the one saved by ``hf auth login`` or in ``HF_TOKEN``.
    """

    revision: str = "main"
    cache_dir: str | Path | None = None
    force_download: bool = False
    local_files_only: bool = False
    token: str | bool | None = None


def locate_checkpoint(
    name: str | Path,
    options: HubOptions | None = None,
    *,
    subfolder: str = "",
    weights: bool = True,
    allow_pickle: bool = False,
) -> Located:
    """Return the folder of a checkpoint, fetched first where ``name`` is a Hub id.

    Args:
        name: an existing folder, or a Hub id such as ``"google-bert/bert-base-uncased"``.
        options: how to fetch; ignored for a folder.
        subfolder: folder inside the repository (or inside the local folder) that holds the checkpoint.
        weights: also fetch the weights.
        allow_pickle: where there are no safetensors, fetch ``pytorch_model.bin`` instead.

    Raises:
        UsageError: neither a folder nor a possible Hub id.
        CheckpointError: no such repository, revision or file, or the Hub cannot be reached.
        MissingExtra: ``huggingface_hub`` is not installed.
    """
    options = options or HubOptions()
    inside = _checked_subfolder(subfolder)
    if _is_folder(name):
        folder = Path(name) / inside
        if not folder.is_dir():
            raise CheckpointError(f"{name} has no subfolder {subfolder!r}")
        return Located(folder, pinned_revision(folder))
    repository = hub_id(name)
    patterns = SETTINGS_FILES + (WEIGHT_FILES if weights else ())
    root = _fetch_folder(repository, options, inside, patterns)
    folder = root / inside
    only_cache = options.local_files_only or hub_library(f"fetching {repository}").constants.HF_HUB_OFFLINE
    if not folder.is_dir():
        if only_cache:
            raise CheckpointError(_not_cached(repository, options, f"the subfolder {subfolder!r}"))
        raise CheckpointError(f"{repository} (revision {options.revision}) has no checkpoint in a subfolder {inside!r}")
    if weights and not any(folder.glob("*.safetensors")):
        if allow_pickle:
            _fetch_folder(repository, options, inside, PICKLE_FILES)
        # What the cache lacks, the Hub may well have.
        if only_cache and not any(folder.glob("pytorch_model*.bin")):
            raise CheckpointError(_not_cached(repository, options, "model.safetensors"))
        if not allow_pickle:
            raise CheckpointError(
                f"{repository} (revision {options.revision}) has no model.safetensors. "
                "Choose a revision that has one, such as refs/pr/1 where the Hub's converter made it, "
                "or allow its pickle file with --allow-pickle"
            )
    return Located(folder, pinned_revision(folder))


def locate_file(name: str | Path, filename: str, options: HubOptions | None = None, *, subfolder: str = "") -> Located:
    """Return one file of a checkpoint, fetched first where ``name`` is a Hub id.

    Args:
        name: an existing folder, or a Hub id.
        filename: one of the names that this module fetches, such as ``"config.json"``.
        options: how to fetch; ignored for a folder.
        subfolder: folder that holds the file.

    Raises:
        UsageError: neither a folder nor a possible Hub id.
        CheckpointError: no such repository, revision or file, or the Hub cannot be reached.
        MissingExtra: ``huggingface_hub`` is not installed.
    """
    options = options or HubOptions()
    inside = _checked_subfolder(subfolder)
    if _is_folder(name):
        path = Path(name) / inside / filename
        if not path.is_file():
            raise CheckpointError(f"{Path(name) / inside} has no {filename}; give the folder that holds it")
        return Located(path, pinned_revision(path.parent))
    repository = hub_id(name)
    hub = hub_library(f"fetching {repository}")
    with readable_errors(repository, options, filename):
        path = Path(
            hub.hf_hub_download(
                repository,
                filename,
                subfolder=inside or None,
                revision=options.revision,
                cache_dir=options.cache_dir,
                force_download=options.force_download,
                local_files_only=options.local_files_only,
                token=options.token,
            )
        )
    return Located(path, pinned_revision(path.parent))


def hub_id(name: str | Path) -> str:
    """Return ``name`` where it can be a Hub id.

    Raises:
        UsageError: it looks like a path, and there is no such folder.
    """
    text = str(name)
    if _HUB_ID.fullmatch(text) is None or ".." in text or "--" in text or text.endswith((".json", ".git")):
        raise UsageError(
            f"{text!r} is neither an existing folder nor a Hub id. "
            "Give a folder that holds config.json, or an id such as google-bert/bert-base-uncased"
        )
    return text


def pinned_revision(folder: Path) -> str:
    """Return the commit of a folder inside a Hub cache (``.../snapshots/<commit>/...``), else an empty string."""
    parts = folder.absolute().parts
    for parent, part in itertools.pairwise(parts):
        if parent == "snapshots" and _COMMIT.fullmatch(part):
            return part
    return ""


def check_links(folder: Path) -> None:
    """Raise where links of a folder lead nowhere, as in a cache whose files were deleted.

    Raises:
        CheckpointError: the text names the links.
    """
    broken = sorted(path.name for path in folder.iterdir() if path.is_symlink() and not path.exists())
    if broken:
        raise CheckpointError(
            f"{folder} has links to files that are gone: {', '.join(broken[:8])}. Download the checkpoint again"
        )


def check_adapter(folder: Path) -> None:
    """Raise where a folder that is no checkpoint holds an adapter (LoRA and others) in its stead.

    Raises:
        CheckpointError: it does.
    """
    if (folder / "adapter_config.json").is_file():
        raise CheckpointError(
            f"{folder} holds an adapter (adapter_config.json), which changes another model; merge it into that model "
            "first (merge_and_unload of peft) and give the folder of the whole"
        )


def check_pointer(path: Path) -> None:
    """Raise where a file is what a clone without Git LFS leaves in its place.

    Raises:
        CheckpointError: it is.
    """
    with contextlib.suppress(OSError), path.open("rb") as file:  # whoever reads the file tells why it cannot be read
        if file.read(len(_POINTER)) == _POINTER:
            raise CheckpointError(f"{path} is a pointer of Git LFS, not the file; run git lfs pull in its folder")


def _is_folder(name: str | Path) -> bool:
    # An empty word would be the current folder, which nobody means.
    return str(name) != "" and Path(name).is_dir()


def _fetch_folder(repository: str, options: HubOptions, inside: str, patterns: Sequence[str]) -> Path:
    hub = hub_library(f"fetching {repository}")
    prefix = f"{inside}/" if inside else ""
    with readable_errors(repository, options, "the checkpoint"):
        return Path(
            hub.snapshot_download(
                repository,
                revision=options.revision,
                cache_dir=options.cache_dir,
                force_download=options.force_download,
                local_files_only=options.local_files_only,
                token=options.token,
                allow_patterns=[prefix + pattern for pattern in patterns],
            )
        )


def _checked_subfolder(subfolder: str) -> str:
    inside = subfolder.strip("/")
    if any(part in ("", ".", "..") for part in inside.split("/")) and inside:
        raise UsageError(f"subfolder is {subfolder!r}, expected a folder inside the checkpoint")
    return inside


def hub_library(needed_for: str) -> ModuleType:
    """Import ``huggingface_hub`` when it is first needed.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError:
        raise MissingExtra("hub", needed_for) from None
    return huggingface_hub


@contextlib.contextmanager
def readable_errors(repository: str, options: HubOptions, wanted: str) -> Iterator[None]:
    """Turn what ``huggingface_hub`` raises into one text that says what to do."""
    errors = hub_library(f"reaching {repository}").errors
    try:
        yield
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{repository} is gated. Accept its terms on huggingface.co, then run `hf auth login` or set HF_TOKEN"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"there is no folder {repository}, and on the Hub no such repository, or it is private. "
            "Check the spelling; for a private one run `hf auth login` or set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(f"{repository} has no revision {options.revision!r}") from error
    except errors.LocalEntryNotFoundError as error:
        raise CheckpointError(_not_cached(repository, options, wanted)) from error
    except errors.EntryNotFoundError as error:
        raise CheckpointError(f"{repository} (revision {options.revision}) has no {wanted}") from error
    except errors.HFValidationError as error:
        raise UsageError(f"{repository!r} is no Hub id: {error}") from error
    except errors.LocalTokenNotFoundError as error:
        raise UsageError("no access token is saved; run `hf auth login` or set HF_TOKEN") from error
    except Exception as error:
        # The transport below huggingface_hub changed twice between its versions (requests, httpx, httpx2), so its
        # errors have no common name to catch.
        if isinstance(error, OSError) and error.errno is not None:
            raise MachineError(f"cannot store {repository}: {error}") from error
        raise CheckpointError(f"{wanted} of {repository} failed: {type(error).__name__}: {error}") from error


def _not_cached(repository: str, options: HubOptions, wanted: str) -> str:
    where = f"the cache {options.cache_dir}" if options.cache_dir else "the local cache (HF_HUB_CACHE)"
    return (
        f"there is no folder {repository}; {wanted} of the Hub's {repository} (revision {options.revision}) "
        f"is not in {where}, and the Hub was not asked or cannot be reached. "
        "Give a local folder with config.json and model.safetensors, or allow the network "
        "(unset HF_HUB_OFFLINE, no local_files_only), or export with --random-weights, which needs no checkpoint"
    )
