"""Orderless NADE: one deep network trained to complete images in any order."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from chainrule.density import AutoregressiveDensity, log_odds
from chainrule.nn.roughness import of_pixels
from chainrule.validate import number

CHUNK_ELEMENTS, ON_A_GPU = 1 << 20, 1 << 25  # activations of a layer held at once


class DeepNADE(AutoregressiveDensity):
    r"""A network of L hidden layers sees the pixels before step t, and which they are.

    .. math:: h^1_t = \max\Big(0,\, b^1 + \sum_{j<t} (W_{o(j)}\, x_{o(j)} + U_{o(j)})\Big), \qquad
              h^{l+1}_t = \max(0,\, b^{l+1} + A^l h^l_t), \qquad
              \operatorname{logit} p(x_{o(t)} = 1 \mid x_{o(<t)}) = c_{o(t)} + V_{o(t)} \cdot h^L_t

    All weights belong to pixels, so every order o has its model. Training draws an order and a step d for each image
    and predicts all pixels from there on:

    .. math:: \mathbb E_{o,d}\, \frac{n}{n-d} \sum_{t \ge d} -\log p(x_{o(t)} \mid x_{o(<d)})
              = \mathbb E_o \big[-\log p_o(x)\big]

    Uria, Murray & Larochelle, *A Deep and Tractable Density Estimator*, ICML 2014, eq. 10 and section 3.2. The orders
    together are an ensemble (``orders=16``), better than each.

    Parameters: 3·n·d_1 (W, U and V, if d_L = d_1) + n + Σ d_l·d_{l+1} + Σ d_l; the likelihood never sees what W and U
    have for the last pixel. The biases c start at the training pixels' log-odds.

    Cost: Σ d_l·d_{l+1} + 2·n·d_1 multiply-adds an image in training; n times the hidden layers for a likelihood, since
    only the first layer is added up along the order. A sample costs what a likelihood does.

    Args:
        shape: (height, width).
        hidden: units of each hidden layer, [d_1, …, d_L]; a number: one layer.
        order: see :func:`chainrule.orders.permutation`; training does not depend on it.
        smoothness: of a Gaussian prior on how W, U and V change over the image, as that of NADE.
        dropout: in training, the probability with which a hidden unit is off; a kept one counts 1/(1 − it).
    """

    any_order = True
    small: ClassVar = {"hidden": [7, 6]}

    def __init__(
        self,
        *,
        shape: Sequence[int],
        hidden: int | Sequence[int] = (500, 500),
        order: str | Sequence[int] = "raster",
        smoothness: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(shape=shape, order=order)
        self.smoothness = number("model.smoothness", smoothness, low=0, high=1e6)
        self.dropout = number("model.dropout", dropout, low=0, high=0.99)
        n, sizes = self.dim, [hidden] if isinstance(hidden, int) else list(hidden)
        if not sizes:
            raise ValueError("model.hidden must have at least one layer, such as [500, 500]")
        for size in sizes:
            number("model.hidden", size, int, 1, 100_000)
        self.W = nn.Parameter(torch.randn(n, sizes[0]) * (2 / n) ** 0.5)
        self.U = nn.Parameter(torch.randn(n, sizes[0]) * (2 / n) ** 0.5)
        self.b = nn.Parameter(torch.zeros(sizes[0]))
        self.layers: Sequence[nn.Linear] = nn.ModuleList(  # type: ignore[assignment]
            nn.Linear(below, above) for below, above in pairwise(sizes)
        )
        for layer in self.layers:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        self.V = nn.Parameter(torch.randn(n, sizes[-1]) * 0.1 * (2 / sizes[-1]) ** 0.5)
        self.c = nn.Parameter(torch.zeros(n))
        self.roughness = of_pixels(torch.arange(n), self.shape) if smoothness else None

    @property
    def effective_parameter_count(self) -> int:
        return self.parameter_count - 2 * len(self.b)

    def loss(self, x: Tensor) -> Tensor:
        """The NLL of a random order in expectation: (B,) nats, from one step of each image."""
        x, n = self._flat(x), self.dim
        step = torch.rand(x.shape, device=x.device).argsort(1)  # of each pixel, in an order of each image's own
        # Each image's d is uniform, and those of a batch are spread evenly: what one step varies by is less.
        spread = (torch.arange(len(x), device=x.device) / len(x) + torch.rand((), device=x.device)) % 1
        observed = (spread * n).long().clamp(max=n - 1)[:, None]
        seen = (step < observed).to(x.dtype)
        nats = F.binary_cross_entropy_with_logits(self._logits(x, seen), x, reduction="none")
        return n / (n - observed.squeeze(1).to(x.dtype)) * (nats * (1 - seen)).sum(1)

    def log_prior(self) -> Tensor:
        prior = super().log_prior()
        if self.roughness:
            prior = prior - self.smoothness * sum(self.roughness(x) for x in (self.W, self.U, self.V))
        return prior

    def conditionals(self, z: Tensor) -> Tensor:
        width = max([self.W.shape[1], *(layer.out_features for layer in self.layers)])
        elements = ON_A_GPU if z.is_cuda else CHUNK_ELEMENTS
        room = elements // max(1, len(z))  # for each image, T · width and T²
        steps = max(1, min(self.dim, room // width, math.isqrt(room)))
        a, logits = self.b.expand(len(z), -1), torch.empty_like(z)  # made first: small parts would fragment the heap
        for start in range(0, self.dim, steps):
            now = slice(start, start + steps)
            chunk, pixels = z[:, now], self.order[now]
            if torch.is_grad_enabled():  # the backward pass computes a chunk again, which takes less than keeping it
                logits[:, now] = checkpoint(self._chunk, a, chunk, pixels, use_reentrant=False)
            else:
                logits[:, now] = self._chunk(a, chunk, pixels)
            a = a + chunk @ self.W[pixels] + self.U[pixels].sum(0)
        return logits

    @torch.no_grad()
    def walk(self, batch: int) -> Generator[Tensor, Tensor, None]:
        a = self.b.repeat(batch, 1)
        for pixel in self.order.tolist():
            z_t = yield self._deep(a) @ self.V[pixel] + self.c[pixel]
            a += torch.outer(z_t, self.W[pixel]) + self.U[pixel]

    def draw(self, u: Tensor) -> Tensor:
        return self.draw_sequentially(u)

    @torch.no_grad()
    def initialize(self, z: Tensor) -> None:
        self.c[self.order] = log_odds(z).to(self.c)

    def _logits(self, x: Tensor, seen: Tensor) -> Tensor:
        """Of all pixels, given those that are seen; everything (B, n) and pixel-indexed."""
        return F.linear(self._deep(self.b + (x * seen) @ self.W + seen @ self.U), self.V, self.c)

    def _chunk(self, a: Tensor, z: Tensor, pixels: Tensor) -> Tensor:
        """The logits of some steps (B, T): from the activations before them (B, d_1), and their bits."""
        earlier = torch.ones(len(pixels), len(pixels), dtype=z.dtype, device=z.device).tril(-1)
        added = (earlier * z.unsqueeze(1)) @ self.W[pixels] + earlier @ self.U[pixels]
        h = self._deep(added + a.unsqueeze(1))
        return torch.einsum("btd,td->bt", h, self.V[pixels]) + self.c[pixels]

    def _deep(self, a: Tensor) -> Tensor:
        """The last hidden layer, from the activations of the first."""
        h = F.dropout(F.relu(a), self.dropout, self.training)
        for layer in self.layers:
            h = F.dropout(F.relu(layer(h)), self.dropout, self.training)
        return h
