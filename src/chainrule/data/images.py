"""What all data have in common: three splits of bits in memory, and batches of them."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from lightning import LightningDataModule
from torch import Tensor

from chainrule.data.cache import Bits

SEEDS = 2**63  # a seed is below this


class Splits(NamedTuple):
    """Bits of the three splits, each (N, n) uint8."""

    train: Bits
    valid: Bits
    test: Bits


class Batches:
    """Batches of images held in memory: each costs one index operation.

    They are a pure function of (seed, epoch). Of every batch each of ``world_size`` processes gets its
    share, consecutive images whose numbers differ by at most one: the batches of a run do not depend on
    how many processes train it.

    Lightning tells the epoch through :attr:`sampler`, and keeps ``state_dict`` in its checkpoints: a run that
    stopped in the middle of an epoch goes on with the next batch.

    Args:
        images: (N, n) bits, pixel-indexed.
        batch_size: images in a batch, over all processes; the last one of an epoch may be shorter.
        seed: of the order; None keeps the order of ``images``.
        rank: which process this is, of 0..world_size−1.
        world_size: the number of processes.

    Raises:
        ValueError: some batch has fewer images than there are processes.
    """

    def __init__(
        self, images: Tensor, batch_size: int, seed: int | None = None, *, rank: int = 0, world_size: int = 1
    ) -> None:
        self.images, self.batch_size, self.seed = images, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = self._done = self._start = 0
        smallest = min(batch_size, len(images) % batch_size or batch_size)
        if smallest < world_size:
            raise ValueError(
                f"{len(images)} images in batches of {batch_size} make one of {smallest}, too few for "
                f"{world_size} processes: choose another data.batch_size or data.eval_batch_size, or fewer "
                "trainer.devices"
            )

    @property
    def sampler(self) -> Batches:
        """Where Lightning looks for ``set_epoch``."""
        return self

    @property
    def batch_sampler(self) -> None:
        """Lightning looks here, too, for what has a sampler."""
        return None

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose batches the next iteration yields."""
        if epoch != self.epoch:
            self.epoch, self._start, self._done = epoch, 0, 0

    def state_dict(self) -> dict[str, int]:
        """The epoch, and how many of its batches have been given out."""
        return {"epoch": self.epoch, "done": self._done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Makes the next iteration go on where the state was taken; a finished epoch starts again."""
        self.epoch = state["epoch"]
        self._done = self._start = state["done"] % len(self)

    def __len__(self) -> int:
        return math.ceil(len(self.images) / self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        # A generator: nothing happens before the first batch is asked for, which is after set_epoch.
        pixels, order = self._pixels().numpy(), self._order().numpy()
        start, self._start = self._start, 0
        for step in range(start, len(self)):
            self._done = step + 1
            index = order[step * self.batch_size : (step + 1) * self.batch_size]
            share = np.array_split(index, self.world_size)[self.rank]
            # NumPy copies the rows in this thread; torch would wake all of its threads for a few kilobytes.
            yield torch.from_numpy(pixels.take(share, 0))

    def _pixels(self) -> Tensor:
        return self.images

    def _order(self) -> Tensor:
        if self.seed is None:
            return torch.arange(len(self.images))
        mixed = np.random.SeedSequence([self.seed, self.epoch]).generate_state(1, np.uint64)
        return torch.randperm(len(self.images), generator=torch.Generator().manual_seed(int(mixed[0])))


class Images(LightningDataModule, ABC):
    """Binary images in three splits, pixel-indexed row by row.

    After ``setup``:

    * ``train``, ``valid``, ``test``: uint8 tensors (N, n) of 0 and 1, n = side²;
    * ``sha256``: for each split the SHA-256, in hexadecimal, of its N·n pixels, row-major, one byte (0 or 1)
      each.

    A subclass supplies :meth:`splits`.

    Args:
        data_dir: where downloaded files are and go to; ``~`` is the home folder.
        cache_dir: where binarized images are kept between runs.
        side: height and width of the images in pixels.
        batch_size: training images in a batch, over all processes.
        eval_batch_size: the same for validation and test.
        seed: of the order of the training images.

    Raises:
        ValueError: an argument is out of its range.
    """

    name: str
    sides: ClassVar[tuple[int, ...]] = (28, 14, 7, 4)

    train: Tensor
    valid: Tensor
    test: Tensor
    sha256: dict[str, str]

    def __init__(
        self,
        *,
        data_dir: str,
        cache_dir: str,
        side: int = 28,
        batch_size: int = 100,
        eval_batch_size: int = 1000,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.data_dir, self.cache_dir = Path(data_dir).expanduser(), Path(cache_dir).expanduser()
        self.side = self._checked_side(side)
        self.shape = (self.side, self.side)
        self.batch_size = whole("data.batch_size", batch_size, 1)
        self.eval_batch_size = whole("data.eval_batch_size", eval_batch_size, 1)
        self.seed = whole("seed", seed, 0)
        self._loaded = False

    @abstractmethod
    def splits(self) -> Splits:
        """The bits of the three splits."""

    def prepare_data(self) -> None:
        """Finds or downloads the files, verifies and caches them.

        Raises:
            OSError: no source has them, or there is no place to put them.
        """
        self._load()

    def setup(self, stage: str | None = None) -> None:
        """Loads the splits into memory; the stage makes no difference."""
        self._load()

    def train_dataloader(self) -> Batches:
        return Batches(self.train, self.batch_size, self.seed, **self._processes())

    def val_dataloader(self) -> Batches:
        return Batches(self.valid, self.eval_batch_size, **self._processes())

    def test_dataloader(self) -> Batches:
        return Batches(self.test, self.eval_batch_size, **self._processes())

    def _load(self) -> None:
        if self._loaded:
            return
        splits = self.splits()
        self.train, self.valid, self.test = map(torch.from_numpy, splits)
        self.sha256 = self._sha256(splits)
        self._loaded = True

    def _sha256(self, splits: Splits) -> dict[str, str]:
        return {split: sha256(bits) for split, bits in splits._asdict().items()}

    def _processes(self) -> dict[str, int]:
        if self.trainer is None:
            return {}
        return {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}

    def _checked_side(self, side: int) -> int:
        if isinstance(side, bool) or side not in self.sides:
            allowed = ", ".join(map(str, self.sides))
            raise ValueError(f"data.side must be one of {allowed} for data={self.name}, got {side!r}")
        return int(side)


def sha256(pixels: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> str:
    """SHA-256 of an array's bytes in row-major order, in hexadecimal."""
    return hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest()


def whole(name: str, value: int, least: int) -> int:
    """Returns an argument that must be a whole number of at least ``least``.

    Raises:
        ValueError: it is anything else.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < SEEDS:
        raise ValueError(f"{name} must be a whole number from {least} to 2^63 − 1, got {value!r}: choose one")
    return value
