"""What a file of benchmark results says of the code that made it."""

from __future__ import annotations

import datetime
import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks.common import code


def test_results_name_the_commit_and_whether_the_tree_was_clean(tmp_path: Path) -> None:
    git = shutil.which("git")
    if git is None:
        pytest.skip("no git")

    def run(*words: str) -> str:
        named = [git, "-c", "user.name=x", "-c", "user.email=x@localhost", *words]
        return subprocess.run(named, cwd=tmp_path, check=True, capture_output=True, encoding="utf-8").stdout.strip()

    run("init", "--quiet")
    (tmp_path / "file").write_text("one")
    run("add", "file")
    run("commit", "--quiet", "--message", "one")
    found = code(tmp_path)
    assert (found["commit"], found["clean"]) == (run("rev-parse", "HEAD"), True)
    assert datetime.datetime.fromisoformat(found["date"]).utcoffset() == datetime.timedelta(0)
    (tmp_path / "file").write_text("two")
    assert code(tmp_path)["clean"] is False
    # An archive that was unpacked inside a repository is not of that repository's commit.
    (tmp_path / "inner").mkdir()
    assert code(tmp_path / "inner")["commit"] is None


def test_results_without_git_have_the_date_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".git").mkdir()  # no repository: git refuses it
    assert code(tmp_path)["commit"] is None
    monkeypatch.setattr("shutil.which", lambda _name: None)
    found = code()
    assert (found["commit"], found["clean"]) == (None, None) and found["date"]
