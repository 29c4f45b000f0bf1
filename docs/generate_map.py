"""Write the README's map of packages, and of all files docs/map.md, from their first sentences; or --check both."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
MAP = ROOT / "docs" / "map.md"
BEGIN, END = "<!-- map: written by docs/generate_map.py -->", "<!-- end of map -->"
# In the order in which a reader should meet them; a folder inside comes after the one that holds it.
FOLDERS = {
    "pinnace": "What exporting and serving share: facts, errors, files.",
    "models": "The reference models in PyTorch, their configurations and checkpoints.",
    "export": "From a checkpoint to a verified bundle.",
    "quantize": "Smaller precisions, judged on data.",
    "runtime": "Serving without PyTorch.",
    "tests": "The tests, their data and golden results.",
    "benchmarks": "One file for each question about speed or size, and the results.",
    "docs": "Guides, and the programs that write the references.",
    "examples": "Programs to start from.",
}
OTHERS = {
    "README.md": "What Pinnace does, and the first steps with it.",
    "pyproject.toml": "Packaging, and the settings of every tool.",
    "constraints.txt": "The versions that the checks run with.",
    "Makefile": "`make demo`, `make test`, `make check`, `make docs`, `make clean`.",
    ".ci/run": "All that must hold before a change is merged.",
    "CHANGELOG.md": "What each release brings.",
    "LICENSE": "Apache-2.0.",
    "MANIFEST.in": "What the source distribution holds beside the packages.",
}
# Pages whose first paragraph does not say what they are.
WRITTEN = {
    "cli.md": "Every command, flag, variable and exit code, written from the program.",
    "map.md": "Every file in one sentence, written from the files.",
}


def sentence(text: str) -> str:
    """The first sentence of a text, with the full stop that it may lack."""
    first = re.split(r"(?<=[.?!]) ", " ".join(text.split()))[0]
    return first if first.endswith((".", "?", "!")) else first + "."


def first_sentence(path: Path) -> str:
    """The first sentence of a Python file's docstring.

    Raises:
        SystemExit: the file has none.
    """
    paragraph = (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").partition("\n\n")[0]
    if not paragraph.strip():
        raise SystemExit(f"{path.relative_to(ROOT)} has no docstring, and the map needs its sentence")
    return sentence(paragraph)


def page_sentence(page: Path) -> str:
    """The first sentence below the heading of a page.

    Raises:
        SystemExit: something else stands there.
    """
    if page.name in WRITTEN:
        return WRITTEN[page.name]
    paragraph = [*page.read_text("utf-8").split("\n\n"), ""][1]
    if not paragraph.strip() or paragraph.startswith(("    ", "```", "|", "#", "<")):
        raise SystemExit(f"{page.relative_to(ROOT)} must begin with a sentence below its heading; the map needs it")
    return sentence(paragraph)


def folders() -> dict[str, str]:
    """All folders that the maps show, with their meaning: a package inside one says its own."""
    found = {}
    for folder, meaning in FOLDERS.items():
        found[folder] = meaning
        for path in sorted((ROOT / folder).rglob("*/__init__.py")):
            inside = path.parent.relative_to(ROOT)
            if not any((ROOT / parent).is_symlink() for parent in (inside, *inside.parents)):
                found[inside.as_posix()] = first_sentence(path)
    return found


def marks_a_package(path: Path) -> bool:
    """Whether a file is an ``__init__.py`` that holds nothing but a docstring; the folder's line says that sentence."""
    return path.name == "__init__.py" and len(ast.parse(path.read_text("utf-8")).body) < 2


def files_of(folder: str) -> dict[str, str]:
    """Files of a folder that the map names: pages, and Python files, but for those that only mark a package."""
    found = {}
    if folder == "docs":
        pages = {MAP, *(ROOT / folder).glob("*.md")}  # the map itself is perhaps not yet written
        found = {path.name: page_sentence(path) for path in sorted(pages)}
    programs = sorted(path for path in (ROOT / folder).glob("*.py") if not marks_a_package(path))
    return found | {path.name: first_sentence(path) for path in programs}


def package_map() -> str:
    """The README's map as Markdown: a line for each folder."""
    return "\n".join(["", *(f"- `{folder}/`: {meaning}" for folder, meaning in folders().items()), ""])


def file_map() -> str:
    """The page with the whole map: a list for each folder."""
    lines = ["# Every file", "", "<!-- written by docs/generate_map.py -->", ""]
    lines += [f"- `{name}`: {text}" for name, text in OTHERS.items()]
    for folder, meaning in folders().items():
        if found := files_of(folder):
            lines += ["", f"## {folder}/", "", meaning, ""]
            lines += [f"- `{name}`: {text}" for name, text in found.items()]
    return "\n".join([*lines, ""])


def readme(text: str) -> str:
    """The README's text with the map as it should be."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise SystemExit(f"README.md must have one line {BEGIN!r} and one {END!r}")
    head, _, rest = text.partition(BEGIN)
    return head + BEGIN + "\n" + package_map() + "\n" + END + rest.partition(END)[2]


def main(argv: list[str]) -> int:
    """Write the maps, or with ``--check`` compare them."""
    missing = [name for name in OTHERS if not (ROOT / name).exists()]
    if missing:
        raise SystemExit(f"the map names files that are not there: {', '.join(missing)}")
    wanted = {README: readme(README.read_text("utf-8")), MAP: file_map()}
    if argv == ["--check"]:
        stale = [path for path, text in wanted.items() if not path.is_file() or path.read_text("utf-8") != text]
        for path in stale:
            name = path.relative_to(ROOT)
            print(f"the map in {name} is not as the files are; run: python docs/generate_map.py", file=sys.stderr)
        return 1 if stale else 0
    if argv:
        print("usage: python docs/generate_map.py [--check]", file=sys.stderr)
        return 2
    for path, text in wanted.items():
        path.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
