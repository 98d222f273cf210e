"""Images in a file: what ``chainrule compress`` and ``chainrule decompress`` do."""

from __future__ import annotations

import gzip
import io
import lzma
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image
from rich import box
from rich.table import Table
from torch import Tensor

from chainrule.density import AutoregressiveDensity
from chainrule.evaluation import coding, scoring
from chainrule.files import content_of, write_whole
from chainrule.runs.directory import load_config, open_run
from chainrule.runs.load import load_autoregressive
from chainrule.runs.settings import check


@dataclass(frozen=True)
class Written:
    """A file, and what others would have needed for its images."""

    path: Path
    count: int
    sizes: dict[str, int]  # bytes, by kind of file; ours first


def compress(cfg: DictConfig) -> Written:
    """Codes images of the run's data, or of a .npy file, into one file, which has been read back before.

    Args:
        cfg: the composed configuration of ``conf/compress.yaml``.

    Raises:
        ValueError: the images are not the model's, or the run is a mixture.
        OSError: something cannot be found, or the file not be written.
    """
    check(cfg)
    density = load_autoregressive(cfg.run)
    images = _read(Path(cfg.images).expanduser(), density) if cfg.images else _split(cfg)
    content, path = coding.compress(density, images), Path(cfg.file).expanduser()
    write_whole(path, content)
    return Written(path, len(images), {path.name: len(content), **rivals(images, density.shape)})


def decompress(cfg: DictConfig) -> tuple[Path, int]:
    """Writes the images of a file as a .npy file, (N, height, width) uint8; returns its path and N.

    Raises:
        ValueError: the file is damaged or of another model.
        OSError: something cannot be found, or the file not be written.
    """
    check(cfg)
    density = load_autoregressive(cfg.run)
    source = Path(cfg.file).expanduser()
    out = Path(cfg.out).expanduser() if cfg.out else source.with_name(f"{source.name}.npy")
    if out.suffix != ".npy":
        raise ValueError(f"out must end in .npy, got {out}")
    images = coding.decompress(density, source.read_bytes(), str(source))
    bits = images.view(-1, *density.shape).numpy()
    write_whole(out, content_of(lambda file: np.save(file, bits, allow_pickle=False)))
    return out, len(images)


def _split(cfg: DictConfig) -> Tensor:
    """All images of a split of the run's own data."""
    data = scoring.load_data(cfg, load_config(open_run(cfg.run)).data)
    splits = {"train": data.train, "valid": data.valid, "test": data.test}
    if cfg.split not in splits:
        raise ValueError(f"split must be train, valid or test, got {cfg.split!r}")
    return splits[cfg.split]


def _read(path: Path, density: AutoregressiveDensity) -> Tensor:
    """Somebody's own images: (N, height, width) or (N, n) of 0 and 1, as a .npy file of any type of number."""
    try:
        array = np.load(path, allow_pickle=False)
        pixels = array.reshape(len(array), -1)
        binary = bool(np.isin(pixels, (0, 1)).all())
    except (ValueError, EOFError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} holds no array of images: save one with numpy.save ({error})") from error
    if not binary or pixels.shape[1] != density.dim:
        height, width = density.shape
        raise ValueError(
            f"{path} must hold images of {height}×{width} pixels, each 0 or 1, got an array {array.shape} of "
            f"{array.dtype}{'' if binary else ' with other values'}"
        )
    return torch.from_numpy(pixels.astype(np.uint8))


# ---- what others need ---------------------------------------------------------------------------------


def rivals(images: Tensor, shape: tuple[int, int]) -> dict[str, int]:
    """Bytes that the same images, (N, n) uint8 of 0 and 1, take otherwise.

    gzip and xz get them packed, eight pixels a byte, and once more one pixel a byte: the smaller file counts.
    """
    pixels = images.numpy().reshape(-1, *shape)
    layouts = np.packbits(pixels).tobytes(), pixels.tobytes()
    return {
        "xz -9": min(len(lzma.compress(layout, preset=9)) for layout in layouts),
        "gzip -9": min(len(gzip.compress(layout, 9)) for layout in layouts),
        "PNG, all images in one": _png(_mosaic(pixels)),
        "PNG, a file for each": sum(map(_png, pixels)),
        "raw bits": len(layouts[0]),
    }


def _mosaic(pixels: np.ndarray) -> np.ndarray:
    """Images (N, height, width), side by side in a square of them."""
    count, height, width = pixels.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    full = np.zeros((rows * columns, height, width), np.uint8)
    full[:count] = pixels
    mosaic: np.ndarray = full.reshape(rows, columns, height, width).swapaxes(1, 2).reshape(rows * height, -1)
    return mosaic


def _png(bits: np.ndarray) -> int:
    """The size of a picture as a PNG of one bit a pixel."""
    file = io.BytesIO()
    Image.fromarray(bits.astype(bool)).save(file, "PNG", optimize=True)
    return file.tell()


def table(written: Written) -> Table:
    """The sizes, ours first."""
    sheet = Table(box=box.HORIZONTALS, title=f"{written.count:,} images in {written.path}", title_justify="left")
    for header in ("", "bytes", "bits an image", "times ours"):
        sheet.add_column(header, justify="right" if header else "left")
    ours = written.sizes[written.path.name]
    for name, size in written.sizes.items():
        sheet.add_row(name, f"{size:,}", f"{8 * size / written.count:.1f}", f"{size / ours:.2f}")
    return sheet
