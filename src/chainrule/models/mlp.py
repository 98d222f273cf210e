"""A network of its own per pixel: each conditional has one hidden layer, and nothing is shared."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chainrule.density import AutoregressiveDensity, log_odds, positive


class MLP(AutoregressiveDensity):
    r"""Each pixel has its own network with d hidden units.

    .. math:: h_t = \sigma(A_t\, x_{<t} + c_t), \qquad
              \operatorname{logit} p(x_t = 1 \mid x_{<t}) = \alpha^{(t)} \cdot h_t + b_t

    Bengio & Bengio, *Modeling high-dimensional discrete data with multi-layer neural networks*, NIPS 1999
    (there with shared hidden units).

    Parameters: d·n(n−1)/2 + n(2d+1). The steps are cut into blocks. Seen by a block, the pixels before it
    are one dense matrix (``past``) and the pixels inside it a triangle (``within``), of which only the real
    entries are stored. The biases b start at the training pixels' log-odds.

    Cost: n²d/2 multiply-adds an image in n / ``block`` matrix products, but for the triangles that are computed as
    squares. A sample does the same products, a block's past once when the block begins.

    Args:
        shape: (height, width).
        hidden: d, the hidden units of each pixel's network.
        order: see :func:`chainrule.orders.permutation`.
        block: steps per block; changes the speed, not the model.
        init_scale: standard deviation of the initial weights.
    """

    def __init__(
        self,
        *,
        shape: Sequence[int],
        hidden: int = 16,
        order: str | Sequence[int] = "raster",
        block: int = 28,
        init_scale: float = 0.05,
    ) -> None:
        super().__init__(shape=shape, order=order)
        n, d = self.dim, positive("model.hidden", hidden)
        block = positive("model.block", block)
        self.blocks = [(start, min(start + block, n)) for start in range(0, n, block)]
        # past[k]: (m, d, start), A_t's columns before the block for its m steps t
        self.past = nn.ParameterList(torch.randn(e - s, d, s) * init_scale for s, e in self.blocks[1:])
        # within[k]: (m(m−1)/2, d), A_t's columns inside the block, one step's after the other's
        self.within = nn.ParameterList(
            torch.randn((e - s) * (e - s - 1) // 2, d) * init_scale for s, e in self.blocks if e - s > 1
        )
        self.c = nn.Parameter(torch.zeros(n, d))
        self.alpha = nn.Parameter(torch.randn(n, d) * init_scale)
        self.b = nn.Parameter(torch.zeros(n))

    def _within(self, k: int) -> Tensor:
        """The triangle of block k as the square it is computed with: (m, d, m), 0 from the diagonal on."""
        start, stop = self.blocks[k]
        m, d = stop - start, self.c.shape[1]
        square = self.c.new_zeros(m * m, d)
        if m > 1:
            rows, columns = torch.tril_indices(m, m, -1, device=square.device)
            square = square.index_copy(0, rows * m + columns, self.within[k].to(square))
        return square.view(m, m, d).transpose(1, 2)

    def _before(self, k: int, z: Tensor) -> Tensor:
        """What the pixels before block k add to its activations: (B, n) → (B, m, d)."""
        (start, stop), d = self.blocks[k], self.c.shape[1]
        if k == 0:
            return self.c[:stop].expand(len(z), -1, -1)
        return F.linear(z[:, :start], self.past[k - 1].flatten(0, 1)).view(-1, stop - start, d) + self.c[start:stop]

    def conditionals(self, z: Tensor) -> Tensor:
        logits = []
        for k, (start, stop) in enumerate(self.blocks):
            inside = F.linear(z[:, start:stop], self._within(k).flatten(0, 1))
            h = torch.sigmoid(self._before(k, z) + inside.view(len(z), stop - start, -1))
            logits.append((h * self.alpha[start:stop]).sum(2))
        return torch.cat(logits, 1) + self.b

    @torch.no_grad()
    def walk(self, batch: int) -> Generator[Tensor, Tensor, None]:
        z = self.b.new_zeros(batch, self.dim)
        for k, (start, stop) in enumerate(self.blocks):
            a, within = self._before(k, z).clone(), self._within(k)
            for i, t in enumerate(range(start, stop)):
                z[:, t] = yield torch.sigmoid(a[:, i]) @ self.alpha[t] + self.b[t]
                a[:, i + 1 :] += z[:, t, None, None] * within[i + 1 :, :, i]

    @torch.no_grad()
    def initialize(self, z: Tensor) -> None:
        self.b.copy_(log_odds(z))
