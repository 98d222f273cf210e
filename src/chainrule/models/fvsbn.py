"""Fully visible sigmoid belief network: every conditional is a logistic regression."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chainrule.density import AutoregressiveDensity, log_odds


class FVSBN(AutoregressiveDensity):
    r"""Each pixel is a logistic regression on the pixels before it.

    .. math:: \operatorname{logit} p(x_t = 1 \mid x_{<t}) = \alpha_0^{(t)} + \sum_{j<t} \alpha_j^{(t)} x_j

    Neal, *Connectionist learning of belief networks* (1992); Frey, Hinton & Dayan (1996).

    Parameters: n(n+1)/2, the lower triangle of an (n, n) matrix stored row after row: row t holds
    :math:`\alpha_1^{(t)} … \alpha_{t-1}^{(t)}` and, on the diagonal, :math:`\alpha_0^{(t)}`. The
    :math:`\alpha_0` start at the training pixels' log-odds, the rest at 0.

    Cost: one (B, n) × (n, n) product for all conditionals; a sample adds one column a step, so it costs
    as much as one likelihood.

    Args:
        shape: (height, width).
        order: see :func:`chainrule.orders.permutation`.
    """

    lower: Tensor

    def __init__(self, *, shape: Sequence[int], order: str | Sequence[int] = "raster") -> None:
        super().__init__(shape=shape, order=order)
        n = self.dim
        rows, columns = torch.tril_indices(n, n)
        self.register_buffer("lower", rows * n + columns, persistent=False)
        self.alpha = nn.Parameter(torch.zeros(n * (n + 1) // 2))

    def matrix(self) -> Tensor:
        """The (n, n) matrix with rows α⁽ᵗ⁾: weights below the diagonal, α₀ on it, 0 above."""
        n = self.dim
        return self.alpha.new_zeros(n * n).index_copy(0, self.lower, self.alpha).view(n, n)

    def conditionals(self, z: Tensor) -> Tensor:
        A = self.matrix()
        return F.linear(z, A.tril(-1), A.diagonal())

    @torch.no_grad()
    def walk(self, batch: int) -> Generator[Tensor, Tensor, None]:
        A = self.matrix()
        logits = A.diagonal().repeat(batch, 1)
        for t in range(self.dim):
            z_t = yield logits[:, t]
            logits[:, t + 1 :] += torch.outer(z_t, A[t + 1 :, t])

    @torch.no_grad()
    def initialize(self, z: Tensor) -> None:
        n = self.dim
        diagonal = torch.arange(1, n + 1, device=self.alpha.device).cumsum(0) - 1
        self.alpha[diagonal] = log_odds(z).to(self.alpha)
