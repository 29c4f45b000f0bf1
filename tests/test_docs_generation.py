"""The page on generation runs as it stands: every example gives what the page says it gives."""

from __future__ import annotations

import dataclasses
import doctest
import io
import re
import shlex
import sys
from pathlib import Path

import pytest

from pinnace.cli.main import main
from pinnace.runtime.generation.config import GenerationConfig
from pinnace.runtime.pipelines.text_generation import TextGenerationOptions
from tests.generation_bundles import Opened, decoder_of, opened

__all__ = ["decoder_of", "opened"]

PAGE = Path(__file__).resolve().parent.parent / "docs" / "generation.md"


def examples(text: str, name: str = "page") -> doctest.DocTest:
    """The page's sessions as one, at the lines where they stand."""
    lines, inside = [], False
    for line in text.splitlines():
        if line.startswith("```"):
            inside = line == "```pycon"
            lines.append("")
        else:
            lines.append(line if inside else "")
    return doctest.DocTestParser().get_doctest("\n".join(lines), {}, name, name, 0)


def run_page(page: Path, least: int) -> None:
    """Run the examples of a page, more than ``least``, and compare what each gives with what stands there."""
    test = examples(page.read_text("utf-8"), page.name)
    assert len(test.examples) > least
    told: list[str] = []
    found = doctest.DocTestRunner().run(test, out=told.append)
    assert not found.failed, "".join(told)


def test_every_example_gives_what_the_page_says(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "glossary-lm").symlink_to(opened.make("apertus-ort-all"))
    monkeypatch.chdir(tmp_path)
    run_page(PAGE, 20)


def test_the_command_line_prints_what_the_page_says(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "glossary-lm").symlink_to(opened.make("apertus-ort-all"))
    monkeypatch.chdir(tmp_path)
    found = re.search(r"```console\n\$ echo '(.+)' \| pinnace (.+)\n(.+\n)```", PAGE.read_text("utf-8"))
    assert found is not None
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(found[1].encode())))
    assert main(shlex.split(found[2])) == 0
    assert capsys.readouterr().out == found[3]


def test_the_check_tells_a_changed_page() -> None:
    test = examples("```pycon\n>>> 1 + 1\n3\n```\n```sh\n>>> never\n```\n")
    found = doctest.DocTestRunner().run(test, out=lambda _text: None)
    assert (found.failed, found.attempted) == (1, 1)


def test_the_page_names_every_option() -> None:
    named = set(re.findall(r"`(\w+)", PAGE.read_text("utf-8")))
    known = {field.name for kind in (GenerationConfig, TextGenerationOptions) for field in dataclasses.fields(kind)}
    of_the_tokenizer = {"add_special_tokens", "clean_up_tokenization_spaces", "pad_token_id", "bos_token_id"}
    assert known - named <= of_the_tokenizer | {"generation"}, known - named
