"""Publish a folder whole or not at all: built beside its target under a lock, flushed, and swapped in one step."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import glob
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final, TextIO

from pinnace.errors import BundleError, MachineError, PinnaceError, UsageError
from pinnace.spec import MANIFEST_NAME, FileFact, Manifest

_RENAME_EXCHANGE: Final = 2  # renameat2(2): both names swap in one step
# The remedy where an output folder cannot be used.
ELSEWHERE: Final = "choose another output folder (-o)"
_AT_FDCWD: Final = -100
_ASIDE: Final = ".old"


@contextlib.contextmanager
def publishing(target: Path) -> Iterator[Path]:
    """Give a scratch folder that becomes ``target`` when the block ends well, and vanishes when it does not.

    Args:
        target: the bundle's folder; an older bundle there is replaced, any other content is refused. Links are
            followed: what they point to is replaced.

    Raises:
        UsageError: ``target`` is a file, a folder that holds something other than a bundle, or lies in a bundle.
        MachineError: another process holds the target, or the disk is full or read-only.
    """
    target = _resolved(target)
    _refuse_foreign(target)
    scratch: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target):
            _clean_up(target)
            scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
            scratch.chmod(0o755)
            yield scratch
            _flush(scratch)
            _swap_in(scratch, target)
    except OSError as error:
        if isinstance(error, PinnaceError):
            raise
        raise _machine_error(error, target) from None
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def staging(scratch: Path) -> Iterator[Path]:
    """Give a second folder beside that of `publishing`, for what the bundle is made of; it vanishes in any case.

    Args:
        scratch: the folder that `publishing` gave. What a killed run leaves is removed with it.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"{scratch.name}-", dir=scratch.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _resolved(target: Path) -> Path:
    try:
        found = target.resolve()
    except (OSError, RuntimeError):
        found = target
    if found.is_symlink():  # links in a ring, which Python 3.13 gives back as they are
        raise UsageError(f"{target} is a link that leads back to itself; {ELSEWHERE}")
    return found


def _clean_up(target: Path) -> None:
    """Remove what runs that were killed left behind; an old bundle that was set aside comes back first."""
    left = sorted(target.parent.glob(f".{glob.escape(target.name)}.partial-*"))
    for aside in left:
        if aside.suffix == _ASIDE and not target.exists():
            aside.rename(target)
    for folder in left:
        shutil.rmtree(folder, ignore_errors=True)


def _refuse_foreign(target: Path) -> None:
    if target.exists():
        if not target.is_dir():
            raise UsageError(f"{target} is not a folder; {ELSEWHERE}")
        if any(target.iterdir()) and not (target / MANIFEST_NAME).is_file():
            raise UsageError(f"{target} exists and is not a bundle of Pinnace, so it is not replaced; {ELSEWHERE}")
    for parent in target.parents:
        if _is_bundle(parent):
            raise UsageError(
                f"{target} lies in the bundle {parent}, which no longer opens with a file too many; {ELSEWHERE}"
            )


def _is_bundle(folder: Path) -> bool:
    """Whether a folder's manifest is one of ours; browsers have files of this name too."""
    try:
        Manifest.from_json((folder / MANIFEST_NAME).read_text("utf-8"))
    except (OSError, ValueError, BundleError):
        return False
    return True


@contextlib.contextmanager
def _locked(target: Path) -> Iterator[None]:
    path = target.parent / f".{target.name}.lock"
    with _lock_file(path, target) as file:
        try:
            file.truncate(0)
            file.write(f"process {os.getpid()}")
            file.flush()
            yield
        finally:
            # Removed while still held, so that whoever waits next makes a new file rather than locking a ghost.
            path.unlink(missing_ok=True)


def _lock_file(path: Path, target: Path) -> TextIO:
    """Open and lock the file at ``path``, and not one that its last holder has just removed."""
    while True:
        file = path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(path.stat(), os.fstat(file.fileno())):
                    return file
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise MachineError(f"{target} is being written by {holder}; wait for it or {ELSEWHERE}") from None
        except BaseException:
            file.close()
            raise
        file.close()


def _flush(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        _fsync(path)
    _fsync(folder)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _swap_in(scratch: Path, target: Path) -> None:
    """Put the new folder in place; where an old one stands, exchange them in one system call."""
    if not target.exists():
        scratch.rename(target)
    elif not _exchange(scratch, target):
        aside = scratch.with_name(scratch.name + _ASIDE)
        target.rename(aside)
        scratch.rename(target)
        shutil.rmtree(aside, ignore_errors=True)
    _fsync(target.parent)


def _exchange(one: Path, two: Path) -> bool:
    """Swap two folders atomically; false where the system or file system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    return bool(rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(two), _RENAME_EXCHANGE) == 0)


def _machine_error(error: OSError, target: Path) -> MachineError:
    remedies = {
        errno.ENOSPC: f"free some space or {ELSEWHERE}",
        errno.EDQUOT: f"the quota is used up; {ELSEWHERE}",
        errno.EFBIG: "a limit on file sizes (ulimit -f) is too low for the weights",
        errno.EROFS: f"the file system is read-only; {ELSEWHERE}",
        errno.EACCES: f"this user may not write there; {ELSEWHERE}",
    }
    reason = error.strerror or str(error)
    named = Path(os.fsdecode(error.filename)).absolute() if isinstance(error.filename, str | bytes) else target
    if target.parent not in named.parents and named not in target.parents:
        return MachineError(f"cannot use {named}: {reason}; nothing was written")
    remedy = remedies.get(error.errno or 0, ELSEWHERE)
    return MachineError(f"cannot write {target}: {reason}; nothing was changed. Remedy: {remedy}")


def copy_file(source: Path, target: Path) -> None:
    """Copy bytes within the kernel, sharing blocks where the file system can; a link's content, not the link."""
    with source.open("rb") as src, target.open("wb") as dst:
        size, copied = os.fstat(src.fileno()).st_size, 0
        try:
            while copied < size and (
                done := os.copy_file_range(src.fileno(), dst.fileno(), min(size - copied, 1 << 30), copied, copied)
            ):
                copied += done
        except (OSError, AttributeError) as error:
            if getattr(error, "errno", None) in _FATAL:
                raise
        if copied < size:  # the kernel cannot, or stopped short without an error, as it does on some file systems
            src.seek(copied)
            dst.seek(copied)
            shutil.copyfileobj(src, dst, 1 << 20)


_FATAL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})  # another way to copy cannot help


def file_facts(folder: Path) -> dict[str, FileFact]:
    """Size and SHA-256 of every file of a folder but the manifest, by name relative to it."""
    facts = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if name != MANIFEST_NAME:
            with path.open("rb") as file:
                facts[name] = FileFact(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())
    return facts
