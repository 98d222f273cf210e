"""A cache of packed bits. Whoever reads it looks at their SHA-256: a file here proves nothing."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from chainrule.files import read_small, write_whole

log = logging.getLogger(__name__)

Bits = NDArray[np.uint8]


def read(path: Path, shape: tuple[int, int]) -> Bits | None:
    """Bits (N, n) that :func:`write` left; None: there are none, or (with a warning in the log) no such bits."""
    count, pixels = shape
    size = count * -(-pixels // 8)
    try:
        packed = np.frombuffer(read_small(path, size), np.uint8)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        log.warning("cannot read the cache %s (%s): building the data anew", path, error)
        return None
    if packed.size != size:
        log.warning("the cache %s is truncated: building the data anew", path)
        return None
    return np.ascontiguousarray(np.unpackbits(packed.reshape(count, -1), axis=1, count=pixels))


def write(path: Path, bits: Bits) -> None:
    """Keeps bits (N, n). A folder that cannot be written only costs the next run some time."""
    try:
        write_whole(path, np.packbits(bits, axis=1).tobytes())
    except OSError as error:
        log.warning("cannot cache the data in %s (%s): the next run builds it again", path.parent, error)
