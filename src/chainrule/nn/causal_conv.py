"""Causal convolutions over a grid, by padding and cropping: nothing is masked, nothing is computed in vain.

Features are (B, rows, columns, channels). On a CPU that layout is the fastest, and in it a 1×1 convolution is a
``Linear``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Conv(nn.Module):
    """A convolution whose window ends, but for its columns to the right, where the output stands.

    Args:
        inputs, outputs: channels.
        window: (rows, columns).
        strict: the window ends one row or position earlier: what the first layer must do.
    """

    padding: tuple[int, ...]  # as in ``F.pad``: of channels, columns, rows; below 0 it crops

    def __init__(self, inputs: int, outputs: int, window: Sequence[int], *, strict: bool = False) -> None:
        super().__init__()
        self.rows, self.columns = window
        limit = (inputs * self.rows * self.columns) ** -0.5
        self.weight = nn.Parameter(torch.empty(outputs, inputs, *window).uniform_(-limit, limit))

    def forward(self, x: Tensor) -> Tensor:
        """(B, R, C, inputs) → (B, R, C, outputs)."""
        return self.slide(F.pad(x, self.padding))

    def slide(self, x: Tensor) -> Tensor:
        """The window at every place where it fits."""
        weight = self.weight.contiguous(memory_format=torch.channels_last)
        return F.conv2d(x.permute(0, 3, 1, 2), weight).permute(0, 2, 3, 1)


class RowsAbove(_Conv):
    """Looks at whole rows, to both sides: the last ones down to the own row (``strict``: the row above)."""

    def __init__(self, inputs: int, outputs: int, window: Sequence[int], *, strict: bool = False) -> None:
        super().__init__(inputs, outputs, window, strict=strict)
        side = self.columns // 2
        self.padding = (0, 0, side, side, self.rows - 1 + strict, -int(strict))

    def row(self, x: Tensor, y: int) -> Tensor:
        """Row y of the output, (B, C, outputs), of which it needs the rows of x (B, R, C, inputs) up to y only."""
        _, _, *sides, above, below = self.padding
        window = x[:, max(0, y - above) : y + 1 + below]
        return self.slide(F.pad(window, (0, 0, *sides, self.rows - window.shape[1], 0)))[:, 0]


class RowSoFar(_Conv):
    """Looks at the own row only: the last ``width`` positions up to the own one (``strict``: the one before)."""

    def __init__(self, inputs: int, outputs: int, width: int, *, strict: bool = False) -> None:
        super().__init__(inputs, outputs, (1, width), strict=strict)
        self.padding = (0, 0, self.columns - 1 + strict, -int(strict))

    def at(self, x: Tensor, column: int) -> Tensor:
        """One position of the output, (B, outputs), of which it needs x (B, C, inputs) up to ``column`` only."""
        *_, before, after = self.padding
        window = x[:, max(0, column - before) : column + 1 + after]
        if not window.shape[1]:
            return x.new_zeros(len(x), len(self.weight))
        return window.flatten(1) @ self.weight[:, :, 0, -window.shape[1] :].permute(2, 1, 0).flatten(0, 1)
