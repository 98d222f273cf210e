"""A network of its own per pixel: each conditional has one hidden layer, and nothing is shared."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chainrule.density import AutoregressiveDensity, log_odds
from chainrule.kernels.nade import compiled_walks
from chainrule.nn.causal_linear import CausalLinear
from chainrule.validate import number


class MLP(AutoregressiveDensity):
    r"""Each pixel has its own network with d hidden units.

    .. math:: h_t = \sigma(A_t\, x_{<t} + c_t), \qquad
              \operatorname{logit} p(x_t = 1 \mid x_{<t}) = \alpha^{(t)} \cdot h_t + b_t

    Bengio & Bengio, *Modeling high-dimensional discrete data with multi-layer neural networks*, NIPS 1999
    (there with shared hidden units).

    Parameters: d·n(n−1)/2 + n(2d+1). The biases b start at the training pixels' log-odds.

    Cost: n²d/2 multiply-adds an image, as a few large products; a sample does the same products, one
    pixel's part of them at a time.

    Args:
        shape: (height, width).
        hidden: d, the hidden units of each pixel's network.
        order: see :func:`chainrule.orders.permutation`.
        input_dropout: in training, the probability with which each input is off; a kept one counts 1/(1 − it).
            What is to be predicted stays. Everywhere else the model is exact.
        block: steps computed together; changes the speed, not the model.
        init_scale: standard deviation of the initial weights.
    """

    growth: ClassVar = "n²d"
    small: ClassVar = {"hidden": 5, "block": 4}

    def __init__(
        self,
        *,
        shape: Sequence[int],
        hidden: int = 16,
        order: str | Sequence[int] = "raster",
        input_dropout: float = 0.0,
        block: int = 28,
        init_scale: float = 0.05,
    ) -> None:
        super().__init__(shape=shape, order=order)
        self.input_dropout = number("model.input_dropout", input_dropout, low=0, high=0.99)
        n, d = self.dim, number("model.hidden", hidden, int, 1, 1_000)
        number("model.init_scale", init_scale, low=0, high=1e6)
        self.A = CausalLinear(n, d, block=number("model.block", block, int, 1), scale=init_scale)
        self.c = nn.Parameter(torch.zeros(n, d))
        self.alpha = nn.Parameter(torch.randn(n, d) * init_scale)
        self.b = nn.Parameter(torch.zeros(n))

    def conditionals(self, z: Tensor) -> Tensor:
        h = torch.sigmoid(self.A(F.dropout(z, self.input_dropout, self.training)) + self.c)
        return (self.alpha * h).sum(2) + self.b

    @torch.no_grad()
    def walk(self, batch: int) -> Generator[Tensor, Tensor, None]:
        steps = self.A.walk(batch)
        a = next(steps)
        for t in range(self.dim):
            z_t = yield torch.sigmoid(a + self.c[t]) @ self.alpha[t] + self.b[t]
            a = steps.send(z_t) if t + 1 < self.dim else a

    @torch.no_grad()
    def draw(self, u: Tensor) -> Tensor:
        walks = compiled_walks(u, self.b)
        return walks.hidden(u, self.A, self.c, self.alpha, self.b) if walks else super().draw(u)

    @torch.no_grad()
    def initialize(self, z: Tensor) -> None:
        self.b.copy_(log_odds(z))
