"""Images as PNG files: grids of samples and completions."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torchvision.utils import make_grid, save_image

PAPER = 0.35  # gray of the lines between images


def save_grid(images: Tensor, shape: tuple[int, int], path: Path, columns: int = 8) -> None:
    """Writes (N, n) images with values in [0, 1] as a grid of ``columns`` a row, ones in white."""
    scale = max(1, round(56 / max(shape)))  # small images are enlarged, pixel by pixel
    pixels = images.float().view(-1, 1, *shape).repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    save_image(make_grid(pixels, nrow=columns, padding=4, pad_value=PAPER), path)


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
