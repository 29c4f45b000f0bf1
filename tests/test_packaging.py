"""Wheel and source archive: every package and file is there, little else, and the wheel serves with the core alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.test_facade import HEAVY

ROOT = Path(__file__).resolve().parent.parent
SETUP = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
FOLDERS = {"pinnace": "pinnace", **SETUP["package-dir"]}
MOST_BYTES = 15_000_000
ABOUT = {"CHANGELOG.md", "LICENSE", "MANIFEST.in", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg"}


def test_packages_are_the_folders() -> None:
    links = {path.name for path in (ROOT / "pinnace").iterdir() if path.is_symlink()}
    assert {"pinnace": "pinnace", **{f"pinnace.{name}": name for name in links}} == FOLDERS
    # A package inside a package is missing from the wheel unless it is listed.
    inner = {
        ".".join([package, *path.parent.relative_to(ROOT / folder).parts])
        for package, folder in FOLDERS.items()
        for path in (ROOT / folder).rglob("__init__.py")
        if not any(parent.is_symlink() for parent in path.parents)
    }
    assert set(SETUP["packages"]) == inner


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy, so that nothing is left in the checkout."""
    copy = tmp_path_factory.mktemp("wheel")
    for folder in FOLDERS.values():
        ignore = shutil.ignore_patterns("__pycache__", *(FOLDERS.values() if folder == "pinnace" else ()))
        shutil.copytree(ROOT / folder, copy / folder, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(copy / "dist"), str(copy)]
    subprocess.run(command, check=True, capture_output=True, cwd=copy, timeout=120)
    return next((copy / "dist").glob("*.whl"))


def modules_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if name.startswith("pinnace/")}


@pytest.mark.slow
def test_the_wheel_has_every_file_and_little_weight(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        sizes = {info.filename: info.file_size for info in archive.infolist()}
    for package, folder in FOLDERS.items():
        for path in (ROOT / folder).rglob("*.*"):  # code, py.typed, and the built-in examples
            if path.suffix != ".pyc" and not any(parent.is_symlink() for parent in path.parents):
                assert f"{package.replace('.', '/')}/{path.relative_to(ROOT / folder)}" in sizes
    assert "pinnace/py.typed" in sizes and any(name.endswith("entry_points.txt") for name in sizes)
    assert sum(sizes.values()) < MOST_BYTES


@pytest.mark.slow
def test_the_source_archive_builds_the_wheel_and_has_the_docs(wheel: Path, tmp_path: Path) -> None:
    copy, output = tmp_path / "copy", tmp_path / "dist"
    ignored = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "demo", "data", "golden")
    shutil.copytree(ROOT, copy, symlinks=True, ignore=ignored)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(output), str(copy)]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path, timeout=240)  # the wheel from the archive
    shutil.unpack_archive(next(output.glob("*.tar.gz")), tmp_path / "unpacked", filter="data")
    [folder] = (tmp_path / "unpacked").iterdir()
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    # The tests' data, which `make test` and `make demo` need, are too large to ship: nothing is there that needs them.
    assert {file.parts[0] for file in files} == {*ABOUT, *FOLDERS.values(), "docs", "pinnace.egg-info"}
    docs = {path.name for path in (ROOT / "docs").glob("*.md")}
    assert {file.name for file in files if file.parts[0] == "docs"} == docs
    assert modules_in(next(output.glob("*.whl"))) == modules_in(wheel)


@pytest.mark.slow
def test_the_wheel_answers_without_any_extra(wheel: Path, bundle_of: Callable[[str], Path], tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
for name in {HEAVY}: sys.modules[name] = None
import pinnace
assert pinnace.__file__.startswith({str(tmp_path)!r}), pinnace.__file__
from pinnace.cli.main import main
sys.exit(main(["run", {str(bundle_of("tiny-classify"))!r}, "some text", "--quiet"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8", cwd=tmp_path, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["label"]
