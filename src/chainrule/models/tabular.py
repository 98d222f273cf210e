"""The truth table: a number for every context."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chainrule.density import AutoregressiveDensity
from chainrule.nn.truth_table import contexts
from chainrule.validate import number

LIMIT = 20  # pixels; a million parameters
CERTAIN = 30.0  # the logit of a bit that never (always) was on: σ(−30) is about 10⁻¹³


class Tabular(AutoregressiveDensity):
    r"""The chain rule with nothing else: a free logit for each of the :math:`2^{t-1}` contexts of step t.

    .. math:: \operatorname{logit} p(x_t = 1 \mid x_{<t}) = \theta^{(t)}_{x_1 … x_{t-1}}

    Parameters: 2ⁿ − 1, one table after the other, a context being the binary number x_1 … x_{t−1}. Any
    distribution over {0,1}ⁿ can be represented, hence ``LIMIT``.

    With ``smoothing`` λ > 0 each conditional has a Beta(λ+1, λ+1) prior. The maximum is known: of N contexts
    met, N₁ of them with a one, :math:`p = (N_1 + λ)/(N + 2λ)`. Training finds it by gradients, as for every
    model; :meth:`fit` writes it down.

    Cost: a look-up per pixel.

    Args:
        shape: (height, width), at most ``LIMIT`` pixels.
        order: see :func:`chainrule.orders.permutation`.
        smoothing: λ, pseudo-counts of ones and of zeros; 0 is plain maximum likelihood.
        closed_form: start at the maximum (with ``trainer.max_epochs=0``, stay there).
    """

    growth: ClassVar = "2ⁿ"

    def __init__(
        self,
        *,
        shape: Sequence[int],
        order: str | Sequence[int] = "raster",
        smoothing: float = 0.5,
        closed_form: bool = False,
    ) -> None:
        n = math.prod(shape)
        if n > LIMIT:
            raise ValueError(
                f"a truth table over n = {n} pixels has 2^{n} − 1 ≈ 10^{round(n * math.log10(2))} parameters; "
                f"at most n = {LIMIT} fits. Make the images smaller: data.side=4"
            )
        super().__init__(shape=shape, order=order)
        self.smoothing = number("model.smoothing", smoothing, low=0, high=1e6)
        self.closed_form = closed_form
        self.theta = nn.Parameter(torch.zeros(2**n - 1))

    def conditionals(self, z: Tensor) -> Tensor:
        return self.theta[contexts(z)]

    @torch.no_grad()
    def walk(self, batch: int) -> Generator[Tensor, Tensor, None]:
        prefix = torch.zeros(batch, dtype=torch.int64, device=self.theta.device)
        for t in range(self.dim):
            z_t = yield self.theta[prefix + (1 << t) - 1]
            prefix = 2 * prefix + (z_t == 1)

    def log_prior(self) -> Tensor:
        return self.smoothing * (F.logsigmoid(self.theta) + F.logsigmoid(-self.theta)).sum()

    @torch.no_grad()
    def fit(self, z: Tensor) -> None:
        """The maximum of likelihood and prior in closed form, from images (N, n) in chain order."""
        where = contexts(z).flatten()
        zeros = torch.zeros(len(self.theta), dtype=torch.float64, device=self.theta.device)
        met = zeros.index_add(0, where, torch.ones_like(where, dtype=torch.float64))
        ones = zeros.index_add(0, where, z.flatten().double())
        p = (ones + self.smoothing) / (met + 2 * self.smoothing)
        self.theta.copy_(torch.logit(p.nan_to_num(0.5)).clamp(-CERTAIN, CERTAIN))

    @torch.no_grad()
    def initialize(self, z: Tensor) -> None:
        if self.closed_form:
            self.fit(z)
