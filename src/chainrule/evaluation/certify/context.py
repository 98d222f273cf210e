"""What is certified, what it may cost, and what a check may say of it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from chainrule.density import AutoregressiveDensity, BinaryDensity
from chainrule.evaluation.scoring import BATCH, in_batches
from chainrule.mixture import Mixture, OrderEnsemble
from chainrule.testing import walk_along

Figures = dict[str, object]
SMALL = 64  # pixels: up to here the default walk, which recomputes everything at every step, is cheap


class CheckFailed(Exception):  # noqa: N818 (it is a verdict about a model, not an error of ours)
    """A check failed. The message is for people; the figures are the first counterexample."""

    def __init__(self, message: str, **figures: object) -> None:
        super().__init__(message)
        self.figures = figures


class NotApplicable(Exception):  # noqa: N818
    """A check says nothing about this kind of density; the message says why."""


@dataclass(frozen=True)
class Context:
    """A density and the images that it is tested on.

    Args:
        density: as it computed the number: in its own precision, with its own kernels.
        test: all test images, (N, n) uint8.
        nll: of each test image in the record, (N,) float64 nats.
        n: images that are coded; more than there are means all.
        k: pixels over whose values completions are summed.
        seed: which images are chosen, and which are drawn.
        seconds: what all checks together may take, about; costly models are checked on fewer images.
    """

    density: BinaryDensity
    test: Tensor
    nll: Tensor
    n: int = 1000
    k: int = 12
    seed: int = 0
    seconds: float = 100.0

    @cached_property
    def exact(self) -> BinaryDensity:
        """The density in float64, without compiled kernels."""
        return self.density.reference()

    def chosen(self, count: int) -> list[int]:
        """Numbers of random test images, in ascending order; fewer than ``count`` where there are fewer."""
        return sorted(torch.randperm(len(self.test), generator=self.generator())[:count].tolist())

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    def within(self, share: float, count: int, start: int = 8) -> Iterator[range]:
        """Growing parts of ``count`` things, until the next would exceed this share of the time. One is always done."""
        began, done, size = time.perf_counter(), 0, start
        while done < count:
            part, before = range(done, min(done + size, count)), time.perf_counter()
            yield part
            now, done, size = time.perf_counter(), part.stop, min(2 * size, BATCH)
            if now - began + (now - before) * size / len(part) > share * self.seconds:
                return

    def affordable(self, task: Callable[[int], object], share: float, most: int, pilots: tuple[int, int]) -> int:
        """For how many images, up to ``most``, a task ends within a share of the time, going by two small numbers."""
        if pilots[1] >= most:
            return most
        task(pilots[0])  # whatever is compiled or cached is not what it costs
        times = [time.perf_counter()]
        for count in pilots:
            task(count)
            times.append(time.perf_counter())
        few, more = times[1] - times[0], times[2] - times[1]
        # Few images cost hardly more than one, many more than a straight line through few says.
        each = max((more - few) / (pilots[1] - pilots[0]), more / pilots[1] / 2)
        return max(pilots[1], min(most, int(share * self.seconds / each)))


def autoregressive(density: BinaryDensity, why: str) -> list[AutoregressiveDensity]:
    """What has conditionals: the density itself, or one network in each of its orders.

    Raises:
        NotApplicable: it is a mixture of several networks; ``why`` says what they would be needed for.
    """
    if isinstance(density, OrderEnsemble):
        return density.members
    if not isinstance(density, AutoregressiveDensity):
        raise NotApplicable(f"a {type(density).__name__.lower()} has no conditionals {why}")
    return [density]


def combined(density: BinaryDensity, log_prob: Callable[[AutoregressiveDensity], Tensor]) -> Tensor:
    """log p, (N,), from that of each network and order that a density is made of."""
    if isinstance(density, AutoregressiveDensity):
        return log_prob(density)
    assert isinstance(density, Mixture)
    members = torch.stack([combined(member, log_prob) for member in density.members])
    return members.logsumexp(0) - math.log(len(members))


def networks(density: BinaryDensity) -> list[AutoregressiveDensity]:
    """Each network, in each of its orders, that a density is made of."""
    if isinstance(density, Mixture):
        return [network for member in density.members for network in networks(member)]
    assert isinstance(density, AutoregressiveDensity)
    return [density]


def first(wrong: Tensor) -> tuple[int, ...]:
    """Where the first true entry is."""
    return tuple(int(i) for i in wrong.nonzero()[0])


def logits(density: AutoregressiveDensity, x: Tensor) -> Tensor:
    """All conditionals at once, (B, n) float64 in chain order, of pixel-indexed bits."""
    return in_batches(density, x, density.device)[:, density.order.cpu()]


def log_conditionals(density: AutoregressiveDensity, x: Tensor, given: Tensor) -> Tensor:
    """log p(xₜ | x₍<t₎) of pixel-indexed bits by given logits, (B, n) float64 in chain order."""
    return F.logsigmoid((2.0 * x[:, density.order.cpu()] - 1) * given)


def walked(density: AutoregressiveDensity, x: Tensor) -> Tensor:
    """The logits that ``walk`` gives on the way through images, (B, n) float64 in chain order."""
    z = x[:, density.order.cpu()]
    if density.has_cache or density.dim <= SMALL:
        return walk_along(density, z)
    return torch.stack([_unseen(density, image) for image in z])  # the same calls as those of the default walk


def _unseen(density: AutoregressiveDensity, z: Tensor) -> Tensor:
    """Each logit of an image (n,) in chain order, computed where its own pixel and all later ones are 0."""
    prefixes = z.repeat(len(z), 1).tril(-1)
    steps = in_batches(lambda part: density.conditionals(part.to(density.dtype)), prefixes, density.device)
    return steps.diagonal()
