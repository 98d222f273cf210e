"""The arithmetic and the memory traffic of one NADE training step, by formula, and what the machine could do.

B images, n pixels, d hidden units, p = Bnd, K pixels on in all images together, P = 2nd + n + d parameters. A
multiply-add is 2 operations and a sigmoid ``SIGMOID``: the compiled one takes 18 and a clamp, one by way of an
exponential about as many. What costs Bn operations or fewer, such as the loss, is left out.

**kernel** has K + B distinct hidden states, and each array passes once a pass:

    forward     2p  V[t]·h        Kd  a + W[j]               (K + B) d  sigmoids
    backward    4p  into h and V  2Kd a again, into W        (K + B) d  sigmoids and 4 operations, h(1 − h) and sums
    bytes       4 (6nd + 4Bn):  W and V twice, their gradients; bits twice, logits, their gradient

**cumsum**, the tensors (B, n, d) read and written by torch's operations, one after the other:

    forward     p z·W, p cumsum, sigmoids, 2p V·h             written 1, cat 2, cumsum 2, sigmoid 2, product 1
    backward    p into h, 2p into V, 3p sigmoid, p cumsum,    1 + 1 + 3, cumsum 6 (it flips twice),
                p into a, 2p into W                           slice 2, into W 3

**chunked** does the forward pass twice, and two products more, 2p each, that lead from chunk to chunk.

**loop** and **rows**, the same by steps: tensors (B, d), n times:

    forward     sigmoids, 2p V[t]·h, 2p a + z W[t]            sigmoid 2, product 1, outer 1, sum 3
    backward    p into h, 2p into V, 3p sigmoid, p sums, 2p   1 + 1 + 3, sums 3, into W 1

and, as the gradient of each column or row that is picked out of W and V is a whole matrix, 2n·nd additions and 8n·nd
floats of traffic; where the rows are *unbound* once, 4nd floats.

Each ends with the optimizer: ``ADAM`` operations a parameter, 7 floats of traffic (parameter and two moments in and
out, gradient in).

Traffic is what the operations touch, from memory or from a cache: against the speed of memory, a fraction above 1 says
that caches served.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from chainrule.bench.clock import Clock, spread

SIGMOID = 20
ADAM = 14
FLOAT = 4  # bytes

MATRIX = 2048  # side of the product that the ceiling is measured with
COPY = 1 << 26  # floats, 256 MB: far more than caches hold


@dataclass(frozen=True)
class Sizes:
    """Of a training step: B, n, d and the number of pixels on, K."""

    batch: int
    n: int
    d: int
    on: int

    @property
    def p(self) -> int:
        return self.batch * self.n * self.d

    @property
    def parameters(self) -> int:
        return 2 * self.n * self.d + self.n + self.d


@dataclass(frozen=True)
class Work:
    """Of something that is timed: float32 operations, and bytes read and written."""

    flops: int
    bytes: int


def kernel(s: Sizes) -> Work:
    states = (s.on + s.batch) * s.d
    flops = 6 * s.p + 3 * s.on * s.d + (2 * SIGMOID + 4) * states
    return _with_optimizer(s, flops, 6 * s.n * s.d + 4 * s.batch * s.n)


def chunked(s: Sizes) -> Work:
    return _with_optimizer(s, (2 * (4 + SIGMOID) + 10 + 4) * s.p, (2 * 8 + 16) * s.p)


def cumsum(s: Sizes) -> Work:
    return _with_optimizer(s, (4 + SIGMOID + 10) * s.p, (8 + 16) * s.p)


def loop(s: Sizes) -> Work:
    matrix = s.n * s.d
    return _with_optimizer(s, (4 + SIGMOID + 9) * s.p + 2 * s.n * matrix, (7 + 9) * s.p + 8 * s.n * matrix)


def rows(s: Sizes) -> Work:
    return loop(s)


def unbound(s: Sizes) -> Work:
    return _with_optimizer(s, (4 + SIGMOID + 9) * s.p, (7 + 9) * s.p + 4 * s.n * s.d)


def _with_optimizer(s: Sizes, flops: int, floats: int) -> Work:
    return Work(flops + ADAM * s.parameters, FLOAT * (floats + 7 * s.parameters))


WORK: dict[str, Callable[[Sizes], Work]] = {f.__name__: f for f in (kernel, chunked, cumsum, loop, rows, unbound)}


@dataclass(frozen=True)
class Ceiling:
    """What this machine reaches, per second: operations in a large product, bytes in a large copy."""

    flops: float
    bytes: float

    def fractions(self, work: Work, seconds: float) -> tuple[float, float]:
        """How near to it the work came that took so many seconds."""
        return work.flops / seconds / self.flops, work.bytes / seconds / self.bytes


@torch.no_grad()
def ceiling(clock: Clock) -> Ceiling:
    a, b = torch.randn(2, MATRIX, MATRIX, device=clock.device)
    product = torch.empty_like(a)
    source, target = torch.ones(COPY, device=clock.device), torch.zeros(COPY, device=clock.device)
    seconds = clock.alternate({"flops": lambda: torch.mm(a, b, out=product), "bytes": lambda: target.copy_(source)})
    return Ceiling(
        flops=2 * MATRIX**3 / spread(seconds["flops"]).median,
        bytes=2 * FLOAT * COPY / spread(seconds["bytes"]).median,
    )
