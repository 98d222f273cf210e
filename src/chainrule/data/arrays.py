"""Your own images, from an ``.npz`` file."""

from __future__ import annotations

import hashlib
import io
import logging
import math
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from chainrule.data.binarization import Gray, draw, threshold
from chainrule.data.cache import Bits
from chainrule.data.datamodule import SEED, Images, Splits, path
from chainrule.files import read_small
from chainrule.validate import choice, number

log = logging.getLogger(__name__)

LIMIT = 1 << 32  # bytes of the file, and of an array in it
HOW = "numpy.savez_compressed('my.npz', train=…, valid=…, test=…) makes such a file"


class Arrays(Images):
    """Binary or gray images of any height and width, (N, height, width) or (N, n), as an ``.npz`` file has them.

    The file has ``train``, ``test`` and perhaps ``valid``. Where that is missing, a sixth of the training images
    becomes the validation images, always the same: those whose raw word of Philox with key (0, 2⁶³) is smallest. Bits
    are numbers or booleans that are 0 or 1. Gray levels are whole numbers from 0 to 255, or floats from 0 to 1, which
    are rounded to 255ths.

    Args:
        file: path of the file.
        binarize: None: the images are bits. Of gray levels, as for MNIST: ``seeded`` draws each pixel once, ``dynamic``
            the training pixels anew in every epoch, ``threshold`` has a pixel on above 127. The words of
            ``binarization_seed`` go to training, validation and test images in this order.
        shape: (height, width) of images that are given as (N, n); None: they are square.
        binarization_seed: part of what the data is; not the seed of a run.
        **arguments: see :class:`~chainrule.data.Images`.

    Raises:
        ValueError: the file cannot be read, or it or an argument is not as described.
    """

    name = "arrays"

    def __init__(
        self,
        *,
        file: str,
        binarize: str | None = None,
        shape: list[int] | None = None,
        binarization_seed: int = 0,
        **arguments: str | int,
    ) -> None:
        super().__init__(**arguments)  # type: ignore[arg-type]
        if shape is not None and [type(length) for length in (shape if isinstance(shape, list) else ())] != [int, int]:
            raise ValueError(f"data.shape must be null or [height,width], got {shape}")
        self.binarize = choice("data.binarize", binarize, (None, "seeded", "dynamic", "threshold"))
        self.binarization_seed = number("data.binarization_seed", binarization_seed, int, 0, SEED)
        given = path("data.file", file)
        content = _content(given)
        self._file = name = given.name
        self.source = {"file": name, "file_sha256": hashlib.sha256(content).hexdigest()}
        arrays = _arrays(content, name)
        shapes = {split: _shape(f"{split} in {name}", array, shape) for split, array in arrays.items()}
        if len(set(shapes.values())) > 1:
            sizes = ", ".join(f"{split} {height}×{width}" for split, (height, width) in shapes.items())
            raise ValueError(f"the images in {name} differ in size: {sizes}. They must all have the same")
        self.shape = shapes["train"]
        self._levels = {split: _levels(f"{split} in {name}", arrays[split], binarize) for split in arrays}
        if binarize and self._levels["train"].max() < 2:
            raise ValueError(f"train in {name} has bits only: leave data.binarize={binarize} out")

    def splits(self) -> Splits:
        levels = self._levels if "valid" in self._levels else _with_valid(self._levels, self._file)
        train, valid, test = (levels[split] for split in ("train", "valid", "test"))
        if self.binarize is None:
            return Splits(train, valid, test)
        gray = Gray(np.concatenate([train, valid, test]), 255)
        bits = threshold(gray) if self.binarize == "threshold" else draw(gray, (self.binarization_seed, 0))
        drawn_from = Gray(train, 255) if self.binarize == "dynamic" else None
        return Splits(bits[: len(train)], bits[len(train) : -len(test)], bits[-len(test) :], drawn_from)


def _content(file: Path) -> bytes:
    try:
        return read_small(file, LIMIT)
    except (OSError, ValueError) as error:
        raise ValueError(f"data.file cannot be read: {error}. {HOW}") from error


def _arrays(content: bytes, name: str) -> dict[str, NDArray[np.generic]]:
    """The arrays of the splits, without executing anything."""
    if not zipfile.is_zipfile(io.BytesIO(content)):
        raise ValueError(f"{name} is no .npz file of images, or is damaged. {HOW}")
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            if missing := [split for split in ("train", "test") if split not in file]:
                raise ValueError(f"it has no {' and no '.join(missing)}, only {', '.join(file) or 'nothing'}")
            splits = [split for split in ("train", "valid", "test") if split in file]
            for split in splits:
                if (size := file.zip.getinfo(f"{split}.npy").file_size) > LIMIT:
                    raise ValueError(f"{split} has {size:,} bytes; at most {LIMIT:,} are read")
            return {split: np.asarray(file[split]) for split in splits}
    except Exception as error:  # a malformed archive may raise anything
        reason = str(error) or type(error).__name__
        raise ValueError(f"{name} is no .npz file of images, or is damaged: {reason}. {HOW}") from error


def _shape(what: str, array: NDArray[np.generic], given: list[int] | None) -> tuple[int, int]:
    """(height, width) of the images in an array."""
    if array.ndim not in (2, 3) or array.size == 0:
        raise ValueError(f"{what} has the shape {array.shape}: it must be (N, height, width) or (N, n), and not empty")
    n = math.prod(array.shape[1:])
    root = math.isqrt(n)
    height, width = array.shape[1:] if array.ndim == 3 else given or (root, root)
    if height * width != n or (given and given != [height, width]):
        raise ValueError(
            f"{what} has images of {'×'.join(map(str, array.shape[1:]))} pixels, which "
            + (f"are not data.shape={given}" if given else "are no square: give data.shape=[height,width]")
        )
    return height, width


def _levels(what: str, array: NDArray[np.generic], binarize: str | None) -> Bits:
    """Bits, or gray levels up to 255: (N, n)."""
    pixels = np.ascontiguousarray(array.reshape(len(array), -1))
    if pixels.dtype.kind not in "buif":
        raise ValueError(f"{what} has values of type {pixels.dtype}: they must be numbers")
    most = 255 if binarize and pixels.dtype.kind != "f" else 1
    good = (pixels == 0) | (pixels == 1) if binarize is None else (pixels >= 0) & (pixels <= most)
    if not good.all():
        allowed = f"from 0 to {most}" if binarize else "0 or 1; gray levels need data.binarize=seeded|dynamic|threshold"
        raise ValueError(f"{what} has the value {pixels[~good][0]!s}: each must be {allowed}")
    return (np.rint(255 * pixels) if binarize and pixels.dtype.kind == "f" else pixels).astype(np.uint8)


def _with_valid(levels: dict[str, Bits], name: str) -> dict[str, Bits]:
    """The splits with a sixth of the training images, chosen once and for all, as the validation images."""
    count = len(levels["train"])
    if count < 2:
        raise ValueError(f"{name} has no valid, and too few images in train to choose some of them")
    words = np.random.Philox(key=np.array([0, 2**63], np.uint64)).random_raw(count)
    chosen = np.zeros(count, bool)
    chosen[np.argsort(words, kind="stable")[: max(1, count // 6)]] = True
    log.info(
        "%s has no valid: %s of its %s training images, always the same, are the validation images",
        name, f"{chosen.sum():,}", f"{count:,}",
    )  # fmt: skip
    return levels | {"train": levels["train"][~chosen], "valid": levels["train"][chosen]}
