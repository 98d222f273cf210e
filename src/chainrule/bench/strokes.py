"""Images to measure with: as many pixels on as in MNIST, in strokes, of any size and from a seed."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

INK = 0.13  # of the pixels are on, as of MNIST's (102 of 784), give or take
VARIATION = 0.04
LIFT = 0.03  # how often, per pixel of the way, the pen goes somewhere else
BEND = 0.35  # radians that its direction changes by


def shape_of(n: int) -> tuple[int, int]:
    """(height, width) of n pixels, as near to a square as whole numbers allow."""
    height = next(h for h in range(math.isqrt(n), 0, -1) if n % h == 0)
    return height, n // height


def strokes(count: int, shape: tuple[int, int], seed: int) -> Tensor:
    """(count, height · width) uint8 of 0 and 1: the way of a pen, which keeps off the margin as digits do."""
    rng, n = np.random.default_rng(seed), math.prod(shape)
    images = np.zeros((count, *shape), np.uint8)
    ink = np.clip(rng.normal(INK * n, VARIATION * n, count), 1, 0.3 * n)
    pens = _Pens(rng, shape, count)
    for _ in range(4 * n):
        unfinished = images.reshape(count, n).sum(1, dtype=np.int32) < ink
        if not unfinished.any():
            break
        pens.draw(images, np.flatnonzero(unfinished))
        pens.move()
    return torch.from_numpy(images.reshape(count, n))


class _Pens:
    """One for each image: a place, a direction, and a tip that is wider on larger images."""

    def __init__(self, rng: np.random.Generator, shape: tuple[int, int], count: int) -> None:
        self.rng, self.shape, self.count = rng, np.array(shape), count
        self.tip = max(1, round(min(shape) / 14))
        self.low = self.shape // 7
        self.high = self.shape - self.low
        self.place, self.angle = self._anywhere(), rng.uniform(0, 2 * np.pi, count)

    def draw(self, images: NDArray[np.uint8], which: NDArray[np.intp]) -> None:
        y, x = self.place[which].astype(int).T
        for dy, dx in np.ndindex(self.tip, self.tip):
            images[which, np.minimum(y + dy, self.high[0] - 1), np.minimum(x + dx, self.high[1] - 1)] = 1

    def move(self) -> None:
        self.angle += self.rng.normal(0, BEND, self.count)
        place = self.place + np.stack([np.sin(self.angle), np.cos(self.angle)], 1)
        outside = ((place < self.low) | (place >= self.high)).any(1)
        lifted = outside | (self.rng.random(self.count) < LIFT)
        self.place = np.where(lifted[:, None], self._anywhere(), place)

    def _anywhere(self) -> NDArray[np.float64]:
        return self.rng.uniform(self.low, self.high, (self.count, 2))
