"""Files that are either whole or absent, whatever happens meanwhile."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

LARGEST = 1 << 33  # bytes of any file that is read
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of an OSError: there is no room

# A ZIP archive, as torch writes it, ends with the length of a comment and the comment; the seal is the comment.
LABEL = b"sha256:"
SEAL = len(LABEL) + 64


def write_whole(path: Path, content: bytes, *, previous: Path | None = None) -> None:
    """Writes a file that never looks finished before it is, and that outlives a loss of power once it does.

    Args:
        path: the file; its folder is made where it is missing.
        content: of the file.
        previous: the name that the file's predecessor takes; None replaces it.

    Raises:
        OSError: the folder cannot be made or written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Runs that start together may write the same file: each has a temporary name of its own.
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            _fsync(file.fileno())
        if previous is not None and path.exists():
            path.replace(previous)
        part.replace(path)
        _sync(path.parent)
    except OSError as error:  # of a full disk, which names no file
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        part.unlink(missing_ok=True)


def read_small(path: Path, limit: int = 64 << 20) -> bytes:
    """The content of a regular file of at most ``limit`` bytes; somebody else may have put it there.

    Raises:
        OSError: it cannot be read.
        ValueError: it is larger, or no regular file: a pipe would never end.
    """
    check_size(path, limit)
    return path.read_bytes()


def check_size(path: Path, limit: int) -> None:
    """Raises what :func:`read_small` does, and reads nothing."""
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        raise ValueError(f"{path} is not a regular file")
    if about.st_size > limit:
        raise ValueError(f"{path} has {about.st_size:,} bytes; at most {limit:,} are read")


def file_sha256(file: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal.

    Raises:
        OSError, ValueError: as :func:`read_small` of :data:`LARGEST` bytes.
    """
    check_size(file, LARGEST)
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def content_of(write: Callable[[BinaryIO], object]) -> bytes:
    """What a function writes to the file that it is given."""
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def _sync(folder: Path) -> None:
    """Makes the names in a folder outlive a loss of power, too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        _fsync(handle)
    finally:
        os.close(handle)


def _fsync(handle: int) -> None:
    try:
        os.fsync(handle)
    except OSError as error:  # some network and shared drives have none: what is written there is written all the same
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise


def remove_parts(folder: Path) -> None:
    """Removes what writers left behind that were killed. Nobody else may be writing below ``folder``."""
    for part in folder.rglob(".*.part"):
        part.unlink(missing_ok=True)


def seal(archive: bytes) -> bytes:
    """A ZIP archive without a comment, with its SHA-256 as its comment: still the same archive to every reader."""
    assert archive[-22:-18] == b"PK\5\6"
    return archive[:-2] + SEAL.to_bytes(2, "little") + LABEL + _digest(archive)


def is_sealed(content: bytes) -> bool:
    """Whether a file ends with a seal, broken or not."""
    return content[-SEAL:].startswith(LABEL)


def is_intact(content: bytes) -> bool:
    """Whether a file has a seal and is what was sealed, bit for bit."""
    if not is_sealed(content):
        return False
    return content[-64:] == _digest(content[: -SEAL - 2] + b"\0\0")


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()
