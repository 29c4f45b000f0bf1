"""The documents are as the program is: command reference, file map, links, pinned versions, remedies."""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pinnace
from pinnace.cli.commands import COMMANDS
from pinnace.cli.flags import read_arguments
from pinnace.export.tasks import TASKS
from pinnace.runtime.engine.ort import GPU_REMEDY

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def program(name: str) -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "docs" / f"{name}.py"))


@pytest.mark.parametrize("name", ["generate_cli", "generate_map"])
def test_written_parts_are_up_to_date(name: str) -> None:
    assert program(name)["main"](["--check"]) == 0


def test_check_tells_a_changed_reference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(ROOT / "docs" / "generate_cli.py", tmp_path)
    run: Callable[[list[str]], int] = runpy.run_path(str(tmp_path / "generate_cli.py"))["main"]
    assert run(["--check"]) == 1
    assert run([]) == 0 == run(["--check"])
    page = (tmp_path / "cli.md").read_text()
    (tmp_path / "cli.md").write_text(page.replace("PINNACE_TASK", "PINNACE_TUSK"))
    assert run(["--check"]) == 1
    assert "generate_cli.py" in capsys.readouterr().err
    assert all(f"`{flag.variable}`" in page for command in COMMANDS.values() for flag in command.all_flags)


def test_the_map_tells_a_new_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = program("generate_map")
    for name in made["OTHERS"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    shutil.copy(ROOT / "docs" / "generate_map.py", tmp_path / "docs")
    (tmp_path / "README.md").write_text(f"# x\n{made['BEGIN']}\n{made['END']}\nend\n")
    run: Callable[[list[str]], int] = runpy.run_path(str(tmp_path / "docs" / "generate_map.py"))["main"]
    assert run([]) == 0 == run(["--check"])
    (tmp_path / "runtime").mkdir()
    (tmp_path / "runtime" / "thing.py").write_text('"""Does a thing. And more."""\n')
    assert run(["--check"]) == 1
    assert run([]) == 0
    assert "- `thing.py`: Does a thing.\n" in (tmp_path / "README.md").read_text()
    (tmp_path / "runtime" / "thing.py").write_text("x = 1\n")
    with pytest.raises(SystemExit, match=r"thing\.py has no docstring"):
        run(["--check"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def commands_of(text: str) -> list[list[str]]:
    """The words of every ``pinnace COMMAND ...`` in the fenced blocks of a page."""
    found = []
    for kind, block in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        if kind not in ("", "sh", "console"):
            continue
        for line in block.replace("\\\n", " ").replace("|\n", "| ").splitlines():
            for part in line.split("#")[0].split("| "):
                words = shlex.split(part.removeprefix("$ ").removeprefix("next: ").strip(), posix=True)
                if words[:1] == ["pinnace"] and words[1:2] != ["COMMAND"] and "[flags]" not in words:
                    found.append(words[1:])
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_the_documents_are_understood(page: Path) -> None:
    for name, *words in commands_of(page.read_text("utf-8")):
        read_arguments(COMMANDS[name], words, {})


def test_readme_shows_the_commands_and_tasks() -> None:
    text = PAGES[0].read_text("utf-8")
    assert {"export", "verify", "run"} <= {words[0] for words in commands_of(text)}
    assert all(f"| {task}" in text for task in TASKS)
    assert "make demo" in text and "make test" in text


def test_the_gpu_page_has_the_remedy_of_the_program() -> None:
    text = (ROOT / "docs" / "gpu.md").read_text("utf-8")
    assert all(line.strip() in text for line in GPU_REMEDY.splitlines())


def test_examples_of_the_help_are_understood() -> None:
    for command in COMMANDS.values():
        for example in command.examples:
            words = shlex.split(example.rpartition("| ")[2])
            assert words[:2] == ["pinnace", command.name]
            read_arguments(command, words[2:], {})


def test_constraints_pin_what_is_needed() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["export"], *extras["hub"], *extras["dev"]]
    names = {re.split(r"[\[<>=]", requirement)[0] for requirement in wanted} - {"pinnace"}
    assert names <= set(pins)
    assert not any("+" in version for version in pins.values())
    assert project["version"] == pinnace.__version__
