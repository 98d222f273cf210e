"""A Transformer over the patches of an image: each attends to itself and to all before it."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chainrule.density import AutoregressiveDensity, log_odds
from chainrule.nn.attention import Block, rotations
from chainrule.nn.truth_table import look_up
from chainrule.orders import GRID_ORDERS
from chainrule.validate import number

DRAWN = 250  # images drawn at once: their keys and values, 2 L d numbers a patch, are all kept


class Transformer(AutoregressiveDensity):
    r"""Causal self-attention over patches, whose truth tables are the output.

    .. math:: x_k &= E_k + U\,[\text{patches around } k \text{ that came before}] \\
              x_k &\leftarrow x_k + \operatorname{Attention}(\hat x_k;\, \hat x_{\le k}), \qquad
              x_k \leftarrow x_k + \operatorname{MLP}(\hat x_k) \qquad (L \text{ times}) \\
              \operatorname{logit} p(z_t = 1 \mid z_{<t}) &= b_t + T(\hat x_k)_{\text{bits of patch } k \text{ so far}}

    with layers normalized (:math:`\hat x`) and step t in patch k. Patches are of 2×2 pixels (``patch: 1``: pixels): T
    gives each a truth table of its own, 2⁴ − 1 = 15 logits, so three of four pixels need no step of the network, and
    the result is as exact. What enters at patch k comes from earlier ones, so attention may include k itself.
    Queries and keys are turned by row and column, as the order walks; E and the biases b are learned by place in the
    image, so one network can be read in all eight grid orders (``orders=grid``).

    Vaswani et al., *Attention Is All You Need*, NIPS 2017; Parmar et al., *Image Transformer*, ICML 2018; Chen et al.,
    *Generative Pretraining from Pixels*, ICML 2020.

    Parameters: L (12 d² + 10 d) + d (m + p² s + 2) + (d + 1)(2^p² − 1) + n, for m = n / p² patches; U sees s at each.

    Cost: L (12 d² + m d) multiply-adds a patch. A walk keeps keys and values, so a sample costs what a likelihood does.

    Args:
        shape: (height, width).
        width: d.
        layers: L.
        heads: of each attention; width / heads must be divisible by 4.
        patch: p, height and width of a patch.
        first: (rows, columns) of patches that U sees above; before k it sees the last (columns + 1) // 2.
        dropout: in training, the probability with which a unit that a layer adds is off.
        order: one of :data:`chainrule.orders.GRID_ORDERS`.
        told: learn which of the grid orders it is.

    Raises:
        ValueError: the heads cannot share the width, or a number is out of its range.
    """

    orders = GRID_ORDERS
    small: ClassVar = {"width": 8, "layers": 2, "heads": 2, "patch": 1, "first": [1, 3]}

    def __init__(
        self,
        *,
        shape: Sequence[int],
        width: int = 96,
        layers: int = 6,
        heads: int = 4,
        patch: int = 2,
        first: Sequence[int] = (2, 5),
        dropout: float = 0.0,
        order: str | Sequence[int] = "raster",
        told: bool = False,
    ) -> None:
        super().__init__(shape=shape, order=order, patch=number("model.patch", patch, int, 1, 4))
        d, bits = number("model.width", width, int, 1, 4096), self.patch**2
        if d % (4 * number("model.heads", heads, int, 1)):
            raise ValueError(f"model.width must be divisible by 4 · model.heads = {4 * heads}, got {d}")
        number("model.dropout", dropout, low=0, high=0.99)
        if len(first) != 2:
            raise ValueError(f"model.first must be [rows, columns], got {first!r}")
        rows, columns = (number("model.first", size, int, 1) for size in first)
        self.first, self.turned = (rows, columns), d // heads
        self.U = nn.Linear((rows * columns + (columns + 1) // 2) * bits, d, bias=False)
        self.places = nn.Parameter(torch.randn(self.dim // bits, d) * 0.02)  # E, by patch of the image
        self.told = nn.Parameter(torch.zeros(len(GRID_ORDERS), d)) if told else None
        self.blocks: Sequence[Block] = nn.ModuleList(  # type: ignore[assignment]
            Block(d, heads, dropout=dropout) for _ in range(number("model.layers", layers, int, 1))
        )
        self.norm, self.T = nn.LayerNorm(d), nn.Linear(d, 2**bits - 1)
        nn.init.zeros_(self.T.weight)  # so that the first logits are b
        nn.init.zeros_(self.T.bias)
        self.b = nn.Parameter(torch.zeros(self.dim))  # by pixel of the image

    def conditionals(self, z: Tensor) -> Tensor:
        bits = z.view(len(z), -1, self.patch**2)
        x, turn = self.U(_seen(bits, self.before())) + self.where(), self.turn()
        for block in self.blocks:
            x = block(x, turn)
        return look_up(self.T(self.norm(x)), bits).flatten(1) + self.b[self.order]

    @torch.no_grad()
    def walk(self, batch: int) -> Generator[Tensor, Tensor, None]:
        before, where, turn, b = self.before(), self.where(), self.turn(), self.b[self.order]
        bits = where.new_zeros(batch, len(where), self.patch**2)
        caches = [block.cache(batch, len(where)) for block in self.blocks]
        for k in range(len(where)):
            x = self.U(_seen(bits, before[k : k + 1])) + where[k]
            for block, cache in zip(self.blocks, caches, strict=True):
                x = block(x, turn[:, k : k + 1], cache)
            table = self.T(self.norm(x[:, 0]))
            for i in range(self.patch**2):
                bits[:, k, i] = yield look_up(table, bits[:, k])[:, i] + b[k * self.patch**2 + i]

    @torch.no_grad()
    def draw(self, u: Tensor) -> Tensor:
        return torch.cat([self.draw_sequentially(part) for part in u.split(DRAWN)])

    @torch.no_grad()
    def initialize(self, z: Tensor) -> None:
        self.b[self.order] = log_odds(z).to(self.dtype)

    def where(self) -> Tensor:
        """What is known of each patch before any pixel, E and which order it is: (m, d)."""
        place = self.places[self.patches]
        return place if self.told is None else place + self.told[GRID_ORDERS.index(self.grid_order)]

    def turn(self) -> Tensor:
        """The angles of queries and keys, see :func:`rotations`."""
        return rotations(*self.cells, self.turned).to(self.b)

    def before(self) -> Tensor:
        """The patches that U sees at each: (m, s) numbers; m is a patch outside of the image."""
        (rows, columns), (above, wide), device = self.cells, self.first, self.order.device
        m, k = rows * columns, torch.arange(rows * columns, device=device)[:, None]
        back = torch.arange(1, (wide + 1) // 2 + 1, device=device)
        up, right = torch.meshgrid(
            torch.arange(1, above + 1, device=device), torch.arange(wide, device=device) - wide // 2, indexing="ij"
        )
        up, right = up.flatten(), right.flatten()
        column = k % columns + right
        inside = (k // columns >= up) & (column >= 0) & (column < columns)
        return torch.cat([(k - back).where(k >= back, m), (k - up * columns + right).where(inside, m)], 1)


def _seen(bits: Tensor, before: Tensor) -> Tensor:
    """The bits of other patches, side by side: (B, m, p²) and (k, s) → (B, k, s · p²)."""
    return F.pad(bits, (0, 0, 0, 1))[:, before].flatten(2)
