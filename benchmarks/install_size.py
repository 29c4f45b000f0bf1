"""What does the core install add to numpy + onnxruntime + tokenizers, and does its wheel work without PyTorch?

The wheel is built and installed into a fresh environment, where it answers while torch, onnx and transformers, among
others, cannot be imported.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any, Final

from benchmarks.common import ROOT, Figure, affinity, finish, parser, run_child

MB: Final = 1e6
BESIDE: Final = ("numpy", "onnxruntime", "tokenizers")
BLOCKED: Final = ("torch", "onnx", "transformers", "onnx_ir", "onnxscript", "safetensors", "huggingface_hub")
CHECKPOINT: Final = ROOT / "tests" / "data" / "bert-glossary-ner"
TEXT: Final = "The word red means a color."
# Run by the fresh environment's Python, away from the repository.
ANSWER: Final = """
import json, sys
from pathlib import Path

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(name + " is blocked", name=name)

sys.meta_path.insert(0, Refuse())
import pinnace
for name in pinnace.__all__:
    if name not in ("models", "quantize"):  # these are for environments with the export extra
        getattr(pinnace, name)
answer = pinnace.pipeline("token-classification", BUNDLE)(TEXT)
try:
    pinnace.export(BUNDLE)
    told = ""
except pinnace.PinnaceError as error:
    told = str(error)
loaded = sorted(set(sys.modules) & set(BLOCKED))
print(json.dumps({"file": pinnace.__file__, "answer": answer, "told": told, "loaded": loaded}))
"""


def main() -> int:
    made = parser(__doc__)
    arguments = made.parse_args()
    with tempfile.TemporaryDirectory(prefix="pinnace-install-") as name:
        folder = Path(name)
        wheel = build_wheel(folder)
        python, site = new_environment(folder / "fresh")
        pip: list[str | Path] = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        if arguments.quick:  # no downloads: the packages of this environment are lent
            lent = next(path for path in map(Path, sys.path) if (path / "onnxruntime").is_dir())
            (site / "lent.pth").write_text(f"{lent}\n", "utf-8")
            pip.append("--no-deps")
        else:
            run_child([*pip, *BESIDE], threads=len(affinity()), PYTHONPATH="")
        before = sizes(site)
        run_child([*pip, wheel], threads=len(affinity()), folder=folder, PYTHONPATH="")
        after = sizes(site)
        added = {key: after[key] - before.get(key, 0) for key in after if after[key] != before.get(key, 0)}
        bundle = folder / "bundle"
        words: list[str | Path] = [
            "pinnace",
            "export",
            CHECKPOINT,
            "--task",
            "ner",
            "-o",
            bundle,
            "--no-validate",
            "-q",
        ]
        run_child([sys.executable, "-m", *words], threads=len(affinity()))
        here = answer(Path(sys.executable), bundle, folder, str(ROOT), blocked=())
        there = answer(python, bundle, folder, "", BLOCKED)
    measured: dict[str, dict[str, Any]] = {
        "lent, not counted" if arguments.quick else "numpy + onnxruntime + tokenizers": {
            "MB": None if arguments.quick else sum(before.values()) / MB
        },
        "added by the core install": {"MB": sum(added.values()) / MB},
        "the wheel": {"MB": wheel_size(added)},
    }
    figures = [Figure("size added by the core install", sum(added.values()) / MB, 15, unit="MB")]
    numbers = {
        "the wheel answers as the repository does": bool(there["answer"]) and there["answer"] == here["answer"],
        "it is the installed one": str(there["file"]).startswith(str(site)),
        f"{', '.join(BLOCKED)} are not loaded": not there["loaded"],
        "exporting names the extra to install": "pip install" in there["told"],
    }
    return finish(arguments, "Size of the core install", measured, figures, numbers)


def build_wheel(folder: Path) -> Path:
    """Build the wheel from a copy, so that nothing is left in the repository."""
    source = folder / "source"
    source.mkdir()
    for name in ("pinnace", "export", "models", "quantize", "runtime"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    words: list[str | Path] = [
        "pip",
        "wheel",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--no-build-isolation",
    ]
    run_child([sys.executable, "-m", *words, "--wheel-dir", folder / "wheels", source], folder=folder, PYTHONPATH="")
    (wheel,) = (folder / "wheels").glob("*.whl")
    return wheel


def new_environment(folder: Path) -> tuple[Path, Path]:
    """Make an environment; returns its Python and its folder of packages."""
    venv.create(folder, with_pip=True)
    (site,) = (folder / "lib").glob("python*/site-packages")
    return folder / "bin" / "python", site


def sizes(site: Path) -> dict[str, int]:
    """Bytes below each entry of a folder of packages, compiled files included, pip's own left out."""
    return {
        entry.name: sum(path.stat().st_size for path in (entry, *entry.rglob("*")) if path.is_file())
        for entry in site.iterdir()
        if not entry.name.startswith("pip")
    }


def wheel_size(added: dict[str, int]) -> float:
    """Megabytes of the package itself, without what it depends on."""
    return sum(size for name, size in added.items() if name.startswith("pinnace")) / MB


def answer(python: Path, bundle: Path, folder: Path, path: str, blocked: tuple[str, ...]) -> dict[str, Any]:
    """Answer in an environment; `ANSWER` is its program."""
    facts = f"BLOCKED, BUNDLE, TEXT = {blocked!r}, {str(bundle)!r}, {TEXT!r}\n"
    shown = run_child([python, "-c", facts + ANSWER], folder=folder, PYTHONPATH=path).output
    found: dict[str, Any] = json.loads(shown.splitlines()[-1])
    return found


if __name__ == "__main__":
    sys.exit(main())
