"""Write the README's file map from each file's first sentence, or check with --check that it is as the files are."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
BEGIN, END = "<!-- map: written by docs/generate_map.py -->", "<!-- end of map -->"
# In the order in which a reader should meet them; a folder inside comes after the one that holds it.
FOLDERS = {
    "pinnace": "what both halves share: facts, errors, files",
    "models": "the reference models in PyTorch, their configurations and checkpoints",
    "export": "from a checkpoint to a verified bundle",
    "quantize": "smaller precisions",
    "runtime": "serving without PyTorch",
    "tests": "the tests, their data and golden results",
    "benchmarks": "one file for each question about speed or size",
    "docs": "references that are written by programs, and guides",
    "examples": "programs to start from",
}
OTHERS = {
    "pyproject.toml": "Packaging, and the settings of every tool.",
    "constraints.txt": "The versions that the checks run with.",
    "Makefile": "`make demo`, `make test`, `make check`, `make docs`, `make clean`.",
    ".ci/run": "All that must hold before a change is merged.",
    "CHANGELOG.md": "What changed for users.",
    "LICENSE": "Apache-2.0.",
    "docs/cli.md": "Every command, flag, variable and exit code, written from the program.",
}


def first_sentence(path: Path) -> str:
    """The first sentence of a Python file's docstring.

    Raises:
        SystemExit: the file has none.
    """
    text = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    paragraph = " ".join(text.partition("\n\n")[0].split())
    if not paragraph:
        raise SystemExit(f"{path.relative_to(ROOT)} has no docstring, and the README's map needs its sentence")
    return paragraph.partition(". ")[0].rstrip(".") + "."


def title(page: Path) -> str:
    """The heading of a page, as a sentence."""
    return page.read_text("utf-8").partition("\n")[0].lstrip("# ").rstrip(".") + "."


def with_packages_inside() -> dict[str, str]:
    """All folders that the map shows, with their meaning: a package inside one says its own."""
    found = {}
    for folder, meaning in FOLDERS.items():
        found[folder] = meaning
        for path in sorted((ROOT / folder).glob("*/__init__.py")):
            if not path.parent.is_symlink():
                found[f"{folder}/{path.parent.name}"] = first_sentence(path)
    return found


def marks_a_package(path: Path) -> bool:
    """Whether a file is an ``__init__.py`` that holds nothing but a docstring; the folder's line says that sentence."""
    return path.name == "__init__.py" and len(ast.parse(path.read_text("utf-8")).body) < 2


def files_of(folder: str) -> list[Path]:
    """Files of a folder that the map names: Python files, but for those that only mark a package."""
    return sorted(path for path in (ROOT / folder).glob("*.py") if not marks_a_package(path))


def file_map() -> str:
    """The map as Markdown: a folded list for each folder."""
    pages = {path.relative_to(ROOT).as_posix(): title(path) for path in sorted((ROOT / "docs").glob("*.md"))}
    lines = ["", *(f"- `{name}`: {text}" for name, text in {**pages, **OTHERS}.items()), ""]
    for folder, meaning in with_packages_inside().items():
        if found := files_of(folder):
            lines += [f"<details><summary><code>{folder}/</code> {meaning}</summary>", ""]
            lines += [f"- `{path.name}`: {first_sentence(path)}" for path in found]
            lines += ["", "</details>"]
    return "\n".join([*lines, ""])


def written(text: str) -> str:
    """The README's text with the map as it should be."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise SystemExit(f"README.md must have one line {BEGIN!r} and one {END!r}")
    head, _, rest = text.partition(BEGIN)
    return head + BEGIN + "\n" + file_map() + END + rest.partition(END)[2]


def main(argv: list[str]) -> int:
    """Write the map, or with ``--check`` compare it."""
    missing = [name for name in OTHERS if not (ROOT / name).exists()]
    if missing:
        raise SystemExit(f"the map names files that are not there: {', '.join(missing)}")
    text = README.read_text("utf-8")
    if argv == ["--check"]:
        if text != written(text):
            print("the README's file map is not as the files are; run: python docs/generate_map.py", file=sys.stderr)
            return 1
        return 0
    if argv:
        print("usage: python docs/generate_map.py [--check]", file=sys.stderr)
        return 2
    README.write_text(written(text), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
