"""Binarized MNIST in four protocols; numbers of different protocols are not comparable.

Each has 50,000 / 10,000 / 10,000 images; except for ``static``, whose files are split already, the MNIST
training set is cut in file order.

With a side below 28, k×k squares of pixels (k = 28 / side) are pooled first.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from chainrule.data import sources
from chainrule.data.cache import Bits, cached
from chainrule.data.images import Batches, Images, Splits, sha256, whole

TRAIN, VALID, TEST = 50_000, 10_000, 10_000
TOTAL = TRAIN + VALID + TEST
CHUNK = 256  # images binarized at a time: their random words stay in the processor's cache

Sums = NDArray[np.uint16]


class Digits(Images):
    """The bits of all 70,000 digits in one array, cached and cut."""

    def splits(self) -> Splits:
        bits = cached(self.cache_dir, self.key(), (TOTAL, self.side**2), self.bits)
        return Splits(*np.split(bits, [TRAIN, TRAIN + VALID]))

    def key(self) -> str:
        """Names the bits in the cache."""
        return f"{self.name}-side{self.side}"

    @abstractmethod
    def bits(self) -> Bits:
        """The bits of training, validation and test images, (70000, n)."""


class Static(Digits):
    """The binarization that Larochelle published; what papers mean by (statically) binarized MNIST.

    With ``side`` below 28, a pooled pixel is 1 when at least half of its k² bits are.

    References: R. Salakhutdinov and I. Murray, On the quantitative analysis of deep belief networks, ICML
    2008; H. Larochelle and I. Murray, The neural autoregressive distribution estimator, AISTATS 2011.
    """

    name = "static"

    def bits(self) -> Bits:
        bits = sources.static(self.data_dir)
        if self.side == 28:
            return bits
        return (2 * pool(bits.reshape(-1, 28, 28), self.side) >= (28 // self.side) ** 2).astype(np.uint8)


class Threshold(Digits):
    """MNIST, a pixel on when its mean gray level is above 127: deterministic, with sharp edges."""

    name = "threshold"

    def bits(self) -> Bits:
        sums = pool(sources.mnist(self.data_dir), self.side)
        return (sums > 127 * (28 // self.side) ** 2).astype(np.uint8)


class Seeded(Digits):
    """MNIST, each pixel drawn once with probability gray/255: the same bits on every machine, forever.

    The random words are the raw output of Philox 4x64-10 with key (``binarization_seed``, 0), one 64-bit word
    a pixel, in the order of MNIST's files, training file first. The algorithm is published (J. Salmon et
    al., Parallel random numbers: as easy as 1, 2, 3, SC 2011), and NumPy's policy (NEP 19) guarantees the
    stream of its bit generators. A pixel is on if and only if, in whole numbers,

        ⌊word / 2³²⌋ · 255 k² < (sum of its k×k gray levels) · 2³²

    Args:
        binarization_seed: part of what the data is; not the seed of a run.
        **arguments: see :class:`~chainrule.data.Images`.
    """

    name = "seeded"

    def __init__(self, *, binarization_seed: int = 0, **arguments: str | int) -> None:
        super().__init__(**arguments)  # type: ignore[arg-type]
        self.binarization_seed = whole("data.binarization_seed", binarization_seed, 0)

    def key(self) -> str:
        return f"seeded-side{self.side}-seed{self.binarization_seed}"

    def bits(self) -> Bits:
        sums = pool(sources.mnist(self.data_dir), self.side)
        return draw(sums, 255 * (28 // self.side) ** 2, (self.binarization_seed, 0))


class Dynamic(Seeded):
    """MNIST, the training pixels drawn anew in every epoch; validation and test are those of ``seeded``.

    Pixels of epoch e come from Philox with key (``seed``, e + 1), in the order of MNIST's training file, by
    the rule of :class:`Seeded`; they depend on neither the batch size nor the number of processes. ``train``
    is the binarization of epoch 0. ``sha256["train"]`` is that of what the bits are drawn from: the sums of
    k×k gray levels, row-major, as bytes where k = 1 (the pixels of MNIST's file), else as little-endian
    16-bit words.
    """

    name = "dynamic"

    def splits(self) -> Splits:
        self._sums = pool(sources.mnist(self.data_dir)[:TRAIN], self.side)
        fixed = super().splits()
        return Splits(draw(self._sums, self._full, (self.seed, 1)), fixed.valid, fixed.test)

    def train_dataloader(self) -> Redrawn:
        return Redrawn(self._sums, self._full, self.batch_size, self.seed, **self._processes())

    @property
    def _full(self) -> int:
        return 255 * (28 // self.side) ** 2

    def _sha256(self, splits: Splits) -> dict[str, str]:
        levels = self._sums.astype(np.uint8 if self.side == 28 else "<u2")
        return super()._sha256(splits) | {"train": sha256(levels)}


class Redrawn(Batches):
    """Batches whose pixels are drawn anew at the start of every epoch, in about 0.2 s.

    Args:
        sums: (N, n) gray levels.
        full: the level that is certainly on.
        batch_size: see :class:`~chainrule.data.images.Batches`.
        seed: of the pixels and of the order.
        rank: which process this is.
        world_size: the number of processes.
    """

    def __init__(
        self, sums: Sums, full: int, batch_size: int, seed: int, *, rank: int = 0, world_size: int = 1
    ) -> None:
        super().__init__(torch.from_numpy(sums), batch_size, seed, rank=rank, world_size=world_size)
        self._sums, self._full = sums, full
        self._key = seed

    def _pixels(self) -> torch.Tensor:
        return torch.from_numpy(draw(self._sums, self._full, (self._key, self.epoch + 1)))


def pool(images: NDArray[np.uint8], side: int) -> Sums:
    """Sums of k×k squares: (N, 28, 28) → (N, side²), k = 28 / side."""
    k = 28 // side
    sums = np.zeros((len(images), side, side), np.uint16)
    for row in range(k):
        for column in range(k):
            sums += images[:, row::k, column::k]
    return sums.reshape(len(images), -1)


def draw(sums: Sums, full: int, key: Sequence[int]) -> Bits:
    """Draws each pixel with probability sum/full from the raw words of Philox 4x64-10; see :class:`Seeded`.

    Args:
        sums: (N, n), from 0 (never on) to ``full`` (always on).
        full: 255 k².
        key: the two 64-bit words of Philox's key.

    Returns:
        (N, n) uint8.
    """
    philox = np.random.Philox(key=np.array(key, np.uint64))
    bits = np.empty(sums.shape, np.uint8)
    for chunk, out in ((sums[i : i + CHUNK], bits[i : i + CHUNK]) for i in range(0, len(sums), CHUNK)):
        words = philox.random_raw(chunk.size).reshape(chunk.shape)
        upper = (words >> np.uint64(32)) * np.uint64(full)
        out[:] = upper < chunk.astype(np.uint64) << np.uint64(32)
    return bits
