"""The empirical distribution p̂ of a set of images, and how far a density p is from it.

    H(p̂) = −Σₓ p̂(x) ln p̂(x)          KL(p̂ ‖ p) = −Σₓ p̂(x) ln p(x) − H(p̂)

The sums run over the distinct images of the set, the only x with p̂(x) > 0, so both are exact for every n. They say
something only where images repeat. When all N of them are distinct, H(p̂) = ln N whatever they show, and the KL is
the NLL minus that constant: a density comes near 0 by learning the set by heart. Hence small images (data.side=4).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from chainrule.density import BinaryDensity

BATCH = 1000  # images scored at a time


@dataclass(frozen=True)
class Empirical:
    """The distinct images of a set, and how often each is in it."""

    images: Tensor  # (K, n) uint8
    counts: Tensor  # (K,) int64

    @property
    def total(self) -> int:
        """N, the images of the set."""
        return int(self.counts.sum())

    @property
    def distinct(self) -> int:
        """K, how many of them differ."""
        return len(self.counts)

    @property
    def entropy(self) -> float:
        """H(p̂) in nats, from 0 (all the same) to ln N (all distinct)."""
        counts = self.counts.double()
        return math.log(self.total) - float((counts * counts.log()).sum()) / self.total

    @torch.inference_mode()
    def cross_entropy(self, density: BinaryDensity) -> float:
        """−Σ p̂(x) ln p(x) in nats: the mean NLL of all N images, a float64 sum of what the density gives."""
        nats = [-density.log_prob(x.to(density.device)).double().cpu() for x in self.images.split(BATCH)]
        return float(self.counts.double() @ torch.cat(nats)) / self.total

    def kl(self, density: BinaryDensity) -> float:
        """KL(p̂ ‖ p) in nats, as exact as the density: ``density.double()`` for one near 0."""
        return self.cross_entropy(density) - self.entropy


def empirical(images: Tensor) -> Empirical:
    """The empirical distribution of images, (N, n) of 0 and 1."""
    bits = images.numpy().astype(np.uint8)
    packed, counts = np.unique(np.packbits(bits, axis=1), axis=0, return_counts=True)
    distinct = np.unpackbits(packed, axis=1, count=bits.shape[1])
    return Empirical(torch.from_numpy(distinct), torch.from_numpy(counts))
