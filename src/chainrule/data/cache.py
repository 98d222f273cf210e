"""A cache of packed bits."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from chainrule.files import write_whole

log = logging.getLogger(__name__)

Bits = NDArray[np.uint8]
DIGEST = 32  # bytes of a SHA-256


def cached(folder: Path, key: str, shape: tuple[int, int], build: Callable[[], Bits]) -> Bits:
    """The bits that ``build`` makes, (N, n) uint8, taken from ``folder`` where an earlier call left them.

    A torn or altered file is built anew, and a folder that cannot be written only costs the time: both with
    a warning in the log.

    Args:
        folder: where the packed bits live.
        key: names the bits: the file's stem. Everything that they depend on must be in it.
        shape: (N, n).
        build: makes the bits.
    """
    path = folder / f"{key}.bits"
    bits = _read(path, key, shape)
    if bits is None:
        bits = build()
        assert bits.shape == shape
        _write(path, key, bits)
    return bits


def _read(path: Path, key: str, shape: tuple[int, int]) -> Bits | None:
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        log.warning("cannot read the cache %s (%s): building the data anew", path, error)
        return None
    packed = np.frombuffer(content[DIGEST:], np.uint8)
    rows, pixels = shape
    if content[:DIGEST] != _digest(key, packed) or packed.size != rows * -(-pixels // 8):
        log.warning("the cache %s is torn or altered: building the data anew", path)
        return None
    return np.ascontiguousarray(np.unpackbits(packed.reshape(rows, -1), axis=1, count=pixels))


def _write(path: Path, key: str, bits: Bits) -> None:
    packed = np.packbits(bits, axis=1)
    try:
        write_whole(path, _digest(key, packed) + packed.tobytes())
    except OSError as error:
        log.warning("cannot cache the data in %s (%s): the next run builds it again", path.parent, error)


def _digest(key: str, packed: Bits) -> bytes:
    # The key is part of it: a renamed file is no other data set.
    return hashlib.sha256(key.encode() + packed.tobytes()).digest()
