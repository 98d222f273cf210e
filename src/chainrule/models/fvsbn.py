"""Fully visible sigmoid belief network: every conditional is a logistic regression."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chainrule.causal import CausalLinear
from chainrule.density import AutoregressiveDensity, at_least_0, gaussian, log_odds, positive, quadratic
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
        l2: precision of a Gaussian prior on the α but α₀; 0 is plain maximum likelihood.
        smoothness: of a Gaussian prior on how α changes over the image, see :class:`Smoothness`.
        input_dropout: in training, the probability with which each input is off; a kept one counts 1/(1 − it).
            What is to be predicted stays. Everywhere else the model is exact.
        block: steps computed together; changes the speed, not the model.
    """

    def __init__(
        self,
        *,
        shape: Sequence[int],
        order: str | Sequence[int] = "raster",
        l2: float = 0.0,
        smoothness: float = 0.0,
        input_dropout: float = 0.0,
        block: int = 112,
    ) -> None:
        super().__init__(shape=shape, order=order)
        self.l2 = at_least_0("model.l2", l2)
        self.input_dropout = at_least_0("model.input_dropout", input_dropout, below=1)
        self.alpha0 = nn.Parameter(torch.zeros(self.dim))
        self.alpha = CausalLinear(self.dim, 1, block=positive("model.block", block), scale=0.0)
        self.smoothness = Smoothness(self, self.alpha.pairs(), smoothness)

    def conditionals(self, z: Tensor) -> Tensor:
        weighted: Tensor = self.alpha(F.dropout(z, self.input_dropout, self.training))
        return self.alpha0 + weighted.squeeze(2)

    def log_prior(self) -> Tensor:
        prior = gaussian(self.alpha.parameters(), self.l2) if self.l2 else super().log_prior()
        return prior + self.smoothness(self.alpha.parameters()) if self.smoothness.precision else prior

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


class Smoothness(nn.Module):
    r"""A Gaussian prior on how the weight of a pair of pixels changes when the pair moves over the image.

    .. math:: \log p(\alpha) = -\frac\lambda2 \sum_{(t,j)} \sum_{(t',j')}
              \|t - j\| \, \big(\alpha_j^{(t)} - \alpha_{j'}^{(t')}\big)^2

    up to a constant, where (t', j') is (t, j) moved down or right by one pixel, and ‖t − j‖ a distance in pixels.
    Strokes look alike wherever they are, so what one pixel says of another changes slowly from place to place; the
    more so the further apart they are, since there most of it is noise.

    Args:
        density: whose shape and order the weights have.
        pairs: the steps t and j that each weight connects, see :meth:`CausalLinear.pairs`.
        precision: λ; at 0 there is no such prior.
    """

    place: Tensor  # where each weight stands in an (n, n) of all pairs of pixels
    down: Tensor  # (h − 1, w, h − 1, w): the distance of t and j; 0 where one of the two weights does not exist
    right: Tensor  # (h, w − 1, h, w − 1)

    def __init__(self, density: AutoregressiveDensity, pairs: tuple[Tensor, Tensor], precision: float) -> None:
        super().__init__()
        self.precision = at_least_0("model.smoothness", precision)
        self.shape = density.shape
        if precision:
            rank = density.order.argsort()
            places = torch.cartesian_prod(*map(torch.arange, self.shape)).to(torch.get_default_dtype())
            distance = torch.cdist(places, places) * (rank[:, None] > rank)
            for name, (a, b) in zip(("down", "right"), self._moved(distance), strict=True):
                self.register_buffer(name, torch.minimum(a, b), persistent=False)
            t, j = pairs
            self.register_buffer("place", density.order[t] * density.dim + density.order[j], persistent=False)

    def forward(self, weights: Iterable[Tensor]) -> Tensor:
        """Log density in nats, a scalar, of all weights but α₀."""
        alpha = torch.cat([w.flatten() for w in weights])
        return -self.precision * quadratic(alpha, self._laplacian(alpha.detach()))

    def _laplacian(self, alpha: Tensor) -> Tensor:
        """L·α: for each weight the sum, over its neighbours, of distance · (it − the neighbour)."""
        by_pixel = alpha.new_zeros(math.prod(self.shape) ** 2).index_copy(0, self.place, alpha)
        sums = torch.zeros_like(by_pixel)
        moved = zip(self._moved(by_pixel), self._moved(sums), (self.down, self.right), strict=True)
        for (a, b), (sum_a, sum_b), far in moved:
            difference = (a - b).mul_(far)
            sum_a.add_(difference)
            sum_b.sub_(difference)
        return sums[self.place]

    def _moved(self, pairs: Tensor) -> list[tuple[Tensor, Tensor]]:
        """What belongs to pairs of pixels (n, n), beside what belongs to the pairs one pixel down and right of them."""
        a = pairs.view(*self.shape, *self.shape)
        return [(a[:-1, :, :-1], a[1:, :, 1:]), (a[:, :-1, :, :-1], a[:, 1:, :, 1:])]
