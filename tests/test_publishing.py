"""A bundle's folder is replaced whole or not at all: races, full disks, links, and other people's files."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pinnace import publishing as module
from pinnace.errors import MachineError, UsageError
from pinnace.publishing import copy_file, file_facts, publishing
from pinnace.spec import MANIFEST_NAME

ROOT = Path(__file__).parent.parent


def publish(target: Path, content: str = "new") -> None:
    with publishing(target) as scratch:
        (scratch / MANIFEST_NAME).write_text(content)
        (scratch / "onnx").mkdir()
        (scratch / "onnx" / "model.onnx").write_text(content)


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_new_folder_appears_with_nothing_beside_it(tmp_path: Path) -> None:
    publish(tmp_path / "deep" / "bundle")
    assert entries(tmp_path / "deep") == ["bundle"]
    assert entries(tmp_path / "deep" / "bundle") == ["manifest.json", "onnx"]


def test_while_it_is_written_the_old_bundle_stands(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    publish(target, "old")
    (target / "left over").write_text("from the old bundle")
    with publishing(target) as scratch:
        (scratch / MANIFEST_NAME).write_text("new")
        assert (target / MANIFEST_NAME).read_text() == "old"
    assert entries(target) == [MANIFEST_NAME]
    assert (target / MANIFEST_NAME).read_text() == "new"
    assert entries(tmp_path) == ["bundle"]


@pytest.mark.parametrize("fault", [RuntimeError("fault"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_a_failure_changes_nothing(tmp_path: Path, fault: BaseException) -> None:
    target = tmp_path / "bundle"
    publish(target, "old")
    with pytest.raises(type(fault)), publishing(target) as scratch:
        (scratch / MANIFEST_NAME).write_text("new")
        raise fault
    assert (target / MANIFEST_NAME).read_text() == "old"
    assert entries(tmp_path) == ["bundle"]


@pytest.mark.parametrize("start", ["file", "folder"])
def test_what_is_no_bundle_is_not_replaced(tmp_path: Path, start: str) -> None:
    target = tmp_path / "precious"
    if start == "file":
        target.write_text("keep me")
    else:
        target.mkdir()
        (target / "thesis.txt").write_text("keep me")
    with pytest.raises(UsageError, match=r"precious.*another output folder"), publishing(target):
        pytest.fail("it must be refused before anything is built")
    assert "keep me" in (target if start == "file" else target / "thesis.txt").read_text()
    assert entries(tmp_path) == ["precious"]


def test_a_folder_in_a_bundle_is_refused(bundle_of: Callable[[str], Path], tmp_path: Path) -> None:
    outer = tmp_path / "outer"
    shutil.copytree(bundle_of("tiny-classify"), outer)
    before = entries(outer)
    for target in (outer / "inner", outer / "deep" / "inner"):
        with (
            pytest.raises(UsageError, match=r"inner lies in the bundle .*outer.*another output folder"),
            publishing(target),
        ):
            pytest.fail("it must be refused before anything is built")
    assert entries(outer) == before
    publish(tmp_path / "beside")


@pytest.mark.parametrize("content", ['{"name": "a page", "icons": []}', "no JSON", "[1]"])
def test_a_manifest_of_another_program_is_no_bundle(tmp_path: Path, content: str) -> None:
    (tmp_path / MANIFEST_NAME).write_text(content)
    publish(tmp_path / "bundle")
    assert (tmp_path / "bundle" / MANIFEST_NAME).read_text() == "new"


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    publish(tmp_path / "bundle")
    assert (tmp_path / "bundle" / MANIFEST_NAME).read_text() == "new"


def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path: Path) -> None:
    publish(tmp_path / "store" / "bundle", "old")
    (tmp_path / "link").symlink_to(tmp_path / "store" / "bundle")
    publish(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "store" / "bundle" / MANIFEST_NAME).read_text() == "new"
    assert entries(tmp_path) == ["link", "store"]
    assert entries(tmp_path / "store") == ["bundle"]


def test_links_in_a_ring_are_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(UsageError, match="leads back to itself; choose another output"), publishing(tmp_path / "a"):
        pytest.fail("it must be refused before anything is built")


def test_names_with_wildcards_touch_nothing_else(tmp_path: Path) -> None:
    (tmp_path / ".ab.partial-x").mkdir()
    publish(tmp_path / "[ab]b")
    publish(tmp_path / "*")
    assert entries(tmp_path) == ["*", ".ab.partial-x", "[ab]b"]


def test_the_second_writer_is_told_who_holds_the_folder(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    with publishing(target) as scratch:
        (scratch / MANIFEST_NAME).write_text("first")
        code = f"from pathlib import Path\nfrom tests.test_publishing import publish\npublish(Path({str(target)!r}))"
        second = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
        assert "MachineError" in second.stderr
        assert f"is being written by process {os.getpid()}" in second.stderr
    assert (target / MANIFEST_NAME).read_text() == "first"
    assert MachineError.exit_code == 5


def test_a_lock_that_was_just_removed_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last holder unlinks the file between our open and our lock: the lock on the ghost must not count."""
    path = tmp_path / ".bundle.lock"
    real, calls = fcntl.flock, []

    def flock(file: Any, how: int) -> None:
        calls.append(os.fstat(file.fileno()).st_ino)
        if len(calls) == 1:
            path.unlink()
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with publishing(tmp_path / "bundle") as scratch:
        (scratch / MANIFEST_NAME).write_text("new")
        assert path.stat().st_ino == calls[-1]
    assert len(calls) == 2


def test_many_writers_at_once_leave_one_whole_bundle(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    inside, most, refused = [0], [0], [0]
    guard = threading.Lock()

    def work(name: int) -> None:
        for turn in range(20):
            try:
                with publishing(target) as scratch:
                    with guard:
                        inside[0] += 1
                        most[0] = max(most[0], inside[0])
                    (scratch / MANIFEST_NAME).write_text(f"{name}.{turn}")
                    (scratch / "other").write_text(f"{name}.{turn}")
                    with guard:
                        inside[0] -= 1
            except MachineError:
                refused[0] += 1

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert (target / MANIFEST_NAME).read_text() == (target / "other").read_text()
    assert entries(tmp_path) == ["bundle"]


def test_without_an_atomic_exchange_an_old_bundle_set_aside_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "bundle"
    publish(target, "old")
    monkeypatch.setattr(module, "_exchange", lambda _one, _two: False)
    publish(target, "newer")
    assert (target / MANIFEST_NAME).read_text() == "newer"
    assert entries(tmp_path) == ["bundle"]
    target.rename(tmp_path / ".bundle.partial-abc.old")  # as a kill between the two renames leaves it
    with pytest.raises(RuntimeError), publishing(target):
        raise RuntimeError
    assert (target / MANIFEST_NAME).read_text() == "newer"


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file of this process may grow beyond 100 kB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("small_files")
def test_a_file_that_cannot_grow(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    publish(target, "old")
    with pytest.raises(MachineError, match=r"ulimit -f"), publishing(target) as scratch:
        (scratch / "model.onnx").write_bytes(bytes(200_000))
    assert (target / MANIFEST_NAME).read_text() == "old"
    assert entries(tmp_path) == ["bundle"]


def test_a_full_disk(tmp_path: Path) -> None:
    refused = pytest.raises(MachineError, match=r"No space left.*free some space")
    with refused, publishing(tmp_path / "bundle"), Path("/dev/full").open("wb") as full:
        full.write(b"weights")
    assert entries(tmp_path) == []


@pytest.mark.parametrize(
    ("code", "word"), [(errno.EROFS, "read-only"), (errno.EACCES, "may not write"), (errno.EDQUOT, "quota")]
)
def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, word: str) -> None:
    def refuse(*_args: Any, **_options: Any) -> None:
        raise OSError(code, os.strerror(code), str(tmp_path / ".bundle.partial-x"))

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with pytest.raises(MachineError, match=rf"cannot write .*bundle.*{word}"), publishing(tmp_path / "bundle"):
        pytest.fail("there is nowhere to write")
    assert entries(tmp_path) == []


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match=r"cannot write .*bundle"), publishing(tmp_path / "file" / "bundle"):
        pytest.fail("there is nowhere to write")


def test_a_file_elsewhere_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"cannot use .*gone"), publishing(tmp_path / "out" / "bundle"):
        (tmp_path / "gone").read_text()


def test_facts_of_every_file_but_the_manifest(tmp_path: Path) -> None:
    publish(tmp_path / "bundle", "x")
    facts = file_facts(tmp_path / "bundle")
    assert list(facts) == ["onnx/model.onnx"]
    assert facts["onnx/model.onnx"].bytes == 1
    assert facts["onnx/model.onnx"].sha256 == "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"


def stops_short(src: int, dst: int, count: int, *offsets: int) -> int:
    """As a kernel that copies a part, and then says that there is no more."""
    done = 30_000 if os.fstat(dst).st_size == 0 else 0
    os.sendfile(dst, src, 0, done)
    return done


def fails_halfway(src: int, dst: int, count: int, *offsets: int) -> int:
    if done := stops_short(src, dst, count, *offsets):
        return done
    raise OSError(errno.EXDEV, "across file systems")


@pytest.mark.parametrize("kernel", [None, lambda *_: 0, stops_short, fails_halfway])
def test_a_copy_is_whole_whatever_the_kernel_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel: Any
) -> None:
    content = os.urandom(100_000)
    (tmp_path / "source").write_bytes(content)
    if kernel is None:
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    else:
        monkeypatch.setattr(os, "copy_file_range", kernel, raising=False)
    copy_file(tmp_path / "source", tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == content
