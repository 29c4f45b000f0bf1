"""Is every file of a bundle the one its manifest describes? Safe links, exact set of files, SHA-256 of each.

Also the one reader of small files, which is bounded.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from pinnace.errors import BundleError
from pinnace.runtime.machine import threads
from pinnace.spec import MANIFEST_NAME, FileFact, is_plain_name

READ_BYTES: Final = 1 << 20
MAX_FILES: Final = 10_000


class Identity(NamedTuple):
    """What tells that a file is the same file with the same content, without reading it. Times in ns."""

    device: int
    inode: int
    size: int
    mtime: int
    ctime: int

    def same_content(self, other: Identity) -> bool:
        """Whether both are one file, whose content was not written meanwhile; its mode or owner may have changed."""
        return self[:4] == other[:4]


def identify(folder: Path, name: str) -> Identity:
    """Return the identity of one file of the bundle, after checking that it is safe to open.

    Args:
        folder: the bundle.
        name: a file name relative to it.

    Raises:
        BundleError: not a plain name, missing, not a regular file, or a link that could lead out of the bundle. The
            links of a Hub cache, from ``models--x/snapshots/y/`` into ``models--x/blobs/``, are allowed.
    """
    if not is_plain_name(name):
        raise BundleError(f"{name!r} is not a plain file name inside the bundle {folder}; refused")
    path = folder / name
    try:
        facts = path.stat()
    except OSError as error:
        raise BundleError(f"{name} is missing from the bundle {folder}: {error.strerror}") from None
    if not stat.S_ISREG(facts.st_mode):
        raise BundleError(f"{name} in {folder} is not a regular file; refused")
    root, target = folder.resolve(), path.resolve()
    if target.parent not in _blob_folders(root):
        if not target.is_relative_to(root):
            raise BundleError(f"{name} in {folder} is a link that leaves the folder; refused. Put a copy in its place")
        if facts.st_nlink > 1:
            raise BundleError(
                f"{name} in {folder} is a hard link (the file has {facts.st_nlink} names), which another program could "
                f"change; refused. Copy the folder with: cp -r {folder} NEW_FOLDER"
            )
    return Identity(facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)


def read_text(path: Path, most: int) -> str:
    """Read a small UTF-8 file, which may come from a stranger.

    Args:
        path: the file; that of a bundle is identified first.
        most: bytes that it may have.

    Raises:
        BundleError: missing, not a regular file (a pipe would be waited for), too large, or not UTF-8.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise BundleError(f"{path} is not a regular file; refused")
        with path.open("rb") as stream:
            data = stream.read(most + 1)
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > most:
        raise BundleError(f"{path} has more than {most} bytes; refused")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise BundleError(f"{path} is not UTF-8 text (byte {error.start:,})") from None


def read_object(path: Path, most: int) -> dict[str, Any]:
    """Read a small file of one JSON object; arguments are those of `read_text`.

    Raises:
        BundleError: as `read_text`, or not a JSON object.
    """
    try:
        value = json.loads(read_text(path, most))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not JSON: {str(error)[:200]}") from None
    if not isinstance(value, dict):
        raise BundleError(f"{path} must be an object, got {type(value).__name__}")
    return value


def check_names(folder: Path, files: Mapping[str, FileFact]) -> dict[str, Identity]:
    """Check that the folder holds exactly the manifest's files, each with the right size, and identify them.

    Files and folders whose name begins with a dot are not looked at.

    Raises:
        BundleError: a missing, extra, renamed, unsafe, shortened or lengthened file, by name.
    """
    present = set(_list(folder, folder))
    missing = sorted(set(files) - present)
    extra = sorted(present - set(files) - {MANIFEST_NAME})
    if missing:
        raise BundleError(_missing_text(folder, files, missing, extra))
    if extra:
        raise BundleError(
            f"{_some(extra)} in {folder} is not in {MANIFEST_NAME}. "
            "Move it out of the bundle, or export again if it belongs there"
        )
    identities = {name: identify(folder, name) for name in sorted(files)}
    for name, fact in files.items():
        if identities[name].size != fact.bytes:
            raise BundleError(
                f"{name} in {folder} has {identities[name].size:,} bytes, {MANIFEST_NAME} says {fact.bytes:,}. "
                "It was cut off or changed; export or download it again"
            )
    return identities


def check_hashes(folder: Path, files: Mapping[str, FileFact]) -> None:
    """Read every file and compare its SHA-256 with the manifest's, several files at once.

    Raises:
        BundleError: the first file whose content differs, or that cannot be read.
    """
    from concurrent.futures import ThreadPoolExecutor  # with logging 10 ms, which a remembered verdict saves

    # The largest first, so that no thread is left alone with it at the end. Hashing releases Python's lock.
    names = sorted(files, key=lambda name: (-files[name].bytes, name))
    with ThreadPoolExecutor(threads.granted_cores()) as pool:
        hashes = dict(zip(names, pool.map(lambda name: sha256_of(folder / name), names), strict=True))
    for name in sorted(names):
        if hashes[name] != files[name].sha256:
            raise BundleError(
                f"{name} in {folder} is damaged or was changed: its SHA-256 is {hashes[name]}, "
                f"{MANIFEST_NAME} says {files[name].sha256}. Export or download it again"
            )


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal.

    Raises:
        BundleError: the file cannot be read.
    """
    import hashlib  # 5 ms, for OpenSSL

    digest = hashlib.sha256()
    buffer = bytearray(READ_BYTES)
    try:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                digest.update(memoryview(buffer)[:count])
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}") from None
    return digest.hexdigest()


def _blob_folders(root: Path) -> tuple[Path, ...]:
    """Return where the files of a bundle in a Hub cache tree really lie; nothing for an ordinary folder."""
    for snapshots in (root.parent, root.parent.parent):
        if snapshots.name == "snapshots" and snapshots.parent.name.startswith("models--"):
            return (snapshots.parent / "blobs",)
    return ()


def _list(folder: Path, root: Path) -> Iterator[str]:
    """Yield the names of all files below ``folder``, relative to ``root``; a linked folder counts as a file."""
    count = 0
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                count += 1
                if count > MAX_FILES:
                    raise BundleError(f"{folder} holds more than {MAX_FILES:,} files; it is not a bundle")
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False) and folder == root:
                    yield from _list(Path(entry.path), root)
                else:
                    yield Path(entry.path).relative_to(root).as_posix()
    except OSError as error:
        raise BundleError(f"cannot read the bundle {folder}: {error.strerror}") from None


def _missing_text(folder: Path, files: Mapping[str, FileFact], missing: list[str], extra: list[str]) -> str:
    fact = files[missing[0]]
    for name in extra:
        path = folder / name
        if path.is_file() and path.stat().st_size == fact.bytes and sha256_of(path) == fact.sha256:
            return f"{missing[0]} in {folder} was renamed to {name}. Rename it back"
    return f"{_some(missing)} is missing from the bundle {folder}. Export or download it again"


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} (and {len(names) - 1} more)"
