"""From gray levels to bits, by rules in whole numbers: the same bits on every machine, forever.

Gray levels are (N, n) whole numbers from 0 to ``full``: 0 is never on, ``full`` always.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from chainrule.data.cache import Bits

CHUNK = 256  # images drawn at a time: their random words stay in the processor's cache


class Gray(NamedTuple):
    """Gray levels, (N, n), and the level that is certainly on."""

    levels: NDArray[np.uint8] | NDArray[np.uint16]
    full: int


def pool(images: NDArray[np.uint8], side: int) -> Gray:
    """Sums of k×k squares, k = 28 / side: gray levels (N, 28, 28) → (N, side²) from 0 to 255 k²."""
    k = 28 // side
    sums = np.zeros((len(images), side, side), np.uint16)
    for row in range(k):
        for column in range(k):
            sums += images[:, row::k, column::k]
    return Gray(sums.reshape(len(images), -1), 255 * k * k)


def threshold(gray: Gray) -> Bits:
    """A pixel is on when its mean level is above 127 of 255; ``full`` is a multiple of 255."""
    return (gray.levels > 127 * (gray.full // 255)).astype(np.uint8)


def draw(gray: Gray, key: Sequence[int]) -> Bits:
    """Draws each pixel with probability level/full from the raw words of Philox 4x64-10, one 64-bit word a pixel.

    The algorithm is published (J. Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011), and
    NumPy's policy (NEP 19) guarantees the stream of its bit generators. A pixel is on if and only if

        ⌊word / 2³²⌋ · full < level · 2³²

    Args:
        gray: (N, n), row-major in the order of the words.
        key: the two 64-bit words of Philox's key.

    Returns:
        (N, n) uint8.
    """
    philox = np.random.Philox(key=np.array(key, np.uint64))
    bits = np.empty(gray.levels.shape, np.uint8)
    for start in range(0, len(bits), CHUNK):
        levels = gray.levels[start : start + CHUNK].astype(np.uint64)
        words = philox.random_raw(levels.size).reshape(levels.shape)
        bits[start : start + CHUNK] = (words >> np.uint64(32)) * np.uint64(gray.full) < levels << np.uint64(32)
    return bits
