"""The README and the pages on production and on the reference models run as they stand."""

from __future__ import annotations

import re
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import DATA
from tests.generation_bundles import Opened, decoder_of, opened
from tests.test_docs_generation import run_page

__all__ = ["decoder_of", "opened"]

DOCS = Path(__file__).resolve().parent.parent / "docs"
README = DOCS.parent / "README.md"


def test_the_python_of_the_readme(
    bundle_of: Callable[[str], Path],
    opened: Opened,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "data").symlink_to(DATA)
    (tmp_path / "glossary-qa").symlink_to(bundle_of("bert-glossary-qa"))
    (tmp_path / "glossary-lm").symlink_to(opened.make("apertus-ort-all"))
    [snippet] = re.findall(r"^```python\n(.*?)^```$", README.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    (tmp_path / "snippet.py").write_text(snippet)
    monkeypatch.chdir(tmp_path)
    runpy.run_path("snippet.py")
    one, many, *tensors, texts, streamed = capsys.readouterr().out.splitlines()
    assert "'answer': 'a small boat'" in one and one in many and "oars" in many
    assert "'start_logits': array" in tensors[0]
    assert len(streamed) > 20 and f"'river (noun):{streamed}'" in texts
    assert (tmp_path / "glossary-ner" / "manifest.json").is_file()


def test_the_files_of_a_bundle_that_the_readme_names(bundle_of: Callable[[str], Path]) -> None:
    found = re.search(r"```text\nglossary-qa/\n(.*?)^```$", README.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    assert found is not None
    named = {name for line in found[1].splitlines() for name in re.findall(r"[\w.]+\.\w+", line[:65])}
    files = {path.name for path in bundle_of("bert-glossary-qa").iterdir()}
    assert files <= named <= files | {"golden.npz"}


def test_production(bundle_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "glossary-qa").symlink_to(bundle_of("bert-glossary-qa"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    run_page(DOCS / "production.md", 10)


def test_the_reference_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bert-glossary-qa").symlink_to(DATA / "bert-glossary-qa")
    monkeypatch.chdir(tmp_path)
    run_page(DOCS / "models.md", 15)
