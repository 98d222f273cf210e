"""Neural autoregressive distribution estimator: n small networks that share their weights."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chainrule.density import AutoregressiveDensity, log_odds
from chainrule.kernels import nade as kernels
from chainrule.nn.roughness import of_pixels
from chainrule.validate import number


class NADE(AutoregressiveDensity):
    r"""One hidden layer per pixel, all of them sharing the columns of W.

    .. math:: h_t = \sigma\Big(c + \sum_{j<t} W_{\cdot,j}\, x_j\Big), \qquad
              \operatorname{logit} p(x_t = 1 \mid x_{<t}) = b_t + V_{t,\cdot}\, h_t

    Larochelle & Murray, *The Neural Autoregressive Distribution Estimator*, AISTATS 2011, eq. 1 to 4.

    Parameters: nd + d + nd + n, of which the likelihood never sees W's last column (d numbers):
    ``effective_parameter_count`` leaves it out. The biases b start at the training pixels' log-odds.

    Cost: h changes only after a pixel that is on, so an image costs one hidden vector per such pixel and
    n products of length d; the kernel (:mod:`chainrule.kernels.nade`) makes use of it. A sample keeps
    the running activation c + Σ W x and costs about as much as one likelihood.

    Args:
        shape: (height, width).
        hidden: d, the hidden units.
        order: see :func:`chainrule.orders.permutation`.
        smoothness: of a Gaussian prior on how W and V change over the image: :func:`chainrule.nn.roughness.of_pixels`.
        input_dropout: in training, the probability with which each input is off; a kept one counts 1/(1 − it).
            What is to be predicted stays. Everywhere else the model is exact.
        kernel: ``auto``, ``numba``, ``triton`` or ``torch``: which implementation computes the conditionals.
        init_scale: standard deviation of the initial W and V.
    """

    growth: ClassVar = "nd"
    small: ClassVar = {"hidden": 5}

    def __init__(
        self,
        *,
        shape: Sequence[int],
        hidden: int = 500,
        order: str | Sequence[int] = "raster",
        smoothness: float = 0.0,
        input_dropout: float = 0.0,
        kernel: str = "auto",
        init_scale: float = 0.01,
    ) -> None:
        super().__init__(shape=shape, order=order)
        self.smoothness = number("model.smoothness", smoothness, low=0, high=1e6)
        self.input_dropout = number("model.input_dropout", input_dropout, low=0, high=0.99)
        self.kernel = kernels.check(kernel)
        n, d = self.dim, number("model.hidden", hidden, int, 1, 100_000)
        number("model.init_scale", init_scale, low=0, high=1e6)
        self.W = nn.Parameter(torch.randn(n, d) * init_scale)  # W[t] is the column W_{·,t}
        self.c = nn.Parameter(torch.zeros(d))
        self.V = nn.Parameter(torch.randn(n, d) * init_scale)  # V[t] is the row V_{t,·}
        self.b = nn.Parameter(torch.zeros(n))
        self.roughness = of_pixels(self.order, self.shape) if smoothness else None

    @property
    def effective_parameter_count(self) -> int:
        return self.parameter_count - len(self.c)

    @property
    def backend(self) -> str:
        """The implementation that serves this model where it is: ``numba``, ``triton`` or ``torch``."""
        return kernels.backend(self.kernel, self.W.device, self.W.dtype)

    def conditionals(self, z: Tensor) -> Tensor:
        W: Tensor = self.W
        if self.training and self.input_dropout:
            # The kernels know bits only: the factor of the kept ones is one of W.
            z, W = F.dropout(z, self.input_dropout).ne(0).to(z.dtype), W / (1 - self.input_dropout)
        return kernels.conditionals(z, W, self.c, self.V, self.b, kernel=self.kernel)

    def log_prior(self) -> Tensor:
        prior = super().log_prior()
        if self.roughness:
            prior = prior - self.smoothness * (self.roughness(self.W) + self.roughness(self.V))
        return prior

    @torch.no_grad()
    def walk(self, batch: int) -> Generator[Tensor, Tensor, None]:
        a = self.c.repeat(batch, 1)
        for t in range(self.dim):
            z_t = yield self.b[t] + torch.sigmoid(a) @ self.V[t]
            a += torch.outer(z_t, self.W[t])

    @torch.no_grad()
    def draw(self, u: Tensor) -> Tensor:
        z = kernels.draw(u, self.W, self.c, self.V, self.b, kernel=self.kernel)
        return super().draw(u) if z is None else z

    @torch.no_grad()
    def initialize(self, z: Tensor) -> None:
        self.b.copy_(log_odds(z))
