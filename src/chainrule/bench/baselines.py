"""NADE as it is usually written: what the compiled kernel is timed against, and one more reference for the tests.

    a_t = c + Σ_{j<t} z_j W[j],   h_t = σ(a_t),   logit_t = b_t + V[t]·h_t

The gradients are autograd's. Everything is in chain order: z (B, n) bits, W and V (n, d), c (d,), b (n,) → (B, n);
but :func:`loop` takes the transpose of W.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from chainrule.models.nade import NADE


def cumsum(z: Tensor, W: Tensor, c: Tensor, V: Tensor, b: Tensor) -> Tensor:
    """All steps at once: several (B, n, d) tensors stand in memory, and autograd keeps some of them."""
    added = z.unsqueeze(2) * W
    a = torch.cat([c.expand(len(z), 1, -1), added[:, :-1]], 1).cumsum(1)
    return torch.einsum("btd,td->bt", torch.sigmoid(a), V) + b


def loop(z: Tensor, W: Tensor, c: Tensor, V: Tensor, b: Tensor) -> Tensor:
    """A Python step per pixel, the way public implementations are written: W (d, n) as in the paper.

    Each step cuts its column out of W and its row out of V. That is dear in the backward pass: the gradient of
    one slice is a whole matrix that is 0 everywhere else, and n of them are added up.
    """
    a, logits = c.expand(len(z), -1), []
    for t in range(z.shape[1]):
        now = slice(t, t + 1)
        logits.append(torch.sigmoid(a) @ V[now].t() + b[now])
        a = a + z[:, now] @ W[:, now].t()
    return torch.cat(logits, 1)


def rows(z: Tensor, W: Tensor, c: Tensor, V: Tensor, b: Tensor) -> Tensor:
    """The same loop over W as this package stores it: both matrices' rows, picked by indexing."""
    return _steps(z, [W[t] for t in range(len(W))], c, [V[t] for t in range(len(V))], b)


def unbound(z: Tensor, W: Tensor, c: Tensor, V: Tensor, b: Tensor) -> Tensor:
    """The same, but the rows are taken apart once, so that their gradients are put together once."""
    return _steps(z, W.unbind(), c, V.unbind(), b)


def _steps(z: Tensor, W: Sequence[Tensor], c: Tensor, V: Sequence[Tensor], b: Tensor) -> Tensor:
    a, logits = c.expand(len(z), -1), []
    for z_t, W_t, V_t in zip(z.unbind(1), W, V, strict=True):
        logits.append(torch.sigmoid(a) @ V_t)
        a = a + torch.outer(z_t, W_t)
    return torch.stack(logits, 1) + b


class CumsumNADE(NADE):
    """:func:`cumsum` in the place of the kernel."""

    def conditionals(self, z: Tensor) -> Tensor:
        return cumsum(z, self.W, self.c, self.V, self.b)


class LoopNADE(NADE):
    """:func:`loop` in the place of the kernel."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401
        super().__init__(**options)
        self.W = nn.Parameter(self.W.detach().t().contiguous())

    def conditionals(self, z: Tensor) -> Tensor:
        return loop(z, self.W, self.c, self.V, self.b)


class RowsNADE(NADE):
    """:func:`rows` in the place of the kernel."""

    def conditionals(self, z: Tensor) -> Tensor:
        return rows(z, self.W, self.c, self.V, self.b)


class UnboundNADE(NADE):
    """:func:`unbound` in the place of the kernel."""

    def conditionals(self, z: Tensor) -> Tensor:
        return unbound(z, self.W, self.c, self.V, self.b)
