"""Fully visible sigmoid belief network: every conditional is a logistic regression."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chainrule.density import AutoregressiveDensity, log_odds
from chainrule.kernels.nade import compiled_walks
from chainrule.nn.causal_linear import CausalLinear
from chainrule.nn.roughness import Laplacian, edges
from chainrule.validate import number


class FVSBN(AutoregressiveDensity):
    r"""Each pixel is a logistic regression on the pixels before it.

    .. math:: \operatorname{logit} p(x_t = 1 \mid x_{<t}) = \alpha_0^{(t)} + \sum_{j<t} \alpha_j^{(t)} x_j

    Neal, *Connectionist learning of belief networks* (1992); Frey, Hinton & Dayan (1996).

    Parameters: n(n+1)/2. The :math:`\alpha_0` start at the training pixels' log-odds, the rest at 0.

    Cost: n²/2 multiply-adds an image. A sample adds one column a step, so it costs as much as one likelihood.

    Args:
        shape: (height, width).
        order: see :func:`chainrule.orders.permutation`.
        smoothness: of a Gaussian prior on how α changes over the image, see :meth:`neighbours`.
        input_dropout: in training, the probability with which each input is off; a kept one counts 1/(1 − it).
            What is to be predicted stays. Everywhere else the model is exact.
        block: steps computed together; changes the speed, not the model.
    """

    growth: ClassVar = "n²"
    small: ClassVar = {"block": 4}

    def __init__(
        self,
        *,
        shape: Sequence[int],
        order: str | Sequence[int] = "raster",
        smoothness: float = 0.0,
        input_dropout: float = 0.0,
        block: int = 112,
    ) -> None:
        super().__init__(shape=shape, order=order)
        self.smoothness = number("model.smoothness", smoothness, low=0, high=1e6)
        self.input_dropout = number("model.input_dropout", input_dropout, low=0, high=0.99)
        self.alpha0 = nn.Parameter(torch.zeros(self.dim))
        self.alpha = CausalLinear(self.dim, 1, block=number("model.block", block, int, 1), scale=0.0)
        self.roughness = self.neighbours() if smoothness else None

    def conditionals(self, z: Tensor) -> Tensor:
        weighted: Tensor = self.alpha(F.dropout(z, self.input_dropout, self.training))
        return self.alpha0 + weighted.squeeze(2)

    def log_prior(self) -> Tensor:
        prior = super().log_prior()
        if self.roughness:
            alpha = torch.cat([w.flatten() for w in self.alpha.parameters()])
            prior = prior - self.smoothness * self.roughness(alpha[:, None])
        return prior

    def neighbours(self) -> Laplacian:
        r"""How much the weight of a pair of pixels changes when the pair moves over the image.

        .. math:: \frac12 \sum_{(t,j)} \sum_{(t',j')} \|t - j\| \, \big(\alpha_j^{(t)} - \alpha_{j'}^{(t')}\big)^2

        where (t', j') is (t, j) moved down or right by one pixel, and ‖t − j‖ a distance in pixels. Strokes look
        alike wherever they are, so what one pixel says of another changes slowly from place to place; the more so the
        further apart they are, since there most of it is noise.
        """
        t, j = (self.order[steps] for steps in self.alpha.pairs())
        weight = torch.full((self.dim, self.dim), -1)  # the number of a pair's weight, if it has one
        weight[t, j] = torch.arange(len(t))
        of = weight.view(*self.shape, *self.shape)
        moved = edges((of[:-1, :, :-1], of[1:, :, 1:]), (of[:, :-1, :, :-1], of[:, 1:, :, 1:]))
        place = torch.cartesian_prod(*map(torch.arange, self.shape)).to(self.dtype)
        return Laplacian(len(t), moved, (place[t] - place[j]).norm(dim=1)[moved[0]])

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
