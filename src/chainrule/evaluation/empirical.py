"""The empirical distribution p̂ of a set of images, and how far a density p is from it.

    H(p̂) = −Σₓ p̂(x) ln p̂(x)          KL(p̂ ‖ p) = −Σₓ p̂(x) ln p(x) − H(p̂)

The sums run over the distinct images of the set, the only x with p̂(x) > 0, so both are exact for every n. They say
something only where images repeat. When all N of them are distinct, H(p̂) = ln N whatever they show, and the KL is
the NLL minus that constant: a density comes near 0 by learning the set by heart. Hence small images (data.side=4).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from chainrule.density import BinaryDensity
from chainrule.evaluation.scoring import nll_per_image


@dataclass(frozen=True)
class Empirical:
    """The distinct images of a set, and how often each is in it."""

    images: Tensor  # (K, n) uint8
    counts: Tensor  # (K,) int64

    @classmethod
    def of(cls, images: Tensor) -> Self:
        """Of images (N, n) of 0 and 1."""
        bits = images.numpy().astype(np.uint8)
        packed, counts = np.unique(np.packbits(bits, axis=1), axis=0, return_counts=True)
        return cls(torch.from_numpy(np.unpackbits(packed, axis=1, count=bits.shape[1])), torch.from_numpy(counts))

    @property
    def total(self) -> int:
        """N, the images of the set."""
        return int(self.counts.sum())

    @property
    def distinct(self) -> int:
        """K, the images that differ."""
        return len(self.counts)

    @property
    def repeats(self) -> bool:
        """Whether images repeat often enough for a KL to say more than an NLL: below 90% are distinct."""
        return self.distinct < 0.9 * self.total

    @property
    def entropy(self) -> float:
        """H(p̂) in nats, from 0 (all the same) to ln N (all distinct)."""
        counts = self.counts.double()
        return math.log(self.total) - float((counts * counts.log()).sum()) / self.total

    def cross_entropy(self, density: BinaryDensity) -> float:
        """−Σ p̂(x) ln p(x) in nats: the mean NLL of all N images, a float64 sum of what the density gives."""
        return float(self.counts.double().numpy() @ nll_per_image(density, self.images)) / self.total
