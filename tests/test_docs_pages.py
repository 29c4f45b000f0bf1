"""The pages on production and on the reference models run as they stand: every example gives what the page says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import DATA
from tests.test_docs_generation import run_page

DOCS = Path(__file__).resolve().parent.parent / "docs"


def test_production(bundle_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "glossary-qa").symlink_to(bundle_of("bert-glossary-qa"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    run_page(DOCS / "production.md", 10)


def test_the_reference_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bert-glossary-qa").symlink_to(DATA / "bert-glossary-qa")
    monkeypatch.chdir(tmp_path)
    run_page(DOCS / "models.md", 15)
