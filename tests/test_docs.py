"""The documents are as the program is: command reference, maps, links, figures, pinned versions, remedies."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import shutil
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import pinnace
from pinnace.cli.commands import COMMANDS
from pinnace.cli.flags import read_arguments
from pinnace.export.tasks import TASKS
from pinnace.runtime.engine.ort import GPU_REMEDY

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks" / "README.md"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), BENCHMARKS]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


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
    flags = [flag for command in COMMANDS.values() for flag in command.all_flags]
    assert all((f"`{flag.variable}`" in page) == flag.settable for flag in flags)


@pytest.fixture
def small_map(tmp_path: Path) -> Callable[[list[str]], int]:
    """The program that writes the maps, in a tree of its own."""
    made = program("generate_map")
    for name in made["OTHERS"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "generate_map.py", tmp_path / "docs")
    (tmp_path / "README.md").write_text(f"# x\n{made['BEGIN']}\n{made['END']}\nend\n")
    run: Callable[[list[str]], int] = runpy.run_path(str(tmp_path / "docs" / "generate_map.py"))["main"]
    return run


def test_the_map_tells_a_new_file(tmp_path: Path, small_map: Callable[[list[str]], int]) -> None:
    assert small_map(["--check"]) == 1
    assert small_map([]) == 0 == small_map(["--check"])
    (tmp_path / "runtime" / "inner").mkdir(parents=True)
    (tmp_path / "runtime" / "thing.py").write_text('"""Does a thing. And more."""\n')
    (tmp_path / "runtime" / "inner" / "__init__.py").write_text('"""Things inside"""\n')
    (tmp_path / "runtime" / "inner" / "asks.py").write_text('"""How fast is it? In turns."""\n')
    assert small_map(["--check"]) == 1
    assert small_map([]) == 0 == small_map(["--check"])
    page = (tmp_path / "docs" / "map.md").read_text()
    assert "- `thing.py`: Does a thing.\n" in page
    assert "- `asks.py`: How fast is it?\n" in page
    readme = (tmp_path / "README.md").read_text()
    assert "- `runtime/inner/`: Things inside.\n" in readme and "thing.py" not in readme
    assert readme.endswith("\nend\n")
    (tmp_path / "docs" / "map.md").write_text(page + "- more\n")
    assert small_map(["--check"]) == 1
    (tmp_path / "runtime" / "thing.py").write_text("x = 1\n")
    with pytest.raises(SystemExit, match=r"thing\.py has no docstring"):
        small_map(["--check"])


def test_the_map_takes_a_page_at_its_first_sentence(tmp_path: Path, small_map: Callable[[list[str]], int]) -> None:
    page = tmp_path / "docs" / "more.md"
    page.write_text("# Over HTTP\n\nAnswers requests.\nAnd more.\n\nAnd `more`.\n")
    assert small_map([]) == 0
    assert "- `more.md`: Answers requests.\n" in (tmp_path / "docs" / "map.md").read_text()
    for beginning in ("```sh\nls\n```", "    ls", "| a | b |", "## More", ""):
        page.write_text(f"# Over HTTP\n\n{beginning}\n")
        with pytest.raises(SystemExit, match=r"more\.md must begin with a sentence"):
            small_map([])


@pytest.mark.parametrize("page", PAGES, ids=name_of)
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


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_in_the_documents_are_understood(page: Path) -> None:
    for name, *words in commands_of(page.read_text("utf-8")):
        read_arguments(COMMANDS[name], words, {})


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_stands_where_it_is_checked(page: Path) -> None:
    text = page.read_text("utf-8")
    lines = re.findall(r"^ *(?:\$ )?(pinnace [a-z].*)", text, re.MULTILINE)
    assert len(commands_of(text)) >= len([line for line in lines if "[flags]" not in line])


def test_the_pages_of_commands_show_them() -> None:
    for name in ("bench", "cli", "generation", "gpu", "interop", "production", "profile", "quantization", "serve"):
        assert commands_of((ROOT / "docs" / f"{name}.md").read_text("utf-8")), name


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


def numbers_in(result: Any) -> Iterator[float]:
    """The figures of a part of a result; of those with one for each round, the median."""
    if isinstance(result, dict):
        chosen = [result[name] for name in ("median", "value") if name in result]
        for part in chosen or result.values():
            yield from numbers_in(part)
    elif isinstance(result, list):
        for part in result:
            yield from numbers_in(part)
    elif isinstance(result, int | float) and not isinstance(result, bool):
        yield result


def missing_in(file: Path, text: str) -> list[str]:
    """The figures of a text that, as they are rounded there, no number of a file of results has."""
    result = json.loads(file.read_text("utf-8"))
    points = [point["measures"] for point in result.get("points", ())]
    numbers = list(numbers_in([result.get("measured"), result.get("figures"), points]))

    def known(figure: str) -> bool:
        half = 0.5 * 10.0 ** -len(figure.partition(".")[2])
        return any(abs(number - float(figure.replace(",", ""))) <= half + 1e-9 for number in numbers)

    return [figure for figure in re.findall(r"\d[\d,]*(?:\.\d+)?", text) if not known(figure)]


def rows_of(text: str) -> list[list[str]]:
    """The cells of every row of the tables of a page."""
    rows = re.findall(r"^\|(.+)\|$", text, re.MULTILINE)
    return [[cell.strip() for cell in row.split("|")] for row in rows]


def file_in(cell: str, page: Path) -> Path | None:
    """The file of results that a cell links to."""
    found = re.search(r"\]\(([^)]*results/[^)]+\.json)\)", cell)
    return page.parent / found[1] if found else None


def test_figures_of_the_readme_are_those_of_their_files() -> None:
    rows = [cells for cells in rows_of(PAGES[0].read_text("utf-8")) if file_in(cells[-1], PAGES[0])]
    assert len(rows) >= 6
    for _, machine, ours, _, others, ratio, link in rows:
        file = file_in(link, PAGES[0])
        assert file is not None
        assert re.search(r"\d", ours) and not missing_in(file, f"{ours} {others} {ratio}"), (ours, others, ratio)
        assert (file.parent.name == "avx2") == (machine == "EPYC")


def test_figures_of_the_benchmarks_are_those_of_their_files() -> None:
    head: list[Path | None] = []
    checked = 0
    for cells in rows_of(BENCHMARKS.read_text("utf-8")):
        links = [file_in(cell, BENCHMARKS) for cell in cells]
        if cells[0] in ("what", "export"):
            head = links
        elif cells[0] == "file":
            head = []
        for cell, column, own in zip(cells, head, [None, *links], strict=False):
            file = column or own
            if file is not None and not file_in(cell, BENCHMARKS):
                assert not missing_in(file, cell), (cells, cell)
                checked += 1
    assert checked > 150


def test_a_figure_that_is_not_in_the_file_is_told(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    measured = {"one": {"s": {"median": 1.246, "least": 1.1, "all": [1.1, 1.3]}, "MB": 2262.6}}
    file.write_text(json.dumps({"measured": measured, "figures": [{"value": 0.94, "limit": 0.8}], "threads": 7}))
    assert missing_in(file, "1.25; 2,263; 0.94, 0.9") == []
    assert missing_in(file, "1.1; 1.24; 0.8; 7; 2,262") == ["1.1", "1.24", "0.8", "7", "2,262"]
