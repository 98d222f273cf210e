"""The same models as they are usually written: what this package is timed against, in the same run.

A rival is one function: it takes the model and returns its conditionals over parameters of its own, copies of the
model's laid out as that code has them. :data:`RIVALS` lists them by the name of the model's configuration; tests hold
each equal to its model, but for :data:`BY_PIXELS`. Everything is in chain order: z (B, n) bits → (B, n) logits.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chainrule.kernels import nade_torch
from chainrule.models.deep_nade import DeepNADE
from chainrule.models.fvsbn import FVSBN
from chainrule.models.made import MADE
from chainrule.models.mlp import MLP
from chainrule.models.nade import NADE
from chainrule.models.pixelcnn import PixelCNN
from chainrule.models.transformer import Transformer
from chainrule.nn.attention import Block, Cache, rotate
from chainrule.nn.causal_conv import RowsAbove, RowSoFar
from chainrule.nn.causal_linear import CausalLinear

BY_PIXELS = "single pixels (patch: 1)"  # the only one that is another distribution


@dataclass(frozen=True)
class Rival:
    """Another implementation of a model.

    Args:
        parameters: its own.
        conditionals: (B, n) bits in chain order → (B, n) logits.
        passes: how many times a sampler of this kind computes them: n, or 1 where one loop over pixels does both.
    """

    parameters: Sequence[nn.Parameter]
    conditionals: Callable[[Tensor], Tensor]
    passes: int

    def loss(self, z: Tensor) -> Tensor:
        """(B, n) bits in chain order → (B,) nats."""
        return F.binary_cross_entropy_with_logits(self.conditionals(z), z, reduction="none").sum(1)


def _own(*tensors: Tensor) -> list[nn.Parameter]:
    return [nn.Parameter(tensor.detach().clone(memory_format=torch.contiguous_format)) for tensor in tensors]


# ---- FVSBN and MLP ----------------------------------------------------------------------------------


def fvsbn_masked(model: FVSBN) -> Rival:
    """One dense (n, n) matrix, masked at every step; a sampler makes a full pass for each pixel."""
    weight, bias = parameters = _own(_dense(model.alpha).squeeze(1), model.alpha0)
    mask = torch.ones_like(weight).tril(-1)
    return Rival(parameters, lambda z: F.linear(z, weight * mask, bias), passes=model.dim)


def mlp_masked(model: MLP) -> Rival:
    """One dense (n, d, n) matrix, masked at every step; a sampler makes a full pass for each pixel."""
    A, c, alpha, b = parameters = _own(_dense(model.A), model.c, model.alpha, model.b)
    mask = torch.ones(model.dim, model.dim, device=A.device).tril(-1)[:, None]

    def conditionals(z: Tensor) -> Tensor:
        a = F.linear(z, (A * mask).flatten(0, 1)).view(len(z), *c.shape)
        return (alpha * torch.sigmoid(a + c)).sum(2) + b

    return Rival(parameters, conditionals, passes=model.dim)


def _dense(layer: CausalLinear) -> Tensor:
    """The layer's weights as a matrix, (n, d, n), with zeros where it has none."""
    n, weight = layer.blocks[-1][1], layer.within
    outputs: Tensor = layer(torch.eye(n, dtype=weight.dtype, device=weight.device))
    return outputs.permute(1, 2, 0)


# ---- NADE: a_t = c + Σ_{j<t} z_j W[j], h_t = σ(a_t), logit_t = b_t + V[t]·h_t ---------------------------


def nade_loop(model: NADE) -> Rival:
    """A Python step per pixel, as public implementations write it: W (d, n) as in the paper, a slice at each step.

    The gradient of a slice is a whole matrix that is 0 everywhere else, and n of them are added up.
    """
    W, c, V, b = parameters = _own(model.W.t(), model.c, model.V, model.b)

    def conditionals(z: Tensor) -> Tensor:
        a, logits = c.expand(len(z), -1), []
        for t in range(z.shape[1]):
            now = slice(t, t + 1)
            logits.append(torch.sigmoid(a) @ V[now].t() + b[now])
            a = a + z[:, now] @ W[:, now].t()
        return torch.cat(logits, 1)

    return Rival(parameters, conditionals, passes=1)


def nade_unbound(model: NADE) -> Rival:
    """The same loop over rows that are taken apart once, so that their gradients are put together once."""
    W, c, V, b = parameters = _own(model.W, model.c, model.V, model.b)

    def conditionals(z: Tensor) -> Tensor:
        a, logits = c.expand(len(z), -1), []
        for z_t, W_t, V_t in zip(z.unbind(1), W.unbind(), V.unbind(), strict=True):
            logits.append(torch.sigmoid(a) @ V_t)
            a = a + torch.outer(z_t, W_t)
        return torch.stack(logits, 1) + b

    return Rival(parameters, conditionals, passes=1)


def nade_cumsum(model: NADE) -> Rival:
    """All steps at once, by a cumulative sum over (B, n, d)."""
    W, c, V, b = parameters = _own(model.W, model.c, model.V, model.b)

    def conditionals(z: Tensor) -> Tensor:
        added = z.unsqueeze(2) * W
        a = torch.cat([c.expand(len(z), 1, -1), added[:, :-1]], 1).cumsum(1)
        return torch.einsum("btd,td->bt", torch.sigmoid(a), V) + b

    return Rival(parameters, conditionals, passes=model.dim)


def nade_chunked(model: NADE) -> Rival:
    """The cumulative sum over chunks of steps, computed again in the backward pass: this package's torch kernel."""
    W, c, V, b = parameters = _own(model.W, model.c, model.V, model.b)
    return Rival(parameters, lambda z: nade_torch.conditionals(z, W, c, V, b), passes=model.dim)


# ---- orderless NADE, MADE and PixelCNN ----------------------------------------------------------------


def deep_nade_whole(model: DeepNADE) -> Rival:
    """The likelihood of one order as a Python step per pixel, each a pass through the whole network.

    As a training step it is the gradient of that likelihood: what one random step of each image saves.
    """
    pixels = model.order
    W, U, b, V, c = parameters = _own(model.W[pixels], model.U[pixels], model.b, model.V[pixels], model.c[pixels])
    inner = [_own(layer.weight, layer.bias) for layer in model.layers]

    def conditionals(z: Tensor) -> Tensor:
        seen, logits = torch.zeros_like(z), []
        for t in range(z.shape[1]):
            h = F.relu((z * seen) @ W + seen @ U + b)
            for weight, bias in inner:
                h = F.relu(F.linear(h, weight, bias))
            logits.append(h @ V[t] + c[t])
            seen = seen.index_fill(1, torch.tensor(t, device=z.device), 1)
        return torch.stack(logits, 1)

    return Rival([*parameters, *itertools.chain(*inner)], conditionals, passes=1)


def made_masked(model: MADE) -> Rival:
    """Dense matrices, masked at every step, as public implementations write them."""
    layers = [*model.layers, *([model.direct] if model.direct else [])]
    weights = _own(*(layer.weight.t() for layer in layers))
    masks = [
        torch.arange(weight.shape[1], device=weight.device) < torch.tensor(layer.seen, device=weight.device)[:, None]
        for weight, layer in zip(weights, layers, strict=True)
    ]
    biases = _own(*(layer.get_parameter("bias") for layer in model.layers))

    def conditionals(z: Tensor) -> Tensor:
        h, last = z, len(biases) - 1
        for weight, mask, bias in list(zip(weights, masks, biases, strict=False))[:last]:
            h = F.relu(F.linear(h, weight * mask, bias))
        logits = F.linear(h, weights[last] * masks[last], biases[last])
        return logits + F.linear(z, weights[-1] * masks[-1]) if model.direct else logits

    return Rival([*weights, *biases], conditionals, passes=model.dim)


def pixelcnn_masked(model: PixelCNN) -> Rival:
    """The same network with convolutions around each place, whose later half is masked."""
    twin = copy.deepcopy(model)
    for module in list(twin.modules()):
        for name, child in module.named_children():
            if isinstance(child, RowsAbove | RowSoFar):
                setattr(module, name, _Masked(child))
    return Rival(list(twin.parameters()), twin.conditionals, passes=model.dim // model.patch**2)


def pixelcnn_by_pixels(model: PixelCNN) -> Rival:
    """Another function: as wide, as deep and with as large windows, over single pixels (``patch: 1``)."""
    block, above = model.blocks[0], model.above
    twin = PixelCNN(
        shape=model.shape,
        channels=model.places.shape[1],
        blocks=len(model.blocks),
        patch=1,
        window=(block.K_v.rows, block.K_v.columns),
        width=block.K_h.columns,
        first=(above.rows, above.columns),
        gates=block.gates,
        dropout=block.dropout,
    ).to(model.b)
    return Rival(list(twin.parameters()), twin.conditionals, passes=model.dim)


class _Masked(nn.Module):
    """(B, R, C, inputs) → (B, R, C, outputs) by one convolution whose weight is masked at every step."""

    mask: Tensor

    def __init__(self, conv: RowsAbove | RowSoFar) -> None:
        super().__init__()
        _, _, left, _, above, _ = (*conv.padding, 0, 0)[:6]
        self.padding = (above, left)
        whole = conv.weight.new_zeros(*conv.weight.shape[:2], 2 * above + 1, 2 * left + 1)
        whole[:, :, : conv.rows, : conv.columns] = conv.weight.detach()
        self.weight = nn.Parameter(whole)
        self.register_buffer("mask", torch.zeros_like(whole))
        self.mask[:, :, : conv.rows, : conv.columns] = 1

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(x.permute(0, 3, 1, 2), self.weight * self.mask, padding=self.padding)
        return y.permute(0, 2, 3, 1)


def transformer_whole(model: Transformer) -> Rival:
    """The same network with the whole matrix of attention, masked, and no cache: a full pass for each patch drawn."""
    twin = copy.deepcopy(model)
    for block in twin.blocks:
        block.__class__ = _WholeAttention
    return Rival(list(twin.parameters()), twin.conditionals, passes=model.dim // model.patch**2)


class _WholeAttention(Block):
    def attend(self, x: Tensor, turn: Tensor, cache: Cache | None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        a = rotate(q, turn) @ rotate(k, turn).transpose(2, 3) / q.shape[3] ** 0.5
        later = torch.ones(a.shape[2:], dtype=torch.bool, device=a.device).triu(1)
        mean = a.masked_fill(later, -math.inf).softmax(3) @ v
        out: Tensor = self.out(mean.transpose(1, 2).flatten(2))
        return out


RIVALS: dict[str, dict[str, Callable[[Any], Rival]]] = {
    "fvsbn": {"dense, masked": fvsbn_masked},
    "mlp": {"dense, masked": mlp_masked},
    "nade": {
        "Python loop, as in public code": nade_loop,
        "Python loop, rows unbound": nade_unbound,
        "torch, in chunks": nade_chunked,
        "torch, cumsum": nade_cumsum,
    },
    "made": {"dense, masked": made_masked},
    "deep_nade": {"the whole network at each step": deep_nade_whole},
    "pixelcnn": {"masked convolutions": pixelcnn_masked, BY_PIXELS: pixelcnn_by_pixels},
    "transformer": {"whole attention, no cache": transformer_whole},
}
