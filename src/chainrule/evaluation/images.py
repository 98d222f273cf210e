"""Images for people: grids of samples and completions, heat maps of nats."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from chainrule.files import content_of, write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAPER, GAP = 0.35, 4  # gray and width of the lines between images
COLORS = "magma"  # dark is little; even steps look even, in gray and to colour-blind eyes, too
INK, FAINT = "#1f2430", "#8a90a0"


def grid(images: Tensor, shape: tuple[int, int], columns: int = 8) -> Tensor:
    """(N, n) images with values in [0, 1] → (1, H, W): ``columns`` a row, ones in white."""
    tiles = F.pad(_enlarged(images.float().view(-1, *shape), 56), (GAP, 0, GAP, 0), value=PAPER)
    columns = min(columns, len(tiles))
    tiles = F.pad(tiles, (0, 0, 0, 0, 0, -len(tiles) % columns), value=PAPER)
    rows = tiles.unflatten(0, (-1, columns)).transpose(1, 2)  # (rows, height, columns, width)
    return F.pad(rows.flatten(2).flatten(0, 1)[None], (0, GAP, 0, GAP), value=PAPER)


def save_grid(images: Tensor, shape: tuple[int, int], path: Path, columns: int = 8) -> None:
    """Writes :func:`grid` as a PNG file."""
    picture = Image.fromarray(as_bytes(grid(images, shape, columns))[..., 0])
    write_whole(path, content_of(lambda file: picture.save(file, format="PNG")))


def save_completions(images: Tensor, observed: Tensor, draws: Tensor, shape: tuple[int, int], path: Path) -> None:
    """Writes a row per image: the original, what the model was shown, and its completions.

    Args:
        images: (B, n) bits.
        observed: (n,) bool; unobserved pixels are shown in gray.
        draws: (B, K, n) bits.
        shape: (height, width).
        path: the PNG file to write.
    """
    masked = torch.where(observed, images.float(), torch.tensor(PAPER))
    rows = torch.cat([images.float().unsqueeze(1), masked.unsqueeze(1), draws.float()], 1)
    save_grid(rows.flatten(0, 1), shape, path, columns=rows.shape[1])


def as_bytes(picture: Tensor) -> np.ndarray:
    """(C, H, W) with values in [0, 1] → (H, W, C) uint8, which no viewer takes for anything else."""
    pixels: np.ndarray = (picture.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return pixels


def gray(image: Tensor, shape: tuple[int, int]) -> np.ndarray:
    """One image, (n,) with values in [0, 1], as (H, W, 1) uint8, enlarged."""
    return as_bytes(_enlarged(image.float().view(1, *shape), 112))


def colored(nats: Tensor, shape: tuple[int, int], high: float) -> np.ndarray:
    """One heat map, (n,) from 0 (dark) to ``high`` (bright) nats, as (H, W, 3) uint8, enlarged."""
    from matplotlib import colormaps  # noqa: PLC0415 (a third of a second)

    shares = (nats / high if high else nats).clamp(0, 1).view(*shape).numpy()
    return as_bytes(_enlarged(torch.from_numpy(colormaps[COLORS](shares)[..., :3]).permute(2, 0, 1), 112))


def heat_map(nats: Tensor, shape: tuple[int, int], title: str) -> np.ndarray:
    """(n,) nats of each pixel, with a scale, as (H, W, 3) uint8."""
    figure = _figure(4.6, 4.1)
    axes = figure.subplots()
    _show(axes, nats.view(*shape), title, unit="nats")
    return _drawn(figure)


def conditionals(image: Tensor, chances: Tensor, nats: Tensor, shape: tuple[int, int], title: str) -> np.ndarray:
    """An image beside how likely each pixel was, given those before it, and what it cost; (H, W, 3) uint8.

    Args:
        image: (n,) bits.
        chances: (n,) probabilities that a pixel is on, given the pixels before it.
        nats: (n,) −log of the probability of the pixel as it is.
        shape: (height, width).
        title: a line above.
    """
    figure = _figure(11.4, 4.1)
    left, middle, right = figure.subplots(1, 3)
    _show(left, image.view(*shape), "x")
    _show(middle, chances.view(*shape), "p(pixel on | pixels before it)", unit="p")
    _show(right, nats.view(*shape), "−log p(pixel as it is | pixels before it)", unit="nats")
    figure.suptitle(title, color=INK, fontsize=13, x=0.012, ha="left")
    return _drawn(figure)


def _enlarged(pixels: Tensor, side: int) -> Tensor:
    """(…, height, width) with every pixel as a square, about ``side`` high or wide."""
    scale = max(1, round(side / max(pixels.shape[-2:])))
    return pixels.repeat_interleave(scale, -2).repeat_interleave(scale, -1)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure  # noqa: PLC0415

    return Figure((width, height), dpi=110, layout="constrained", facecolor="white")


def _show(axes: Axes, values: Tensor, title: str, unit: str = "") -> None:
    """Draws (height, width) values: nats in color from 0 to the largest, bits and probabilities in gray."""
    colors, high = (COLORS, float(values.max())) if unit == "nats" else ("gray", 1.0)
    picture = axes.imshow(values.numpy(), cmap=colors, vmin=0, vmax=high, interpolation="nearest")
    axes.set_title(title, color=INK, fontsize=11, loc="left")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color(FAINT)
    if unit:
        bar = axes.figure.colorbar(picture, ax=axes, shrink=0.92, pad=0.03, aspect=24)
        bar.ax.set_title(unit, color=FAINT, fontsize=9, loc="left")
        bar.ax.tick_params(color=FAINT, labelcolor=INK, labelsize=9, length=2)
        bar.outline.set_visible(False)


def _drawn(figure: Figure) -> np.ndarray:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return np.asarray(Image.open(file).convert("RGB"))
