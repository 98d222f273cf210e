"""Fully visible sigmoid belief network: every conditional is a logistic regression."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import torch
from torch import Tensor, nn

from chainrule.causal import CausalLinear
from chainrule.density import AutoregressiveDensity, log_odds, positive
from chainrule.kernels.nade import compiled_walks


class FVSBN(AutoregressiveDensity):
    r"""Each pixel is a logistic regression on the pixels before it.

    .. math:: \operatorname{logit} p(x_t = 1 \mid x_{<t}) = \alpha_0^{(t)} + \sum_{j<t} \alpha_j^{(t)} x_j

    Neal, *Connectionist learning of belief networks* (1992); Frey, Hinton & Dayan (1996).

    Parameters: n(n+1)/2. The :math:`\alpha_0` start at the training pixels' log-odds, the rest at 0.

    Cost: n²/2 multiply-adds an image. A sample adds one column a step, so it costs as much as one likelihood.

    Args:
        shape: (height, width).
        order: see :func:`chainrule.orders.permutation`.
        block: steps computed together; changes the speed, not the model.
    """

    def __init__(self, *, shape: Sequence[int], order: str | Sequence[int] = "raster", block: int = 112) -> None:
        super().__init__(shape=shape, order=order)
        self.alpha0 = nn.Parameter(torch.zeros(self.dim))
        self.alpha = CausalLinear(self.dim, 1, block=positive("model.block", block), scale=0.0)

    def conditionals(self, z: Tensor) -> Tensor:
        weighted: Tensor = self.alpha(z)
        return self.alpha0 + weighted.squeeze(2)

    @torch.no_grad()
    def walk(self, batch: int) -> Generator[Tensor, Tensor, None]:
        steps = self.alpha.walk(batch)
        a = next(steps)
        for t in range(self.dim):
            z_t = yield self.alpha0[t] + a.squeeze(1)
            a = steps.send(z_t) if t + 1 < self.dim else a

    @torch.no_grad()
    def draw(self, u: Tensor) -> Tensor:
        walks = compiled_walks(u, self.alpha0)
        return walks.linear(u, self.alpha, self.alpha0) if walks else super().draw(u)

    @torch.no_grad()
    def initialize(self, z: Tensor) -> None:
        self.alpha0.copy_(log_odds(z))
