"""NADE's conditionals in plain torch: the reference, and the fallback.

The steps are taken in chunks, and the backward pass computes a chunk's hidden states again instead of
keeping them: memory grows with batch · chunk · d, not with batch · n · d.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Hidden states held at once: in float32 1 MB, which a core's cache can hold, or 64 MB, which keep a GPU busy.
CHUNK_ELEMENTS, ON_A_GPU = 1 << 18, 1 << 24


def conditionals(z: Tensor, W: Tensor, c: Tensor, V: Tensor, b: Tensor) -> Tensor:
    """z (B, n) bits, W and V (n, d), c (d,), b (n,) → (B, n) logits, in any precision and on any device."""
    batch, n = z.shape
    elements = ON_A_GPU if z.is_cuda else CHUNK_ELEMENTS
    steps = max(1, min(n, elements // max(1, batch * len(c))))
    a = c.expand(batch, -1)  # the activation before the chunk's first step
    logits = []
    for zs, Ws, Vs in zip(z.split(steps, 1), W.split(steps), V.split(steps), strict=True):
        logits.append(checkpoint(_chunk, a, zs, Ws, Vs, use_reentrant=False))
        a = a + zs @ Ws
    return torch.cat(logits, 1) + b


def _chunk(a: Tensor, z: Tensor, W: Tensor, V: Tensor) -> Tensor:
    added = z.unsqueeze(2) * W  # (B, steps, d)
    before = torch.cat([a.unsqueeze(1), added[:, :-1]], 1).cumsum(1)  # a_t = a + Σ of what came earlier
    return torch.einsum("btd,td->bt", torch.sigmoid(before), V)
