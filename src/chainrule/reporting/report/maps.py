"""Nats per pixel as heat maps on one scale."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from PIL import Image

from chainrule.reporting.report.gather import Picture, as_uri

COLORS = "cividis"  # the same to colour-blind eyes, and readable in gray


@dataclass(frozen=True)
class Map:
    """A heat map with its scale: dark is 0, bright is ``high`` nats."""

    picture: Picture
    total: float  # nats of the whole image
    high: float


def heat_maps(fields: Sequence[np.ndarray]) -> list[Map]:
    """(height, width) nats per pixel → pictures on one scale, so that they can be compared."""
    high = max((float(field.max()) for field in fields), default=0.0)
    return [Map(_colored(field / (high or 1)), float(field.sum()), high) for field in fields]


def color_bar() -> Picture:
    return _colored(np.linspace(0, 1, 128)[None])


def _colored(shares: np.ndarray) -> Picture:
    pixels = (colormaps[COLORS](shares.clip(0, 1))[..., :3] * 255).round().astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return Picture(as_uri(file.getvalue()), pixels.shape[1], pixels.shape[0])
