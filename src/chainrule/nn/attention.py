"""Causal self-attention over a grid, in blocks whose walk keeps keys and values."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """x ← x + Attention(LN x), then x ← x + MLP(LN x) with 4d hidden units (pre-norm: Xiong et al., 2020).

    Args:
        d: width.
        heads: they share the d units; d / heads must be divisible by 4.
        dropout: in training, the probability with which a unit of what is added is off.
    """

    def __init__(self, d: int, heads: int, *, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm_1, self.norm_2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.out = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d)
        self.up, self.down = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)
        for last in (self.out, self.down):  # a new block is the identity
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, x: Tensor, turn: Tensor, cache: Cache | None = None) -> Tensor:
        """All T steps at once, (B, T, d) → (B, T, d); with a cache, the next step only: T = 1.

        ``turn`` are the T steps' :func:`rotations`.
        """
        x = x + F.dropout(self.attend(self.norm_1(x), turn, cache), self.dropout, self.training)
        added: Tensor = self.down(F.gelu(self.up(self.norm_2(x))))
        return x + F.dropout(added, self.dropout, self.training)

    def attend(self, x: Tensor, turn: Tensor, cache: Cache | None) -> Tensor:
        """Each step takes the mean of the values so far, its own included, weighted by softmax(q·k / √(d/heads))."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (B, heads, T, d/heads)
        q, k = rotate(q, turn), rotate(k, turn)
        if cache is not None:
            k, v = cache.extended(k, v)
        mean = F.scaled_dot_product_attention(q, k, v, is_causal=cache is None)
        out: Tensor = self.out(mean.transpose(1, 2).flatten(2))
        return out

    def cache(self, batch: int, steps: int) -> Cache:
        """An empty one for this block."""
        d = self.out.in_features
        return Cache(self.out.weight.new_empty(2, batch, self.heads, steps, d // self.heads))


@dataclass
class Cache:
    """The keys and values of the steps so far, (2, B, heads, steps, d/heads); what is behind them is room."""

    room: Tensor
    length: int = 0

    def extended(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values so far, with those of the next step."""
        self.room[0, :, :, self.length], self.room[1, :, :, self.length] = key[:, :, 0], value[:, :, 0]
        self.length += 1
        return self.room[0, :, :, : self.length], self.room[1, :, :, : self.length]


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Turns the pair of units i and i + w/2 of (…, T, w) by its angle: (2, T, w/2) cosines and sines."""
    a, b = x.chunk(2, -1)
    cos, sin = turn
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


def rotations(rows: int, columns: int, w: int) -> Tensor:
    """Cosines and sines of w/2 pairs at each place, (2, rows · columns, w/2): half of them turn with the row.

    So q·k depends on how far apart two places are, in either direction (Su et al., *RoFormer*, 2021; for grids Heo et
    al., *Rotary Position Embedding for Vision Transformer*, ECCV 2024). The fastest turns by 1 a place, all slower than
    that by powers of 1/100.
    """
    speed = 0.01 ** (torch.arange(w // 4, dtype=torch.float64) / (w // 4))
    row, column = torch.arange(rows).repeat_interleave(columns), torch.arange(columns).repeat(rows)
    angle = torch.cat([row[:, None] * speed, column[:, None] * speed], 1)
    return torch.stack([angle.cos(), angle.sin()])
