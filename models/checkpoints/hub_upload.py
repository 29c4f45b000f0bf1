"""Files of a folder become one commit on the Hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from pinnace.models.checkpoints.hub import HubOptions, hub_library, readable_errors


def upload_folder(
    folder: Path,
    repository: str,
    *,
    files: Sequence[str],
    commit_message: str,
    commit_description: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    tags: Sequence[str] | None = None,
) -> str:
    """Upload files of a folder as one commit; the repository is made where there is none.

    Args:
        folder: where the files lie.
        repository: the Hub id to write to.
        files: names or patterns inside ``folder``.
        commit_message: first line of the commit.
        commit_description: the rest of it.
        private: make a new repository private.
        token: see ``HubOptions``.
        revision: branch to write to, made where there is none.
        create_pr: open a pull request instead of writing to the branch.
        tags: tags to add to the model card.

    Returns:
        The address of the commit.

    Raises:
        CheckpointError: the Hub refused, or cannot be reached.
        MissingExtra: ``huggingface_hub`` is not installed.
    """
    hub = hub_library("push_to_hub")
    api = hub.HfApi(token=token)
    with readable_errors(repository, HubOptions(revision=revision or "main", token=token), "the upload"):
        repository = api.create_repo(repository, private=private, exist_ok=True).repo_id
        if revision is not None and not revision.startswith("refs/pr") and not create_pr:
            api.create_branch(repository, branch=revision, exist_ok=True)
        operations = [
            hub.CommitOperationAdd(path_in_repo=path.relative_to(folder).as_posix(), path_or_fileobj=path)
            for path in sorted({path for pattern in files for path in folder.glob(pattern)})
        ]
        if tags:
            card = _tagged_card(hub, repository, tags, token)
            operations.append(hub.CommitOperationAdd(path_in_repo="README.md", path_or_fileobj=card))
        commit = api.create_commit(
            repository,
            operations,
            commit_message=commit_message,
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
        )
    return str(commit.commit_url)


def _tagged_card(hub: ModuleType, repository: str, tags: Sequence[str], token: str | bool | None) -> bytes:
    """Return the repository's model card, or an empty one, with the tags added."""
    try:
        card = hub.ModelCard.load(repository, token=token)
    except hub.errors.EntryNotFoundError:
        card = hub.ModelCard("---\ntags: []\n---\n")
    present = list(card.data.tags or [])
    card.data.tags = present + [tag for tag in tags if tag not in present]
    return str(card).encode()
