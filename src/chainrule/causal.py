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

    def __init__(self, n: int, d: int, *, block: int, scale: float) -> None:
        super().__init__()
        self.d = d
        self.blocks = [(start, min(start + block, n)) for start in range(0, n, block)]
        sizes = [stop - start for start, stop in self.blocks]
        # past[k − 1], (m, d, start): the weights of the m steps of block k on what came before the block
        self.past = nn.ParameterList(
            torch.randn(m, d, start) * scale for m, (start, _) in zip(sizes[1:], self.blocks[1:], strict=True)
        )
        # within[k], (m(m−1)/2, d): the weights inside the block, those of its second step first
        self.within = nn.ParameterList(torch.randn(m * (m - 1) // 2, d) * scale for m in sizes if m > 1)

    def forward(self, z: Tensor) -> Tensor:
        return torch.cat([self._block(k, z) for k in range(len(self.blocks))], 1)

    def walk(self, batch: int) -> Generator[Tensor, Tensor, None]:
        """Yields the (B, d) outputs of step t and receives the (B,) bits of step t; nothing is computed twice."""
        n = self.blocks[-1][1]
        z = next(self.parameters()).new_zeros(batch, n)
        for k, (start, stop) in enumerate(self.blocks):
            a, square = self.before(k, z), self._square(k)
            for i, t in enumerate(range(start, stop)):
                z[:, t] = yield a[:, i]
                a[:, i + 1 :] += z[:, t, None, None] * square[i + 1 :, :, i]

    def pairs(self) -> tuple[Tensor, Tensor]:
        """The step t and the earlier step j that each weight connects; for d = 1, in the order of ``parameters()``."""
        past = [torch.cartesian_prod(torch.arange(a, b), torch.arange(a)).T for a, b in self.blocks[1:]]
        within = [torch.tril_indices(b - a, b - a, -1) + a for a, b in self.blocks]
        t, j = torch.cat([*past, *within], 1)
        return t, j

    def _block(self, k: int, z: Tensor) -> Tensor:
        start, stop = self.blocks[k]
        inside = F.linear(z[:, start:stop], self._square(k).flatten(0, 1)).view(len(z), stop - start, self.d)
        return inside + self.before(k, z) if k else inside

    def before(self, k: int, z: Tensor) -> Tensor:
        """What the pixels before block k add to its outputs: (B, n) → (B, m, d)."""
        start, stop = self.blocks[k]
        if not k:
            return z.new_zeros(len(z), stop, self.d)
        return F.linear(z[:, :start], self.past[k - 1].flatten(0, 1)).view(len(z), stop - start, self.d)

    def _square(self, k: int) -> Tensor:
        """The triangle of block k as the square it is multiplied as: (m, d, m), 0 from the diagonal on."""
        m = self.blocks[k][1] - self.blocks[k][0]
        square = next(self.parameters()).new_zeros(m * m, self.d)
        if m > 1:
            rows, columns = torch.tril_indices(m, m, -1, device=square.device)
            square = square.index_copy(0, rows * m + columns, self.within[k])
        return square.view(m, m, self.d).transpose(1, 2)
