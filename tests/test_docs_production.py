"""The page on production runs as it stands: every example gives what the page says it gives."""

from __future__ import annotations

import doctest
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.test_docs_generation import examples

PAGE = Path(__file__).resolve().parent.parent / "docs" / "production.md"


def test_every_example_gives_what_the_page_says(
    bundle_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "glossary-qa").symlink_to(bundle_of("bert-glossary-qa"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    test = examples(PAGE.read_text("utf-8"))
    assert len(test.examples) > 10
    told: list[str] = []
    found = doctest.DocTestRunner().run(test, out=told.append)
    assert not found.failed, "".join(told)
