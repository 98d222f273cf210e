"""What all data have in common: three splits of bits in memory, and batches of them."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningDataModule
from torch import Tensor

from chainrule.data.binarization import Gray, draw
from chainrule.data.cache import Bits
from chainrule.validate import number

SEED = 2**63 - 1  # the largest


@dataclass(frozen=True)
class Splits:
    """Bits of the three splits, each (N, n) uint8."""

    train: Bits
    valid: Bits
    test: Bits
    gray: Gray | None = None  # what the training bits are drawn from, anew in every epoch; None: they stay

    @cached_property
    def sha256(self) -> dict[str, str]:
        """Of each split's bits, one byte (0 or 1) each, row-major.

        Of training images that are drawn anew it is that of the gray levels: as bytes where they fit, else as
        little-endian 16-bit words.
        """
        train: np.ndarray[tuple[int, ...], np.dtype[np.generic]] = self.train
        if self.gray:
            train = self.gray.levels.astype(np.uint8 if self.gray.full == 255 else "<u2")
        return {
            split: hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest()
            for split, pixels in (("train", train), ("valid", self.valid), ("test", self.test))
        }


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
        gray: what the images are drawn from anew in every epoch; None: they stay.
        rank: which process this is, of 0..world_size−1.
        world_size: the number of processes.

    Raises:
        ValueError: some batch has fewer images than there are processes.
    """

    def __init__(
        self,
        images: Tensor,
        batch_size: int,
        seed: int | None = None,
        *,
        gray: Gray | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.images, self.batch_size, self.seed, self.gray = images, batch_size, seed, gray
        self.rank, self.world_size = rank, world_size
        self.epoch = self._done = self._start = 0
        smallest = min(batch_size, len(images) % batch_size or batch_size)
        if smallest < world_size:
            raise ValueError(
                f"{len(images)} images in batches of {batch_size} make one of {smallest}, too few for "
                f"{world_size} processes: choose another data.batch_size or data.eval_batch_size, or fewer "
                "trainer.devices"
            )

    batch_sampler = None  # Lightning asks for it

    @property
    def sampler(self) -> Batches:
        """Where Lightning looks for ``set_epoch``."""
        return self

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
        pixels = redrawn(self.gray, self.seed, self.epoch) if self.gray else self.images.numpy()
        order = self._order().numpy()
        start, self._start = self._start, 0
        for step in range(start, len(self)):
            self._done = step + 1
            index = order[step * self.batch_size : (step + 1) * self.batch_size]
            share = np.array_split(index, self.world_size)[self.rank]
            # NumPy copies the rows in this thread; torch would wake all of its threads for a few kilobytes.
            yield torch.from_numpy(pixels.take(share, 0))

    def _order(self) -> Tensor:
        if self.seed is None:
            return torch.arange(len(self.images))
        mixed = np.random.SeedSequence([self.seed, self.epoch]).generate_state(1, np.uint64)
        return torch.randperm(len(self.images), generator=torch.Generator().manual_seed(int(mixed[0])))


class Images(LightningDataModule, ABC):
    """Binary images in three splits, pixel-indexed row by row.

    ``shape`` is (height, width), known from the start. After ``setup``:

    * ``train``, ``valid``, ``test``: uint8 tensors (N, n) of 0 and 1, n = height · width;
    * ``sha256``: see :attr:`Splits.sha256`.

    Training pixels that are drawn anew come, in epoch e, from Philox with key (``seed``, e + 1), by the rule of
    :func:`~chainrule.data.binarization.draw`: they depend on neither the batch size nor the number of processes.
    ``train`` is then the binarization of epoch 0.

    A subclass sets ``shape`` and supplies :meth:`splits`.

    Args:
        data_dir: where downloaded files are and go to; ``~`` is the home folder.
        cache_dir: where binarized images are kept between runs.
        batch_size: training images in a batch, over all processes.
        eval_batch_size: the same for validation and test.
        seed: of the order of the training images, and of pixels that are drawn anew.

    Raises:
        ValueError: an argument is out of its range.
    """

    name: str
    source: dict[str, str] | None = None  # of your own images: the name of the ``file``, and ``file_sha256``
    shape: tuple[int, int]
    train: Tensor
    valid: Tensor
    test: Tensor
    sha256: dict[str, str]

    def __init__(
        self,
        *,
        data_dir: str = "",
        cache_dir: str = "",
        batch_size: int = 100,
        eval_batch_size: int = 1000,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.data_dir, self.cache_dir = path("paths.data_dir", data_dir), path("paths.cache_dir", cache_dir)
        self.batch_size = number("data.batch_size", batch_size, int, 1)
        self.eval_batch_size = number("data.eval_batch_size", eval_batch_size, int, 1)
        self.seed = number("seed", seed, int, 0, SEED)
        self._splits: Splits | None = None

    @property
    def about(self) -> dict[str, Any]:
        """What a record says of the images; ``side`` is None where they are not square."""
        height, width = self.shape
        side = height if height == width else None
        about = {"name": self.name, "side": side, "shape": self.shape, "n": height * width, "sha256": self.sha256}
        return about | (self.source or {})

    @abstractmethod
    def splits(self) -> Splits:
        """The bits of the three splits."""

    def prepare_data(self) -> None:
        """Finds or downloads the files, verifies and caches them.

        Raises:
            OSError: no source has them.
            ValueError: they are not what they should be.
        """
        self.setup()

    def setup(self, stage: str | None = None) -> None:
        """Loads the splits into memory; the stage makes no difference."""
        if self._splits is None:
            self._splits = splits = self.splits()
            train = redrawn(splits.gray, self.seed, 0) if splits.gray else splits.train
            self.train, self.valid, self.test = map(torch.from_numpy, (train, splits.valid, splits.test))
            self.sha256 = splits.sha256

    def train_dataloader(self) -> Batches:
        return self._batches(self.train, self.batch_size, self.seed, self._splits.gray if self._splits else None)

    def val_dataloader(self) -> Batches:
        return self._batches(self.valid, self.eval_batch_size)

    def test_dataloader(self) -> Batches:
        return self._batches(self.test, self.eval_batch_size)

    def _batches(self, images: Tensor, size: int, seed: int | None = None, gray: Gray | None = None) -> Batches:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return Batches(images, size, seed, gray=gray, rank=rank, world_size=world_size)


def redrawn(gray: Gray, seed: int | None, epoch: int) -> Bits:
    """The training pixels of an epoch, in about 0.2 s for MNIST."""
    return draw(gray, (seed or 0, epoch + 1))


def path(name: str, value: str) -> Path:
    """Returns an argument that must be a path; ``~`` is the home folder.

    Raises:
        ValueError: it is none, or there is no home folder.
    """
    try:
        return Path(value).expanduser()
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"{name} must be a path, got {value!r} ({error})") from error
