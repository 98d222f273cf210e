"""PixelCNN: a convolutional network that sees only what comes before, in two streams."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chainrule.density import AutoregressiveDensity, log_odds
from chainrule.nn.attention import Block as Attention
from chainrule.nn.attention import rotations
from chainrule.nn.causal_conv import RowsAbove, RowSoFar
from chainrule.nn.truth_table import look_up
from chainrule.orders import GRID_ORDERS
from chainrule.validate import number


class PixelCNN(AutoregressiveDensity):
    r"""Two stacks of causal convolutions: one sees all rows above, the other the row up to here, and the first.

    .. math:: v &\leftarrow v + A_v\, g(K_v * \hat v) \\
              h &\leftarrow h + A_h\, g(K_h * \hat h + L\, v) \\
              \operatorname{logit} p(x_t = 1 \mid x_{<t}) &= b_t + T(\hat h)_{\text{bits of the patch so far}}

    K convolve, A and L mix the channels of one place; layers are normalized (:math:`\hat v`), and g is GELU or the
    gate :math:`\tanh(a)\,\sigma(b)`. The grid is one of patches of 2×2 pixels (``patch: 1``: of pixels): T gives each
    patch a truth table of its own, 2⁴ − 1 = 15 logits, so three of four pixels need no step of the network, and the
    result is as exact. Both first layers leave the own patch out. What the grid has at a place (E), the biases b, and
    which of the eight grid orders it is, are learned by pixel of the image, so one network can be read in all eight
    (``orders=grid``). With ``attention``, halfway up, h also takes what it asks for from all places before it
    (:class:`chainrule.nn.attention.Block`).

    van den Oord, Kalchbrenner & Kavukcuoglu, *Pixel Recurrent Neural Networks*, ICML 2016; van den Oord et al.,
    *Conditional Image Generation with PixelCNN Decoders*, NIPS 2016 (two streams, gates); Chen et al., *PixelSNAIL: An
    Improved Autoregressive Generative Model*, ICML 2018 (attention).

    Parameters: 16 c² + 7 c a block with the default windows, 30 c² + 8 c with gates; 12 c² + 10 c of the attention.

    Cost: a multiply-add for each of these at every position. A walk keeps what it has seen, by rows and positions, so
    that a sample costs what a likelihood does.

    Args:
        shape: (height, width).
        channels: c, of either stream.
        blocks: how often both streams are updated.
        patch: height and width of a patch; a grid of n / patch² positions.
        window: (rows, columns) of K_v.
        width: columns of K_h.
        first: (rows, columns) that the first layer sees above; of its own row it sees the half of ``columns``.
        gates: tanh(a) σ(b) of twice as many channels instead of GELU.
        attention: heads of the attention; 0: there is none.
        dropout: in training, the probability with which a unit of g is off.
        order: one of :data:`chainrule.orders.GRID_ORDERS`.
        told: learn which of the grid orders it is.
    """

    orders = GRID_ORDERS
    sees_all = False
    small: ClassVar = {"channels": 4, "blocks": 2, "patch": 1, "first": [1, 3], "window": [2, 3], "width": 2}

    def __init__(
        self,
        *,
        shape: Sequence[int],
        channels: int = 48,
        blocks: int = 6,
        patch: int = 2,
        window: Sequence[int] = (2, 5),
        width: int = 3,
        first: Sequence[int] = (4, 9),
        gates: bool = False,
        attention: int = 0,
        dropout: float = 0.0,
        order: str | Sequence[int] = "raster",
        told: bool = False,
    ) -> None:
        super().__init__(shape=shape, order=order, patch=number("model.patch", patch, int, 1, 4))
        c, bits = number("model.channels", channels, int, 1, 4096), self.patch**2
        number("model.dropout", dropout, low=0, high=0.99)
        if number("model.attention", attention, int, 0) and c % (4 * attention):
            raise ValueError(f"model.channels must be divisible by 4 · model.attention = {4 * attention}, got {c}")
        self.above = RowsAbove(bits, c, first, strict=True)
        self.left = RowSoFar(bits, c, first[1] // 2, strict=True)
        self.places = nn.Parameter(torch.zeros(self.dim // bits, c))  # E, by patch of the image
        self.told = nn.Parameter(torch.zeros(len(GRID_ORDERS), c)) if told else None
        self.blocks: Sequence[Block] = nn.ModuleList(  # type: ignore[assignment]
            Block(c, window, width, gates=gates, dropout=dropout) for _ in range(number("model.blocks", blocks, int, 1))
        )
        self.middle = (len(self.blocks) - 1) // 2  # the block that attention follows
        self.attention = Attention(c, attention, dropout=dropout) if attention else None
        self.table = nn.Sequential(nn.LayerNorm(c), nn.Linear(c, c), nn.GELU(), nn.Linear(c, 2**bits - 1))
        self.b = nn.Parameter(torch.zeros(self.dim))  # by pixel of the image

    def conditionals(self, z: Tensor) -> Tensor:
        rows, columns = self.cells
        bits = z.view(len(z), rows, columns, -1)
        v = self.above(bits) + self.where()
        h = self.left(bits) + v
        for i, block in enumerate(self.blocks):
            v, h = block(v, h)
            if self.attention is not None and i == self.middle:
                h = self.attention(h.flatten(1, 2), self.turn(self.attention.heads)).view_as(h)
        return look_up(self.table(h), bits).flatten(1) + self.b[self.order]

    @torch.no_grad()
    def walk(self, batch: int) -> Generator[Tensor, Tensor, None]:
        (rows, columns), b, where = self.cells, self.b[self.order], self.where()
        bits = where.new_zeros(batch, rows, columns, self.patch**2)
        seen_v = where.new_zeros(len(self.blocks), batch, rows, columns, where.shape[2])
        seen_h = where.new_zeros(len(self.blocks), batch, columns, where.shape[2])
        if self.attention is not None:
            cache, turn = self.attention.cache(batch, rows * columns), self.turn(self.attention.heads)
        t = 0
        for y in range(rows):
            v = first = self.above.row(bits, y) + where[y]
            above = []
            for block, seen in zip(self.blocks, seen_v, strict=True):
                seen[:, y] = block.norm_v(v)
                v = block.add_v(v, block.K_v.row(seen, y))
                above.append(v)
            for x in range(columns):
                h = self.left.at(bits[:, y], x) + first[:, x]
                for i, (block, seen, v) in enumerate(zip(self.blocks, seen_h, above, strict=True)):
                    seen[:, x] = block.norm_h(h)
                    h = block.add_h(h, block.K_h.at(seen, x), v[:, x])
                    if self.attention is not None and i == self.middle:
                        here = y * columns + x
                        h = self.attention(h[:, None], turn[:, here : here + 1], cache)[:, 0]
                table = self.table(h)
                for i in range(self.patch**2):
                    bits[:, y, x, i] = yield look_up(table, bits[:, y, x])[:, i] + b[t]
                    t += 1

    def draw(self, u: Tensor) -> Tensor:
        return self.draw_sequentially(u)

    def where(self) -> Tensor:
        """What is known of each place before any pixel: (rows, columns, c)."""
        place = self.places[self.patches]
        if self.told is not None:
            place = place + self.told[GRID_ORDERS.index(self.grid_order)]
        return place.view(*self.cells, -1)

    def turn(self, heads: int) -> Tensor:
        """The angles of queries and keys, see :func:`chainrule.nn.attention.rotations`."""
        return rotations(*self.cells, self.places.shape[1] // heads).to(self.b)

    @torch.no_grad()
    def initialize(self, z: Tensor) -> None:
        self.b[self.order] = log_odds(z).to(self.dtype)


class Block(nn.Module):
    """One layer of both streams, each added to what it was."""

    def __init__(self, channels: int, window: Sequence[int], width: int, *, gates: bool, dropout: float) -> None:
        super().__init__()
        c, wide = channels, 2 * channels if gates else channels
        self.gates, self.dropout = gates, dropout
        self.norm_v, self.norm_h = nn.LayerNorm(c), nn.LayerNorm(c)
        self.K_v = RowsAbove(c, wide, window)
        self.K_h = RowSoFar(c, wide, width)
        self.L = nn.Linear(c, wide)
        self.A_v, self.A_h = nn.Linear(c, c), nn.Linear(c, c)

    def forward(self, v: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        v = self.add_v(v, self.K_v(self.norm_v(v)))
        return v, self.add_h(h, self.K_h(self.norm_h(h)), v)

    def add_v(self, v: Tensor, seen: Tensor) -> Tensor:
        out: Tensor = v + self.A_v(self.g(seen))
        return out

    def add_h(self, h: Tensor, seen: Tensor, v: Tensor) -> Tensor:
        out: Tensor = h + self.A_h(self.g(seen + self.L(v)))
        return out

    def g(self, a: Tensor) -> Tensor:
        if self.gates:
            a, b = a.chunk(2, -1)
            a = torch.tanh(a) * torch.sigmoid(b)
        else:
            a = F.gelu(a)
        return F.dropout(a, self.dropout, self.training)
