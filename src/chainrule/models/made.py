"""Masked autoencoder: one feed-forward network whose masks let each output see earlier pixels only."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chainrule.density import AutoregressiveDensity, log_odds
from chainrule.nn.roughness import of_pixels
from chainrule.nn.triangular import TriangularLinear, permuted
from chainrule.validate import number

STEPS = 32  # of a walk, whose share of all products is one product for all of them


class MADE(AutoregressiveDensity):
    r"""A network of L hidden layers of rectified units, each unit k with a degree m(k) between 1 and n − 1.

    .. math:: h^l = \max(0,\, b^l + (W^l \circ M^l)\, h^{l-1}), \qquad
              \operatorname{logit} p(x_t = 1 \mid x_{<t}) = c_t + (V \circ M^V)_t\, h^L + (A \circ M^A)_t\, x

    A unit sees the units below whose degree is at most its own, where pixel t (from 1) has degree t; output t sees
    those of a degree below t. Germain, Gregor, Murray & Larochelle, *MADE*, ICML 2015, eq. 8 to 13.

    The degrees are spread evenly and ascend, so that every mask is a staircase (:mod:`chainrule.nn.triangular`). They
    belong to steps, weights to pixels: :meth:`reordered` shows the same weights other masks, which is what the paper
    calls order-agnostic; train it with several orders and each of them is a model.

    Parameters: n·d₁ + Σ d_l·d_{l+1} + d_L·n + n² (direct) + biases are stored, about half of them are masked:
    ``effective_parameter_count`` leaves these out. The biases c start at the training pixels' log-odds.

    Cost: about half of these weights as multiply-adds an image. A sample computes each unit once, when the last pixel
    that it sees has been drawn.

    Args:
        shape: (height, width).
        hidden: units of each hidden layer, [d₁, …, d_L]; a number: one layer.
        order: see :func:`chainrule.orders.permutation`.
        direct: connections A from pixels to outputs.
        smoothness: of a Gaussian prior on how W¹ and V change over the image, as that of NADE.
        dropout: in training, the probability with which a hidden unit is off; a kept one counts 1/(1 − it).
        input_dropout: the same of an input. What is to be predicted stays. Everywhere else the model is exact.
        block: units computed together; changes the speed, not the model.
    """

    own_order: Tensor

    small: ClassVar = {"hidden": [16, 17], "block": 5}

    def __init__(
        self,
        *,
        shape: Sequence[int],
        hidden: int | Sequence[int] = (2000, 2000),
        order: str | Sequence[int] = "raster",
        direct: bool = True,
        smoothness: float = 0.0,
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        block: int = 256,
    ) -> None:
        super().__init__(shape=shape, order=order)
        self.smoothness = number("model.smoothness", smoothness, low=0, high=1e6)
        self.dropout = number("model.dropout", dropout, low=0, high=0.99)
        self.input_dropout = number("model.input_dropout", input_dropout, low=0, high=0.99)
        # The weights of pixels are stored in this order, in which no step has to look for them.
        self.register_buffer("own_order", self.order, persistent=False)
        n, block = self.dim, number("model.block", block, int, 1)
        sizes = [number("model.hidden", d, int, 1, 100_000) for d in ([hidden] if isinstance(hidden, int) else hidden)]
        steps = torch.arange(n)
        degrees = [steps + 1, *(torch.linspace(1, max(1, n - 1), d).round().long() for d in sizes)]
        self.layers: Sequence[TriangularLinear] = nn.ModuleList(  # type: ignore[assignment]
            [TriangularLinear(below, above, block=block) for below, above in pairwise(degrees)]
            + [TriangularLinear(degrees[-1], steps, block=block, scale=0.1)]
        )
        self.direct = TriangularLinear(steps + 1, steps, block=block, scale=0.0, bias=False) if direct else None
        # known[l][m]: the units of layer l (0: pixels) of degree m or less
        self.known = [torch.searchsorted(d, torch.arange(n + 1), right=True).tolist() for d in degrees]
        self.roughness = of_pixels(self.order, self.shape) if smoothness else None

    @property
    def sees_all(self) -> bool:  # type: ignore[override]
        """With no direct connections it takes a unit of every degree in every layer."""
        return self.direct is not None or all(len({*known}) == len(known) - 1 for known in self.known[1:])

    @property
    def effective_parameter_count(self) -> int:
        layers = [layer for layer in self.modules() if isinstance(layer, TriangularLinear)]
        return sum(layer.effective_parameter_count for layer in layers)

    def conditionals(self, z: Tensor) -> Tensor:
        weights, biases, direct = self._in_order()
        h = x = F.dropout(z, self.input_dropout, self.training)
        for layer, weight, bias in zip(self.layers[:-1], weights, biases, strict=False):
            h = F.dropout(F.relu(layer(h, weight, bias)), self.dropout, self.training)
        logits: Tensor = self.layers[-1](h, weights[-1], biases[-1])
        return logits if self.direct is None else logits + self.direct(x, direct)

    def log_prior(self) -> Tensor:
        prior = super().log_prior()
        if self.roughness:
            first, last = self.layers[0].weight, self.layers[-1].weight.T
            prior = prior - self.smoothness * (self.roughness(first) + self.roughness(last))
        return prior

    @torch.no_grad()
    def walk(self, batch: int) -> Generator[Tensor, Tensor, None]:
        weights, biases, direct = self._in_order()
        known, n = self.known, self.dim
        # Of each layer (0: the bits), as far as it is known, (units, batch): what a step touches lies together.
        h = [weights[0].new_zeros(k[-1], batch) for k in known]
        for start in range(0, n, STEPS):
            stop = min(start + STEPS, n)
            # What is known before the block gives to its units, those of degrees start + 1 to stop, and to its steps.
            past = [x[: k[start]] for x, k in zip(h, known, strict=True)]
            columns = [slice(k[start], k[stop]) for k in known[1:]] + [slice(start, stop)]
            given = zip(biases, past, weights, columns, strict=True)
            *units, logits = [torch.addmm(b[c, None], W[: len(x), c].T, x) for b, x, W, c in given]
            if direct is not None:
                logits += direct[:start, start:stop].T @ past[0]
            for t in range(start, stop):
                h[0][t] = yield logits[t - start]
                # Pixel t makes the units of degree t + 1 known, layer by layer.
                for below, (a, W) in enumerate(zip(units, weights, strict=False)):
                    fresh, k = slice(known[below][t], known[below][t + 1]), known[below + 1]
                    a[k[t] - k[start] :].addmm_(W[fresh, k[t] : k[stop]].T, h[below][fresh])
                    h[below + 1][k[t] : k[t + 1]] = F.relu(a[k[t] - k[start] : k[t + 1] - k[start]])
                fresh = slice(known[-1][t], known[-1][t + 1])
                logits[t + 1 - start :].addmm_(weights[-1][fresh, t + 1 : stop].T, h[-1][fresh])
                if direct is not None:
                    logits[t + 1 - start :].addmm_(direct[t : t + 1, t + 1 : stop].T, h[0][t : t + 1])

    def draw(self, u: Tensor) -> Tensor:
        return self.draw_sequentially(u)

    @torch.no_grad()
    def initialize(self, z: Tensor) -> None:
        bias = self.layers[-1].get_parameter("bias")
        bias[self._steps()] = log_odds(z).to(bias)

    def _in_order(self) -> tuple[list[Tensor], list[Tensor], Tensor | None]:
        """The weights and biases of the layers, and the direct ones, with pixels in chain order."""
        weights, biases = ([getattr(layer, name) for layer in self.layers] for name in ("weight", "bias"))
        direct: Tensor | None = self.direct.weight if self.direct else None
        if self.order is not self.own_order and not torch.equal(self.order, self.own_order):
            steps = self._steps()
            weights[0] = permuted(weights[0], 0, steps)
            weights[-1], biases[-1] = permuted(weights[-1], 1, steps), biases[-1][steps]
            direct = None if direct is None else permuted(permuted(direct, 0, steps), 1, steps)
        return weights, biases, direct

    def _steps(self) -> Tensor:
        """Where the pixel of each step is stored."""
        return self.own_order.argsort()[self.order]
