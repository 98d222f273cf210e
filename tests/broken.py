"""Densities that claim what is not so: each mistake has been made in published code."""

from __future__ import annotations

import copy
from collections.abc import Generator

import torch
import torch.nn.functional as F
from torch import Tensor

from chainrule.density import AutoregressiveDensity
from chainrule.models.deep_nade import DeepNADE
from chainrule.models.fvsbn import FVSBN
from chainrule.models.made import MADE
from chainrule.models.nade import NADE
from chainrule.models.transformer import Transformer
from chainrule.nn.attention import Block, Cache
from chainrule.nn.triangular import TriangularLinear
from chainrule.orders import permutation


class PeekingFVSBN(FVSBN):
    """A mask off by one: step t sees its own pixel."""

    def conditionals(self, z: Tensor) -> Tensor:
        return super().conditionals(z) + 0.5 * z


class LateMaskFVSBN(FVSBN):
    """The same mistake at one step only, near the end."""

    def conditionals(self, z: Tensor) -> Tensor:
        logits = super().conditionals(z)
        return logits.index_add(1, torch.tensor([self.dim - 2]), 0.5 * z[:, -1:])


class DoubleSigmoidInWalk(NADE):
    """``walk``, and the sampler on top of it, take the probability for a logit."""

    def walk(self, batch: int) -> Generator[Tensor, Tensor, None]:
        steps = super().walk(batch)
        logits = next(steps)
        for t in range(self.dim):
            z_t = yield torch.sigmoid(logits)
            logits = steps.send(z_t) if t + 1 < self.dim else logits

    def draw(self, u: Tensor) -> Tensor:
        return self.draw_sequentially(u)


class DoubleSigmoidInDraw(FVSBN):
    """Only the sampler does."""

    @torch.no_grad()
    def draw(self, u: Tensor) -> Tensor:
        z = torch.zeros_like(u)
        for t in range(self.dim):
            z[:, t] = u[:, t] < torch.sigmoid(torch.sigmoid(self.conditionals(z)[:, t]))
        return z


class DoubleSigmoidInLogProb(FVSBN):
    """Only the likelihood does."""

    def log_prob(self, x: Tensor) -> Tensor:  # type: ignore[misc]
        x = x.flatten(1).to(self.dtype)
        return F.logsigmoid((2 * x - 1) * torch.sigmoid(self(x))).sum(1)


class UnnormalizedLogProb(FVSBN):
    """Probabilities of ones only: zeros are free."""

    def log_prob(self, x: Tensor) -> Tensor:  # type: ignore[misc]
        return (F.logsigmoid(self(x)) * x.flatten(1).to(self.dtype)).sum(1)


class AveragedLogits(FVSBN):
    """Logits of two orders, averaged: the likelihood of neither."""

    def conditionals(self, z: Tensor) -> Tensor:
        return (super().conditionals(z) + super().conditionals(z.flip(1)).flip(1)) / 2


class BatchNormalized(NADE):
    """Logits normalized by mean and variance of whatever else is in the batch."""

    def conditionals(self, z: Tensor) -> Tensor:
        return F.batch_norm(super().conditionals(z), None, None, training=True, eps=0.1)


class SamplerInAnotherOrder(FVSBN):
    """The sampler believes that its bits are in raster order."""

    def draw(self, u: Tensor) -> Tensor:
        return super().draw(u)[:, self.order]


class SampleInAnotherOrder(FVSBN):
    """``sample`` forgets to put the bits back where they belong."""

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:  # type: ignore[misc]
        return self.draw(torch.rand(n, self.dim, generator=generator, dtype=self.dtype))


class WalkInAnotherOrder(FVSBN):
    """``walk`` visits the pixels in an order of its own."""

    def walk(self, batch: int) -> Generator[Tensor, Tensor, None]:
        steps = super().walk(batch)
        other = permutation("random-9", self.shape)
        weights = [next(steps)]
        for t in range(self.dim):
            z_t = yield weights[-1] * (-1.0) ** int(other[t] % 2)
            if t + 1 < self.dim:
                weights.append(steps.send(z_t))


class Forgetful(FVSBN):
    """Computes other numbers every time: nothing it has coded can be read."""

    calls = 0

    def walk(self, batch: int) -> Generator[Tensor, Tensor, None]:
        Forgetful.calls += 1
        shift = 1 + Forgetful.calls % 3
        steps = super().walk(batch)
        logits = next(steps)
        for t in range(self.dim):
            z_t = yield logits + shift
            logits = steps.send(z_t) if t + 1 < self.dim else logits


class OtherKernel(FVSBN):
    """In float32 another implementation serves, and it is slightly off."""

    def conditionals(self, z: Tensor) -> Tensor:
        return super().conditionals(z) * (1.002 if z.dtype == torch.float32 else 1)


class NotANumber(FVSBN):
    """One logit is no number."""

    def conditionals(self, z: Tensor) -> Tensor:
        return super().conditionals(z).index_fill(1, torch.tensor([5]), float("nan"))

    def walk(self, batch: int) -> Generator[Tensor, Tensor, None]:
        return AutoregressiveDensity.walk(self, batch)


class PeekingInLargeBatches(FVSBN):
    """Sees its own pixel where many images are scored together, as for a record, and nowhere else."""

    def conditionals(self, z: Tensor) -> Tensor:
        logits = super().conditionals(z)
        return logits + 9 * (2 * z - 1) if len(z) >= 150 else logits


def with_blocks(model: Transformer, kind: type[Block]) -> list[Block]:
    """The model's blocks as if they were of another class."""
    blocks = [copy.copy(block) for block in model._modules["blocks"]]
    for block in blocks:
        block.__class__ = kind
    return blocks


class AttentionOffByOne(Transformer):
    """Each patch gets what the next one attends to, and that one has seen it."""

    @property
    def blocks(self) -> list[Block]:
        return with_blocks(self, AheadBlock)


class AheadBlock(Block):
    def attend(self, x: Tensor, turn: Tensor, cache: Cache | None) -> Tensor:
        return super().attend(x, turn, cache).roll(-1, 1)


class StaleCache(Transformer):
    """The walk finds beside each key the value of the step before."""

    @property
    def blocks(self) -> list[Block]:
        return with_blocks(self, StaleBlock)


class StaleBlock(Block):
    def cache(self, batch: int, steps: int) -> Cache:
        return LateValues(super().cache(batch, steps).room)


class LateValues(Cache):
    def extended(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = super().extended(key, value)
        return keys, torch.cat([values[:, :, :1], values[:, :, :-1]], 2)


class UntoldWalk(Transformer):
    """The walk, and the sampler on top of it, do not use the embedding of the order."""

    def walk(self, batch: int) -> Generator[Tensor, Tensor, None]:
        untold = copy.copy(self)
        untold._parameters = {**self._parameters, "told": None}
        return Transformer.walk(untold, batch)


class TableReadBackwards(Transformer):
    """A patch's table is read by its bits in the other direction: the first sees the three after it."""

    def conditionals(self, z: Tensor) -> Tensor:
        return self.backwards(super().conditionals(self.backwards(z)))

    def backwards(self, z: Tensor) -> Tensor:
        return z.unflatten(1, (-1, self.patch**2)).flip(2).flatten(1)


class MaskOffByOne(MADE):
    """The last mask is one step ahead: each output sees the units that have seen its own pixel."""

    @property
    def layers(self) -> list[TriangularLinear]:
        *layers, last = self._modules["layers"]
        inputs = torch.arange(len(last.weight))
        ahead = TriangularLinear(inputs, torch.tensor([*last.seen[1:], len(inputs)]) - 1, block=last.block)
        ahead.to(last.weight).weight, ahead.bias = last.weight, last.bias
        return [*layers, ahead]


class StaleUnits(MADE):
    """The walk, and the sampler on top of it, do not tell the hidden units of the pixel of step 6."""

    def walk(self, batch: int) -> Generator[Tensor, Tensor, None]:
        steps = super().walk(batch)
        logits = next(steps)
        for t in range(self.dim):
            z_t = yield logits
            logits = steps.send(z_t if t != 6 else 0 * z_t) if t + 1 < self.dim else logits


class LogitsAveragedOverOrders(MADE):
    """Logits of the same weights in two orders, averaged: the likelihood of neither."""

    def conditionals(self, z: Tensor) -> Tensor:
        other = copy.copy(self)
        other.__class__ = MADE
        logits = other.reordered(self.order.flip(0)).forward(self._to_pixels(z))
        return (super().conditionals(z) + logits[:, self.order]) / 2


class OrderNotUsed(DeepNADE):
    """A likelihood in raster order, whatever order is asked for."""

    def conditionals(self, z: Tensor) -> Tensor:
        other = copy.copy(self)
        other.__class__ = DeepNADE
        return other.reordered("raster").forward(self._to_pixels(z))[:, self.order]


class PixelsOffAreUnseen(DeepNADE):
    """The walk, and the sampler on top of it, tell the network of an observed pixel only where it is on."""

    @torch.no_grad()
    def walk(self, batch: int) -> Generator[Tensor, Tensor, None]:
        a = self.b.repeat(batch, 1)
        for pixel in self.order.tolist():
            z_t = yield self._deep(a) @ self.V[pixel] + self.c[pixel]
            a += torch.outer(z_t, self.W[pixel] + self.U[pixel])
