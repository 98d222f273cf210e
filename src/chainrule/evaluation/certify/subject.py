"""What is certified, and what a check may say of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from chainrule.density import AutoregressiveDensity, BinaryDensity
from chainrule.evaluation.coding import follow, reference

BATCH = 500  # images scored together

Figures = dict[str, object]


class Refuted(Exception):  # noqa: N818 (it is a verdict about a model, not an error of ours)
    """A check failed. The words are for people; the figures are the first counterexample."""

    def __init__(self, words: str, **figures: object) -> None:
        super().__init__(words)
        self.figures = figures


class NotApplicable(Exception):  # noqa: N818
    """A check says nothing about this kind of density; the words say why."""


@dataclass(frozen=True)
class Subject:
    """A density and the images that it is tested on.

    Args:
        density: as it computed the number: in its own precision, with its own kernels.
        test: all test images, (N, n) uint8.
        n: images that are coded; more than there are means all.
        k: pixels over whose values completions are summed.
        seed: which images are chosen, and which are drawn.
    """

    density: BinaryDensity
    test: Tensor
    n: int = 1000
    k: int = 12
    seed: int = 0

    @cached_property
    def exact(self) -> BinaryDensity:
        """The density in float64, without compiled kernels."""
        return reference(self.density)

    def chosen(self, count: int) -> list[int]:
        """Numbers of random test images, in ascending order; fewer than ``count`` where there are fewer."""
        return sorted(torch.randperm(len(self.test), generator=self.generator())[:count].tolist())

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)


def autoregressive(density: BinaryDensity, why: str) -> AutoregressiveDensity:
    """The density, if it has conditionals.

    Raises:
        NotApplicable: it has none; ``why`` says what for.
    """
    if not isinstance(density, AutoregressiveDensity):
        raise NotApplicable(f"a {type(density).__name__.lower()} has no conditionals {why}")
    return density


@torch.no_grad()
def in_batches(function: Callable[[Tensor], Tensor], density: BinaryDensity, x: Tensor) -> Tensor:
    """``function`` of many images, a part of them at a time, on the density's device; float64 on the CPU."""
    return torch.cat([function(part.to(density.device)).double().cpu() for part in x.split(BATCH)])


def first(wrong: Tensor) -> tuple[int, ...]:
    """Where the first true entry stands."""
    return tuple(int(i) for i in wrong.nonzero()[0])


def log_conditionals(density: AutoregressiveDensity, x: Tensor, logits: Tensor | None = None) -> Tensor:
    """log p(xₜ | x₍<t₎) of pixel-indexed bits, (B, n) float64 in chain order; ``logits`` are theirs, if known."""
    order = density.order.cpu()
    logits = in_batches(density, density, x)[:, order] if logits is None else logits
    return F.logsigmoid((2.0 * x[:, order] - 1) * logits)


def walked(density: AutoregressiveDensity, x: Tensor) -> Tensor:
    """The logits that ``walk`` gives on the way through images, (B, n) float64 in chain order."""
    z = x[:, density.order.cpu()]
    logits = torch.empty(z.shape, dtype=torch.float64)

    def note(t: int, given: Tensor) -> Tensor:
        logits[:, t] = given.cpu()
        return z[:, t]

    follow(density, len(z), note)
    return logits
