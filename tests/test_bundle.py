"""Opening bundles: what is whole opens, what is damaged, moved or linked away is named."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pinnace.errors import BundleError, UsageError
from pinnace.runtime.bundles import bundle as bundle_module
from pinnace.runtime.bundles import integrity, verdicts
from pinnace.runtime.bundles.bundle import Bundle
from pinnace.runtime.bundles.certificate import read_certificate
from pinnace.runtime.engine.session import Session, load
from pinnace.runtime.pipelines.table import pipeline
from tests.tiny_bundle import example, hub_tree, make_bundle, write_manifest

FILES = ("README.md", "certificate.json", "config.json", "golden.npz", "model.onnx", "model.safetensors")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "tiny-bert")


def test_a_whole_bundle_opens(folder: Path) -> None:
    bundle = Bundle.open(folder)
    assert bundle.path == folder
    assert tuple(sorted(bundle.manifest.files)) == tuple(sorted(FILES))
    assert bundle.config()["model_type"] == "bert"
    assert bundle.graph_path() == bundle.graph_path("auto") == bundle.graph_path("fp32") == folder / "model.onnx"
    with pytest.raises(UsageError, match=r"'fp3'.*\n?.*Did you mean 'fp32'"):
        bundle.variant("fp3")


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_is_found(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 4
    (folder / name).write_bytes(content)
    with pytest.raises(BundleError, match=rf"^{name} .*damaged or was changed"):
        Bundle.open(folder)


@pytest.mark.parametrize("name", FILES)
def test_missing_renamed_cut_and_extra_files_are_named(folder: Path, name: str, tmp_path: Path) -> None:
    (folder / name).rename(folder / "other.bin")
    with pytest.raises(BundleError, match=rf"{name} .*renamed to other.bin"):
        Bundle.open(folder)
    (folder / "other.bin").rename(tmp_path / "kept")
    with pytest.raises(BundleError, match=f"{name} is missing"):
        Bundle.open(folder)
    (folder / name).write_bytes((tmp_path / "kept").read_bytes()[:-1])
    with pytest.raises(BundleError, match=f"{name} in .* bytes"):
        Bundle.open(folder)
    (tmp_path / "kept").rename(folder / name)
    (folder / "sub").mkdir()
    (folder / "sub" / "more.txt").write_text("x")
    with pytest.raises(BundleError, match=r"sub/more\.txt .*not in manifest"):
        Bundle.open(folder)


def test_dot_files_are_not_looked_at(folder: Path) -> None:
    (folder / ".gitattributes").write_text("x")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "y").write_text("x")
    assert Bundle.open(folder).verified


def count_hashes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    read: list[str] = []
    original = integrity.sha256_of

    def counted(path: Path) -> str:
        read.append(path.name)
        return original(path)

    monkeypatch.setattr(integrity, "sha256_of", counted)
    return read


def test_the_second_start_reads_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    time.sleep(2 * verdicts.FRESH_NS / 1e9)
    read = count_hashes(monkeypatch)
    Bundle.open(folder)
    assert sorted(read) == sorted(FILES)
    read.clear()
    Bundle.open(folder)
    assert read == []
    # The same bytes in a new file are another file, and a changed file never passes for the old one.
    (folder / "copy").write_bytes((folder / "model.safetensors").read_bytes())
    (folder / "copy").replace(folder / "model.safetensors")
    Bundle.open(folder)
    assert sorted(read) == sorted(FILES)
    facts = (folder / "model.safetensors").stat()
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    os.utime(folder / "model.safetensors", ns=(facts.st_atime_ns, facts.st_mtime_ns))
    with pytest.raises(BundleError, match=r"^model\.safetensors"):
        Bundle.open(folder)


def test_a_file_written_this_instant_is_not_remembered(folder: Path, own_cache: Path) -> None:
    for name in FILES:
        os.utime(folder / name)
    started = time.time_ns()
    identities = {name: integrity.identify(folder, name) for name in FILES}
    verdicts.remember(folder, identities, started)
    assert not verdicts.is_remembered(folder, identities)


def break_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")

    def no_home() -> Path:
        raise RuntimeError("no home")

    monkeypatch.setattr(Path, "home", no_home)


def block_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "blocked").write_text("a file where a folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "blocked"))


@pytest.mark.parametrize("spoil", [break_home, block_folder])
def test_without_a_cache_it_works_and_forgets(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Any, Path], None]
) -> None:
    time.sleep(2 * verdicts.FRESH_NS / 1e9)
    spoil(monkeypatch, tmp_path)
    read = count_hashes(monkeypatch)
    Bundle.open(folder)
    Bundle.open(folder)
    assert len(read) == 2 * len(FILES)


def test_a_damaged_verdict_is_ignored(folder: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    time.sleep(2 * verdicts.FRESH_NS / 1e9)
    Bundle.open(folder)
    (verdict,) = (own_cache / "pinnace" / "verdicts").iterdir()
    verdict.write_text("[" * 100_000)
    read = count_hashes(monkeypatch)
    Bundle.open(folder)
    assert read


def test_verify_false_reads_no_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "model.safetensors").write_bytes(b"damaged")
    read = count_hashes(monkeypatch)
    assert not Bundle.open(folder, verify=False).verified
    assert read == []


def test_a_hub_cache_tree_opens(folder: Path, tmp_path: Path) -> None:
    snapshot = hub_tree(folder, tmp_path / "hub")
    assert Bundle.open(snapshot).verified
    blob = (snapshot / "model.safetensors").resolve()
    blob.write_bytes(b"x" * blob.stat().st_size)
    with pytest.raises(BundleError, match=r"^model\.safetensors"):
        Bundle.open(snapshot)


def test_a_link_out_of_a_hub_tree_is_refused(folder: Path, tmp_path: Path) -> None:
    snapshot = hub_tree(folder, tmp_path / "hub")
    (snapshot / "README.md").unlink()
    (snapshot / "README.md").symlink_to(folder / "README.md")
    with pytest.raises(BundleError, match=r"README\.md .*leaves the folder"):
        Bundle.open(snapshot)


@pytest.mark.parametrize("name", ["model.safetensors", "model.onnx", "config.json", "manifest.json"])
def test_links_out_of_the_folder_are_refused(folder: Path, tmp_path: Path, name: str) -> None:
    (folder / name).rename(tmp_path / "outside")
    (folder / name).symlink_to(tmp_path / "outside")
    with pytest.raises(BundleError, match=f"{name} .*leaves the folder"):
        Bundle.open(folder)
    (folder / name).unlink()
    os.link(tmp_path / "outside", folder / name)
    with pytest.raises(BundleError, match=f"{name} .*hard link"):
        Bundle.open(folder)


def test_a_linked_folder_inside_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (folder / "onnx").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match=r"onnx .*not in manifest"):
        Bundle.open(folder)


def test_a_bundle_opens_through_a_link_to_its_folder(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(folder)
    assert Bundle.open(tmp_path / "current").verified


def test_wrong_folders_say_what_to_do(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no folder .*tiny-brt.*Did you mean .*tiny-bert"):
        Bundle.open(tmp_path / "tiny-brt")
    with pytest.raises(BundleError, match="is a file"):
        Bundle.open(folder / "model.onnx")
    with pytest.raises(BundleError, match=r"It is in .*tiny-bert; open that"):
        Bundle.open(tmp_path)
    (folder / "manifest.json").unlink()
    with pytest.raises(BundleError, match=r"pinnace export .*tiny-bert --task"):
        Bundle.open(folder)
    for path in folder.iterdir():
        path.unlink()
    with pytest.raises(BundleError, match=r"manifest\.json is missing"):
        Bundle.open(folder)


def drop_variants(data: dict[str, Any]) -> None:
    data["variants"] = {}


def unlisted_graph(data: dict[str, Any]) -> None:
    data["variants"]["fp32"]["graph"] = "absent.onnx"


def unlisted_weights(data: dict[str, Any]) -> None:
    data["variants"]["fp32"]["weights"] = ["../secret"]


def strange_precision(data: dict[str, Any]) -> None:
    data["variants"]["fp31"] = data["variants"].pop("fp32")


def path_out(data: dict[str, Any]) -> None:
    data["files"]["../secret"] = data["files"].pop("README.md")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (drop_variants, "names no variant"),
        (unlisted_graph, "absent.onnx"),
        (unlisted_weights, "secret"),
        (strange_precision, "fp31"),
        (path_out, "secret"),
    ],
)
def test_impossible_manifests(folder: Path, change: Callable[[dict[str, Any]], None], word: str) -> None:
    write_manifest(folder, change)
    with pytest.raises(BundleError, match=word):
        Bundle.open(folder)


def test_small_files_are_bounded_and_never_waited_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.open(folder, verify=False)
    monkeypatch.setattr(bundle_module, "MAX_JSON_BYTES", 100)
    with (folder / "certificate.json").open("wb") as file:
        file.truncate(101)
    with pytest.raises(BundleError, match=r"certificate\.json has more than 100 bytes"):
        read_certificate(bundle)
    for name in ("config.json", "certificate.json"):
        (folder / name).unlink()
        os.mkfifo(folder / name)
    with pytest.raises(BundleError, match=r"config\.json in .* is not a regular file"):
        bundle.config()
    with pytest.raises(BundleError, match=r"certificate\.json in .* is not a regular file"):
        read_certificate(bundle)


def test_config_that_is_no_object(folder: Path) -> None:
    for text, word in (("[1]", "object"), ("{", "not JSON"), ("\udcff", "UTF-8")):
        (folder / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(BundleError, match=word):
            Bundle.open(folder, verify=False).config()


def replace(folder: Path, new: Path) -> None:
    """Put another bundle in a bundle's place, as an export to the same folder does."""
    folder.rename(folder.with_name(f"{folder.name}-before-{new.name}"))
    new.rename(folder)


def test_a_bundle_that_was_replaced_is_not_mixed_with_the_one_that_was_opened(folder: Path, tmp_path: Path) -> None:
    opened, untouched = Bundle.open(folder), Bundle.open(folder, verify=False)
    session = load(folder, threads=1)
    before = session.run(example(2, 3))
    session.renew()  # as in a forked child
    (folder / "config.json").chmod(0o600)
    assert all(np.array_equal(value, before[name]) for name, value in session.run(example(2, 3)).items())
    replace(folder, make_bundle(tmp_path / "new"))
    session.run(example(2, 3))  # what is open stays what it is
    session.renew()
    for late in (lambda: session.run(example(2, 3)), lambda: Session(opened), lambda: Session(untouched),
                 opened.config, untouched.config):  # fmt: skip
        with pytest.raises(BundleError, match=r"was replaced since it was opened: .* Open it anew"):
            late()
    load(folder, threads=1).run(example(2, 3))


def test_a_pipeline_made_before_its_bundle_was_replaced_gives_no_answer_of_both(
    bundle_of: Callable[[str], Path], tmp_path: Path
) -> None:
    folder, new = tmp_path / "live", tmp_path / "new"
    shutil.copytree(bundle_of("tiny-classify"), folder)
    shutil.copytree(folder, new)
    pipe = pipeline("text-classification", folder, threads=1)
    replace(folder, new)
    with pytest.raises(BundleError, match="was replaced since it was opened"):
        pipe("good")
    assert pipeline("text-classification", folder, threads=1)("good")


@pytest.mark.parametrize("verify", [True, False])
def test_a_bundle_that_is_replaced_while_it_is_opened_is_opened_anew(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verify: bool
) -> None:
    new = make_bundle(tmp_path / "new", golden=False)
    read_text, ready = integrity.read_text, [new]

    def late(path: Path, most: int) -> str:
        text = read_text(path, most)
        if ready:
            replace(folder, ready.pop())
        return text

    monkeypatch.setattr(integrity, "read_text", late)
    if verify:
        assert "golden.npz" not in Bundle.open(folder).manifest.files
    else:
        with pytest.raises(BundleError, match="was replaced"):
            Session(Bundle.open(folder, verify=False))


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can become another user")
def test_a_bundle_that_may_not_be_read_is_an_error_of_ours(folder: Path) -> None:
    folder.parent.chmod(0o700)
    code = (
        "import os\nfrom pinnace import Bundle, PinnaceError\nos.setgid(65534)\nos.setuid(65534)\n"
        f"try:\n    Bundle.open({str(folder)!r})\nexcept PinnaceError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith(f"cannot read the bundle {folder}: Permission denied"), done.stderr
