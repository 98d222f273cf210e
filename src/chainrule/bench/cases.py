"""What is measured: a model of a size, synthetic images for it, and its training step."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from chainrule.bench.timing import Action
from chainrule.density import AutoregressiveDensity

BATCHES = 8  # different ones, so that no branch is learned by heart
INK = 0.13  # the share of pixels that are on in MNIST, 102 of 784: the cost of a model may depend on it
PIXELS = 784


@dataclass(frozen=True)
class Case:
    """A model and how it is trained.

    Args:
        name: of its configuration.
        model: the configuration, without the shape.
        n: pixels.
        optimizer: its configuration.
        width: the argument of the model that d stands for.
        batch: images in a training step.
        seed: of weights, images and samples.
        device: ``cpu`` or ``cuda``.
    """

    name: str
    model: dict[str, Any]
    n: int
    optimizer: dict[str, Any]
    width: str = "hidden"
    batch: int = 100
    seed: int = 0
    device: str = "cpu"

    @property
    def d(self) -> object:
        return self.model.get(self.width)

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width), as near to a square as n allows."""
        height = next(h for h in range(math.isqrt(self.n), 0, -1) if self.n % h == 0)
        return height, self.n // height

    def density(self) -> AutoregressiveDensity:
        """The model, prepared on the images: its samples have as many pixels on."""
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            density: AutoregressiveDensity = instantiate(self.model, shape=self.shape, _convert_="all")
        density.to(self.device).prepare(self.images(BATCHES * self.batch))
        return density

    def images(self, count: int) -> Tensor:
        """(count, n) uint8: blobs of smoothed noise with MNIST's share of pixels on."""
        noise = torch.randn(count, 1, *self.shape, generator=torch.Generator().manual_seed(self.seed))
        on = F.avg_pool2d(noise, 3, stride=1, padding=1).flatten(1).topk(max(1, round(INK * self.n))).indices
        return torch.zeros(count, self.n, dtype=torch.uint8).scatter_(1, on, 1).to(self.device)

    def training_step(self, parameters: Iterable[nn.Parameter], objective: Callable[[Tensor], Tensor]) -> Action:
        """Forward and backward pass and an update, on the next batch each time it is called.

        Args:
            parameters: what is trained.
            objective: (B, n) images → a scalar to minimize.
        """
        try:
            optimizer: torch.optim.Optimizer = instantiate(self.optimizer, _convert_="all")(parameters)
        except Exception as error:  # torch checks little before it computes with what it was given
            raise ValueError(f"optimizer: {error}") from error
        batches = itertools.cycle(self.images(BATCHES * self.batch).split(self.batch))

        def step() -> None:
            loss = objective(next(batches))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        return step

    def training(self, density: AutoregressiveDensity) -> Action:
        """A training step of the model itself."""
        count = BATCHES * self.batch
        objective = lambda x: density.loss(x).mean() - density.log_prior() / count  # noqa: E731
        return self.training_step(density.train().parameters(), objective)


def inference(density: AutoregressiveDensity, x: Tensor, generator: torch.Generator | None = None) -> dict[str, Action]:
    """Scoring images (B, n), one forward pass over them, and drawing as many."""
    z = x[:, density.order].to(density.dtype)
    return {
        "score": lambda: density.log_prob(x),
        "pass": lambda: density.conditionals(z),
        "sample": lambda: density.sample(len(x), generator),
    }


def make_case(cfg: DictConfig, name: str) -> Case:
    """The case of a model of ``cfg.zoo``."""
    parts: dict[str, Any] = {
        key: OmegaConf.to_container(part, resolve=True)
        for key, part in (("model", cfg.zoo[name]), ("optimizer", cfg.optimizer))
    }
    n, width = cfg.pixels.get(name, PIXELS), cfg.width.get(name, "hidden")
    return Case(name=name, n=n, width=width, batch=cfg.batch, seed=cfg.seed, device=cfg.device, **parts)
