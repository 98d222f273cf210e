"""Pixel orders: the sequence in which the chain rule visits an image.

An order is a permutation: ``order[t]`` is the (row-major) pixel visited at step t.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

FLIPS: dict[str, tuple[int, ...]] = {"": (), "_lr": (1,), "_ud": (0,), "_180": (0, 1)}
GRID_ORDERS = tuple(base + flip for base in ("raster", "transposed") for flip in FLIPS)
MOST = 1000  # orders of one network
ORDERS = (*GRID_ORDERS, "spiral", "random-SEED")


def permutation(order: str | Sequence[int], shape: tuple[int, int], patch: int = 1) -> Tensor:
    """The permutation named by ``order``, or ``order`` itself, checked.

    Args:
        order: ``raster`` or ``transposed`` (row by row, column by column), each also with ``_lr``,
            ``_ud`` or ``_180``: the same walk over the mirrored or turned image; ``spiral`` (from the
            top left corner clockwise inwards); ``random-SEED`` (``random`` is ``random-0``); or
            the pixels themselves, each once.
        shape: (height, width) of the image.
        patch: above 1, a grid order visits the image patch by patch, each of patch × patch pixels row by row.

    Returns:
        int64 tensor of shape (height · width,).

    Raises:
        ValueError: the name is unknown, the numbers are no permutation, or the image cannot be cut into patches.
    """
    height, width = shape
    n = height * width
    if not isinstance(order, str):
        try:
            pixels = torch.as_tensor(list(order), dtype=torch.int64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"order must be a name or a list of the pixels 0..{n - 1}, got {order!r}") from error
        if sorted(pixels.tolist()) != list(range(n)):
            raise ValueError(f"order must contain each pixel 0..{n - 1} once, got {len(pixels)} numbers that do not")
        return pixels
    grid = torch.arange(n).view(height, width)
    base, _, flip = order.partition("_")
    if base in ("raster", "transposed") and (flip := order.removeprefix(base)) in FLIPS:
        grid = grid.flip(FLIPS[flip])
        return _patches(grid if base == "raster" else grid.T, patch)
    if patch > 1:
        raise ValueError(f"model.order must be one of {', '.join(GRID_ORDERS)} where model.patch > 1, got {order!r}")
    if order == "spiral":
        return _spiral(grid)
    base, _, seed = order.partition("-")
    if base == "random" and (seed.isdecimal() or order == "random"):
        return _random(n, int(seed or 0))
    raise ValueError(f"unknown order {order!r}: choose one of {', '.join(ORDERS)}, such as random-7")


def grid_order(order: Tensor, shape: tuple[int, int], patch: int = 1) -> str | None:
    """The name of a permutation (n,) among :data:`GRID_ORDERS`; None: it is none of them."""
    return next((name for name in GRID_ORDERS if torch.equal(order, permutation(name, shape, patch))), None)


def several(orders: str | int | Sequence[str], shape: tuple[int, int]) -> list[str]:
    """Names of K orders: ``grid`` (the eight grid orders), a number K (``random-0`` to ``random-(K−1)``), or names.

    Raises:
        ValueError: they are anything else, or fewer than two, or the same twice.
    """
    if orders == "grid":
        return list(GRID_ORDERS)
    if isinstance(orders, int) and not isinstance(orders, bool) and 2 <= orders <= MOST:
        return [f"random-{seed}" for seed in range(orders)]
    names = list(orders) if isinstance(orders, list | tuple) else []
    if len(names) < 2 or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise ValueError(
            f"orders must be grid, a number from 2 to {MOST}, or a list of two or more names, each once, got {orders!r}"
        )
    for name in names:
        permutation(name, shape)
    return names


def _patches(grid: Tensor, patch: int) -> Tensor:
    height, width = grid.shape
    if height % patch or width % patch:
        raise ValueError(
            f"images of {height}×{width} pixels cannot be cut into patches of {patch}×{patch}: model.patch=1"
        )
    return grid.reshape(height // patch, patch, width // patch, patch).transpose(1, 2).reshape(-1)


def _spiral(grid: Tensor) -> Tensor:
    rings = []
    while grid.numel():
        rings.append(grid[0])  # walk along the top edge, then turn what is left a quarter anticlockwise
        grid = grid[1:].T.flip(0)
    return torch.cat(rings)


def _random(n: int, seed: int) -> Tensor:
    # Philox's raw stream is a published, fixed algorithm: the same order with every library version.
    keys = np.random.Philox(key=seed).random_raw(n)
    return torch.from_numpy(np.argsort(keys, kind="stable").astype(np.int64))
