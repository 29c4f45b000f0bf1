"""Damaged checkpoints are named, and a save that fails leaves the older checkpoint whole."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import transformers

from pinnace.errors import CheckpointError, MachineError
from pinnace.models.bert import BertModel
from pinnace.models.checkpoints import tensor_files
from pinnace.models.checkpoints.checkpoint import SINGLE_NAME, Checkpoint
from pinnace.models.configs.bert import BertConfig

from .bert_oracle import SMALL

torch.set_num_threads(1)


@pytest.fixture
def single(tmp_path: Path) -> Path:
    folder = tmp_path / "single"
    BertModel(BertConfig(**SMALL)).save_pretrained(folder)
    return folder


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    folder = tmp_path / "sharded"
    BertModel(BertConfig(**SMALL)).save_pretrained(folder, max_shard_size=3000)
    return folder


@pytest.mark.parametrize("kind", ["single", "sharded"])
@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_a_file_that_is_cut_off_is_named(kind: str, keep: int, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(kind)
    victim = sorted(folder.glob("*.safetensors"))[-1]
    content = victim.read_bytes()
    victim.write_bytes(content[:keep])
    with pytest.raises(CheckpointError, match=victim.name):
        BertModel.from_pretrained(folder)


def test_a_file_that_shrinks_after_it_was_opened_is_named(single: Path) -> None:
    place = max(Checkpoint.open(single).tensors.values(), key=lambda each: each.end)
    content = (single / SINGLE_NAME).read_bytes()
    (single / SINGLE_NAME).write_bytes(content[:-8])
    with pytest.raises(CheckpointError, match="cut off: 8 bytes are missing"):
        tensor_files.read_tensor(place)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 12\n"


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_pointer_of_git_lfs_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(CheckpointError, match=rf"{name} is a pointer of Git LFS.*git lfs pull"):
        Checkpoint.open(tmp_path, allow_pickle=True)


def test_a_pointer_in_the_place_of_a_shard_is_named(sharded: Path) -> None:
    shard = sorted(sharded.glob("model-*.safetensors"))[1]
    shard.write_text(POINTER)
    with pytest.raises(CheckpointError, match=f"{shard.name} is a pointer of Git LFS"):
        Checkpoint.open(sharded)


def test_a_folder_in_the_place_of_the_weights_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a regular file") as caught:
        Checkpoint.open(tmp_path)
    assert "has no" not in str(caught.value)


def test_an_adapter_is_no_checkpoint(tmp_path: Path) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(CheckpointError, match=r"holds an adapter .*merge it into that model first"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize("content", [{}, {"README.md": "# hello"}])
def test_a_folder_without_weights_says_what_it_has(content: dict[str, str], tmp_path: Path) -> None:
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError, match=r"has no model\.safetensors") as caught:
        Checkpoint.open(tmp_path)
    assert next(iter(content), "nothing") in str(caught.value)
    with pytest.raises(CheckpointError, match="there is no folder"):
        Checkpoint.open(tmp_path / "absent")


def test_a_save_that_fails_leaves_the_old_checkpoint(single: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = BertModel.from_pretrained(single).state_dict()
    before = sorted(path.name for path in single.iterdir())

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for size in ("5GB", 3000):
        with pytest.raises(MachineError, match="No space left on device"):
            BertModel(BertConfig(**SMALL)).save_pretrained(single, max_shard_size=size)
    assert sorted(path.name for path in single.iterdir()) == before
    new = BertModel.from_pretrained(single).state_dict()
    assert all(torch.equal(new[name], old[name]) for name in old)


def test_a_save_into_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match="cannot make the folder"):
        BertModel(BertConfig(**SMALL)).save_pretrained(tmp_path / "file")


def test_saved_files_have_the_rights_of_ordinary_files(single: Path) -> None:
    (single / "ordinary").write_text("")
    ordinary = (single / "ordinary").stat().st_mode
    assert {path.stat().st_mode for path in single.iterdir()} == {ordinary}
    assert transformers.BertModel.from_pretrained(single).num_parameters() > 0
