"""Hub access without a network: a cache tree laid out by hand, and uploads to a Hub that only writes down."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors
from huggingface_hub.utils._paths import filter_repo_objects

from pinnace.errors import CheckpointError, MachineError, MissingExtra, UsageError
from pinnace.models.auto_config import AutoConfig
from pinnace.models.checkpoints import hub
from pinnace.models.checkpoints.hub import HubOptions, locate_checkpoint, locate_file, pinned_revision
from pinnace.models.configs.bert import BertConfig

COMMIT, OTHER = "0123456789abcdef0123456789abcdef01234567", "89abcdef0123456789abcdef0123456789abcdef"
CONFIG = {"model_type": "bert", "hidden_size": 24, "num_attention_heads": 2}


def lay_out(cache: Path, repository: str, commit: str, files: dict[str, bytes], ref: str = "main") -> Path:
    """Make the tree that ``huggingface_hub`` makes: blobs, a ref, and a snapshot of links into the blobs."""
    root = cache / f"models--{repository.replace('/', '--')}"
    for folder in ("blobs", "refs", f"snapshots/{commit}"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "refs" / ref).write_text(commit, encoding="utf-8")
    for number, (name, data) in enumerate(files.items()):
        blob = root / "blobs" / f"{commit[:8]}{number}"
        blob.write_bytes(data)
        link = root / "snapshots" / commit / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return root / "snapshots" / commit


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with one repository of two revisions, and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    config = json.dumps(CONFIG).encode()
    files = {"config.json": config, "model.safetensors": b"weights", "inner/config.json": config}
    lay_out(tmp_path, "someone/model", COMMIT, files)
    lay_out(tmp_path, "someone/model", OTHER, {"config.json": config}, ref="old")
    lay_out(tmp_path, "single", COMMIT, {"config.json": config, "pytorch_model.bin": b"pickle"})
    return tmp_path


def test_a_cached_checkpoint_is_found_at_its_commit(cache: Path) -> None:
    located = locate_checkpoint("someone/model")
    assert located.revision == COMMIT
    assert (located.path / "model.safetensors").read_bytes() == b"weights"
    assert locate_checkpoint("someone/model", HubOptions(revision=COMMIT)) == located
    assert locate_checkpoint(located.path) == located, "a snapshot folder keeps its commit"
    assert locate_checkpoint("someone/model", HubOptions(cache_dir=cache, local_files_only=True)) == located
    old = locate_checkpoint("someone/model", HubOptions(revision="old"), weights=False)
    assert old.revision == OTHER


def test_a_fresh_process_obeys_the_environment_of_the_hub(cache: Path) -> None:
    code = "from pinnace.models.checkpoints.hub import locate_checkpoint as f; print(f('someone/model').revision)"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.returncode) == (COMMIT, 0), done.stderr


def test_a_configuration_is_read_from_the_cache(cache: Path) -> None:
    config = BertConfig.from_pretrained("someone/model")
    assert config == BertConfig(**CONFIG)
    assert BertConfig.from_pretrained("someone/model", subfolder="inner") == config
    assert BertConfig.from_pretrained("someone/model", revision="old", local_files_only=True) == config
    assert BertConfig.from_pretrained("someone/model", cache_dir=cache) == config
    assert BertConfig.from_pretrained("single") == config
    auto = AutoConfig.from_pretrained("someone/model")
    assert isinstance(auto, BertConfig)
    assert auto.name_or_path == "someone/model"
    located = locate_file("someone/model", "config.json", subfolder="inner")
    assert (located.revision, located.path.parent.name) == (COMMIT, "inner")


def test_what_is_not_cached_says_which_folder_or_flag_would_work(cache: Path) -> None:
    for attempt in (
        lambda: locate_checkpoint("someone/other"),
        lambda: locate_file("someone/other", "config.json"),
        lambda: BertConfig.from_pretrained("someone/other"),
        lambda: locate_checkpoint("someone/model", HubOptions(revision="v9")),
        lambda: locate_file("someone/model", "tokenizer.json"),
    ):
        with pytest.raises(CheckpointError) as caught:
            attempt()
        for word in ("someone/", "local folder", "HF_HUB_OFFLINE", "--random-weights"):
            assert word in str(caught.value)


def test_a_pickle_is_not_taken_for_weights(cache: Path) -> None:
    with pytest.raises(CheckpointError, match="--allow-pickle"):
        locate_checkpoint("single")
    assert locate_checkpoint("single", weights=False).revision == COMMIT
    assert (locate_checkpoint("single", allow_pickle=True).path / "pytorch_model.bin").is_file()


@pytest.mark.parametrize("allow_pickle", [False, True])
def test_weights_that_the_cache_lacks_are_not_said_to_be_nowhere(cache: Path, allow_pickle: bool) -> None:
    with pytest.raises(CheckpointError, match=r"model\.safetensors of the Hub's someone/model .* is not in") as caught:
        locate_checkpoint("someone/model", HubOptions(revision="old"), allow_pickle=allow_pickle)
    assert "--allow-pickle" not in str(caught.value)
    with pytest.raises(CheckpointError, match=r"the subfolder 'sub' of the Hub's someone/model .* is not in"):
        locate_checkpoint("someone/model", subfolder="sub")


def test_a_subfolder_that_the_hub_lacks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repository, **options: str(tmp_path))
    with pytest.raises(CheckpointError, match=r"a/b .* has no checkpoint in a subfolder 'sub'"):
        locate_checkpoint("a/b", subfolder="sub")
    (tmp_path / "sub").mkdir()
    with pytest.raises(CheckpointError, match="--allow-pickle"):
        locate_checkpoint("a/b", subfolder="sub")


@pytest.mark.parametrize(
    "name", ["./missing", "/missing/folder", "a/b/c", "../up", "a..b", "missing.json", "", "a b", "x--y", "~/m"]
)
def test_what_is_neither_folder_nor_id_is_a_usage_error(name: str, cache: Path) -> None:
    with pytest.raises(UsageError, match="neither an existing folder nor a Hub id"):
        locate_checkpoint(name)
    with pytest.raises(UsageError, match="neither"):
        BertConfig.from_pretrained(name)


def test_a_subfolder_stays_inside(cache: Path, tmp_path: Path) -> None:
    for subfolder in ("../x", "a/../..", "a//b", "."):
        with pytest.raises(UsageError, match="subfolder"):
            locate_checkpoint("someone/model", subfolder=subfolder)
    with pytest.raises(CheckpointError, match="no subfolder"):
        locate_checkpoint(tmp_path, subfolder="none")
    assert locate_checkpoint("someone/model", subfolder="inner/", weights=False).path.name == "inner"


def test_only_listed_files_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def snapshot(repository: str, **options: Any) -> str:
        asked.append(options)
        (tmp_path / "in").mkdir(exist_ok=True)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    options = HubOptions(revision="r", cache_dir=tmp_path, force_download=True, local_files_only=True, token="t")  # noqa: S106
    with pytest.raises(CheckpointError, match="is not in the cache"):
        locate_checkpoint("a/b", options, subfolder="in")
    locate_checkpoint("a/b", subfolder="in", weights=False)
    patterns = asked[0].pop("allow_patterns")
    assert asked[0] == {
        "revision": "r",
        "cache_dir": tmp_path,
        "force_download": True,
        "local_files_only": True,
        "token": "t",
    }
    assert set(patterns) == {f"in/{name}" for name in hub.SETTINGS_FILES + hub.WEIGHT_FILES}
    assert set(asked[1]["allow_patterns"]) == {f"in/{name}" for name in hub.SETTINGS_FILES}
    kept = filter_repo_objects(
        [
            "pytorch_model.bin", "model.py", "tf_model.h5", "model.onnx", "config.json", "training_args.bin", "x.pkl",
            "checkpoint-500/config.json", "1_Pooling/config.json", "2_Pooling/config.json", "pooling/config.json",
        ],
        allow_patterns=list(hub.SETTINGS_FILES + hub.WEIGHT_FILES),
    )  # fmt: skip
    assert list(kept) == ["config.json", "1_Pooling/config.json", "2_Pooling/config.json", "pooling/config.json"]


def response(status: int) -> Any:
    """A response of whichever HTTP library this huggingface_hub uses."""
    module = sys.modules[errors.HfHubHTTPError.__mro__[1].__module__.split(".")[0]]
    return module.Response(status, request=module.Request("GET", "https://huggingface.co"))


@pytest.mark.parametrize(
    ("kind", "status", "expected", "words"),
    [
        (errors.GatedRepoError, 403, CheckpointError, "gated"),
        (errors.RepositoryNotFoundError, 404, CheckpointError, "no such repository"),
        (errors.RevisionNotFoundError, 404, CheckpointError, "no revision 'main'"),
        (errors.RemoteEntryNotFoundError, 404, CheckpointError, "has no config.json"),
        (errors.HfHubHTTPError, 500, CheckpointError, "HfHubHTTPError"),
    ],
)
def test_answers_of_the_hub_become_readable(
    kind: Any, status: int, expected: type[Exception], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **options: Any) -> str:
        raise kind("refused", response=response(status))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(expected, match=words):
        locate_file("a/b", "config.json")


@pytest.mark.parametrize(
    ("error", "expected", "words"),
    [
        (errors.HFValidationError("bad"), UsageError, "no Hub id"),
        (errors.LocalTokenNotFoundError("none"), UsageError, "hf auth login"),
        (OSError(28, "No space left on device"), MachineError, "No space left"),
        (TimeoutError("slow"), CheckpointError, "TimeoutError: slow"),
    ],
)
def test_other_failures_become_readable(
    error: Exception, expected: type[Exception], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **options: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(expected, match=words):
        locate_file("a/b", "config.json")


def test_a_missing_library_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtra, match=r"pip install 'pinnace\[hub\]'"):
        BertConfig.from_pretrained("someone/model")
    with pytest.raises(MissingExtra, match=r"push_to_hub"):
        BertConfig().push_to_hub("someone/model")
    BertConfig().save_pretrained(tmp_path)
    assert BertConfig.from_pretrained(tmp_path) == BertConfig()


@pytest.mark.parametrize(
    ("path", "commit"),
    [
        (f"/c/models--a--b/snapshots/{COMMIT}/inner", COMMIT),
        (f"/c/models--a--b/{COMMIT}", ""),
        ("/c/snapshots/main", ""),
        ("/c", ""),
    ],
)
def test_the_commit_is_read_from_the_folder(path: str, commit: str) -> None:
    assert pinned_revision(Path(path)) == commit
