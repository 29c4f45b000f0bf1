"""Uploads to a Hub that only writes down what it is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from pinnace.errors import CheckpointError
from pinnace.models.configs.bert import BertConfig
from tests.test_hub import response


class WritingHub:
    """Stands for ``HfApi`` and writes down what it was asked."""

    calls: list[tuple[str, dict[str, Any]]]

    def __init__(self, token: Any = None) -> None:
        self.calls.append(("token", {"token": token}))

    def create_repo(self, repository: str, **options: Any) -> Any:
        self.calls.append(("create_repo", {"id": repository, **options}))
        return type("Url", (), {"repo_id": f"me/{repository}"})

    def create_branch(self, repository: str, **options: Any) -> None:
        self.calls.append(("create_branch", {"id": repository, **options}))

    def create_commit(self, repository: str, operations: list[Any], **options: Any) -> Any:
        data = {}
        for operation in operations:
            with operation.as_file() as stream:
                data[operation.path_in_repo] = stream.read()
        self.calls.append(("create_commit", {"id": repository, "files": data, **options}))
        return type("Commit", (), {"commit_url": "https://hub/commit/1"})


@pytest.fixture
def uploads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    calls: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(WritingHub, "calls", calls, raising=False)
    monkeypatch.setattr(huggingface_hub, "HfApi", WritingHub)
    return calls


def test_push_uploads_one_commit(uploads: list[tuple[str, dict[str, Any]]]) -> None:
    config = BertConfig(num_labels=3)
    address = config.push_to_hub("mine", private=True, token="secret", revision="dev", commit_description="why")  # noqa: S106
    assert address == "https://hub/commit/1"
    assert uploads[0] == ("token", {"token": "secret"})
    assert uploads[1] == ("create_repo", {"id": "mine", "private": True, "exist_ok": True})
    assert uploads[2] == ("create_branch", {"id": "me/mine", "branch": "dev", "exist_ok": True})
    name, commit = uploads[3]
    assert name == "create_commit"
    assert commit.pop("files") == {"config.json": config.to_json_string().encode()}
    assert commit == {
        "id": "me/mine",
        "commit_message": "Upload config",
        "commit_description": "why",
        "revision": "dev",
        "create_pr": False,
    }


def test_save_with_push_names_the_repository_like_the_folder(
    uploads: list[tuple[str, dict[str, Any]]], tmp_path: Path
) -> None:
    BertConfig().save_pretrained(tmp_path / "my-bert", push_to_hub=True, commit_message="First")
    assert uploads[1][1]["id"] == "my-bert"
    assert uploads[2][1]["commit_message"] == "First"
    assert (tmp_path / "my-bert" / "config.json").is_file()
    BertConfig().save_pretrained(tmp_path / "my-bert", push_to_hub=True, repo_id="else/where", create_pr=True)
    assert uploads[4][1]["id"] == "else/where"
    assert uploads[5][1]["create_pr"] is True


@pytest.mark.parametrize("present", [None, "---\ntags:\n- old\nlicense: mit\n---\nAbout.\n"])
def test_tags_are_added_to_the_model_card(
    present: str | None, uploads: list[tuple[str, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(repository: str, token: Any = None) -> Any:
        if present is None:
            raise errors.EntryNotFoundError("no card")
        return huggingface_hub.ModelCard(present)

    monkeypatch.setattr(huggingface_hub.ModelCard, "load", load)
    BertConfig().push_to_hub("mine", tags=["old", "new"])
    card = huggingface_hub.ModelCard(uploads[-1][1]["files"]["README.md"].decode())
    assert card.data["tags"] == ["old", "new"]
    assert ("About." in str(card)) == (present is not None)


def test_a_refused_upload_is_readable(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(WritingHub):
        calls: list[tuple[str, dict[str, Any]]] = []  # noqa: RUF012

        def create_repo(self, repository: str, **options: Any) -> Any:
            raise errors.HfHubHTTPError("403 forbidden", response=response(403))

    monkeypatch.setattr(huggingface_hub, "HfApi", Refusing)
    with pytest.raises(CheckpointError, match="403 forbidden"):
        BertConfig().push_to_hub("mine")
