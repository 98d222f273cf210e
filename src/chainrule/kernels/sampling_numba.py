# ruff: noqa: ANN401, PLR0917
"""Sampling from models whose hidden units are linear in the bits before them, on a CPU in float32.

Uniforms u (B, n) in chain order → bits, ``u < σ(logit)``. Block after block of steps, what the blocks before give
is one matrix product of the whole batch, and what happens inside the block is a compiled walk, image by image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from numba import prange
from torch import Tensor

from chainrule.kernels.lanes import take
from chainrule.kernels.nade_numba import ONE, drawn, group_size, sigmoid_of_one
from chainrule.kernels.threads import compiled, team, threads


class Causal(Protocol):
    """A causal linear layer (B, n) → (B, n, d), cut into blocks of steps."""

    blocks: Sequence[tuple[int, int]]  # (start, stop) of each

    def triangle(self, k: int) -> Tensor:
        """The weights inside block k of m steps: (m(m−1)/2, d), what step s adds to step r in row r(r−1)/2 + s."""

    def before(self, k: int, z: Tensor) -> Tensor:
        """What bits z (B, n) before block k give its m steps: (B, m, d)."""


def linear(u: Tensor, layer: Causal, b: Tensor) -> Tensor:
    """logit_t = b_t + a_t, where a (B, n, 1) is the layer's output."""
    return _draw(u, layer, b.new_zeros(len(b), 1), b.new_zeros(0, 1), b)


def hidden(u: Tensor, layer: Causal, c: Tensor, alpha: Tensor, b: Tensor) -> Tensor:
    """logit_t = b_t + α_t · σ(c_t + a_t), where a (B, n, d) is the layer's output; c and α are (n, d)."""
    return _draw(u, layer, c, alpha, b)


def _draw(u: Tensor, layer: Causal, c: Tensor, alpha: Tensor, b: Tensor) -> Tensor:
    bits = u.new_zeros(u.shape)
    uniforms, *parameters = (x.detach().contiguous().numpy() for x in (u, c, alpha, b))
    size = group_size(len(u))
    for k, (start, _) in enumerate(layer.blocks):
        a = layer.before(k, bits).detach().contiguous().numpy()
        given = uniforms, a, layer.triangle(k).detach().contiguous().numpy(), *parameters, bits.numpy(), start
        threads.run(_walk_block, _walk_block_team, -(-len(u) // size), 0, size, len(u), *given)
    return bits


@team
def _walk_block_team(counter: Any, scratch: Any, *given: Any) -> None:
    for thread in prange(len(scratch)):
        _walk_block(counter, scratch[thread], *given)


@compiled
def _walk_block(counter: Any, scratch: Any, size: int, images: int, *given: Any) -> None:
    first = take(counter) * size
    while first < images:
        for i in range(first, min(first + size, images)):
            _walk_image(i, *given)
        first = take(counter) * size


@compiled
def _walk_image(i: int, u: Any, a: Any, within: Any, c: Any, alpha: Any, b: Any, bits: Any, start: int) -> None:
    _, steps, d = a.shape
    for r in range(steps):
        t = start + r
        bits[i, t] = drawn(u[i, t], sigmoid_of_one(_logit(a, i, r, c, alpha, b, t)))
        if bits[i, t] == ONE:
            for later in range(r + 1, steps):
                row = later * (later - 1) // 2 + r
                for k in range(d):
                    a[i, later, k] += within[row, k]


@compiled
def _logit(a: Any, i: int, r: int, c: Any, alpha: Any, b: Any, t: int) -> Any:
    """Of step t = start + r; with no α there is no hidden layer."""
    if not len(alpha):
        return b[t] + a[i, r, 0]
    logit = b[t]
    for k in range(c.shape[1]):
        logit += alpha[t, k] * sigmoid_of_one(c[t, k] + a[i, r, k])
    return logit
