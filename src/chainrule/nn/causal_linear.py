"""A linear layer that obeys the chain rule, without a masked weight."""

from __future__ import annotations

from collections.abc import Generator

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CausalLinear(nn.Module):
    """(B, n) → (B, n, d): the d outputs of step t are linear in ``z[:, :t]``, with weights of their own.

    Of the n·d × n matrix only the d·n(n−1)/2 entries below the (block) diagonal exist. The steps are cut into
    blocks: seen by a block, the pixels before it are one dense matrix (``past``) and the pixels inside it a
    triangle (``within``), stored packed and multiplied as a square. So nearly half of the dense product is
    saved, and what remains runs at the speed of dense products.

    Args:
        n: steps.
        d: outputs of each step.
        block: steps taken together; changes the speed, not the function.
        scale: standard deviation of the initial weights.
    """

    place: Tensor

    def __init__(self, n: int, d: int, *, block: int, scale: float) -> None:
        super().__init__()
        self.d = d
        self.blocks = [(start, min(start + block, n)) for start in range(0, n, block)]
        sizes = [stop - start for start, stop in self.blocks]
        # past[k − 1], (m, d, start): the weights of the m steps of block k on what came before the block
        self.past = nn.ParameterList(
            torch.randn(m, d, start) * scale for m, (start, _) in zip(sizes[1:], self.blocks[1:], strict=True)
        )
        # within, (Σ m(m−1)/2, d): the weights inside the blocks, block by block, those of its second step first
        self.triangles = [m * (m - 1) // 2 for m in sizes]
        self.within = nn.Parameter(torch.randn(sum(self.triangles), d) * scale)
        self.squares = [m * m for m in sizes]
        places = [torch.tril_indices(m, m, -1) for m in sizes]
        rows = [i * m + j + sum(self.squares[:k]) for k, (m, (i, j)) in enumerate(zip(sizes, places, strict=True))]
        self.register_buffer("place", torch.cat(rows), persistent=False)  # of each in all blocks' squares

    def forward(self, z: Tensor) -> Tensor:
        return torch.cat([self._block(k, z, square) for k, square in enumerate(self._squares())], 1)

    def walk(self, batch: int) -> Generator[Tensor, Tensor, None]:
        """Yields the (B, d) outputs of step t and receives the (B,) bits of step t; nothing is computed twice."""
        n = self.blocks[-1][1]
        z = next(self.parameters()).new_zeros(batch, n)
        for k, (square, (start, stop)) in enumerate(zip(self._squares(), self.blocks, strict=True)):
            a = self.before(k, z)
            for i, t in enumerate(range(start, stop)):
                z[:, t] = yield a[:, i]
                a[:, i + 1 :] += z[:, t, None, None] * square[i + 1 :, :, i]

    def pairs(self) -> tuple[Tensor, Tensor]:
        """The step t and the earlier step j that each weight connects; for d = 1, in the order of ``parameters()``."""
        past = [torch.cartesian_prod(torch.arange(a, b), torch.arange(a)).T for a, b in self.blocks[1:]]
        within = [torch.tril_indices(b - a, b - a, -1) + a for a, b in self.blocks]
        t, j = torch.cat([*within, *past], 1)
        return t, j

    def triangle(self, k: int) -> Tensor:
        """The weights inside block k: (m(m−1)/2, d), what its step s adds to its step r in row r(r−1)/2 + s."""
        triangle: Tensor = self.within.split(self.triangles)[k]
        return triangle

    def _block(self, k: int, z: Tensor, square: Tensor) -> Tensor:
        start, stop = self.blocks[k]
        inside = F.linear(z[:, start:stop], square.flatten(0, 1)).view(len(z), stop - start, self.d)
        return inside + self.before(k, z) if k else inside

    def before(self, k: int, z: Tensor) -> Tensor:
        """What the pixels before block k add to its outputs: (B, n) → (B, m, d)."""
        start, stop = self.blocks[k]
        if not k:
            return z.new_zeros(len(z), stop, self.d)
        return F.linear(z[:, :start], self.past[k - 1].flatten(0, 1)).view(len(z), stop - start, self.d)

    def _squares(self) -> list[Tensor]:
        """The triangle of each block as the square it is multiplied as: (m, d, m), 0 from the diagonal on."""
        packed = self.within.new_zeros(sum(self.squares), self.d).index_copy(0, self.place, self.within)
        squares = zip(packed.split(self.squares), self.blocks, strict=True)
        return [square.view(b - a, b - a, self.d).transpose(1, 2) for square, (a, b) in squares]
