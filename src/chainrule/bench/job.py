"""What is measured: a model of a size, images for it, and its training step."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from chainrule.bench.strokes import shape_of, strokes
from chainrule.density import AutoregressiveDensity

BATCHES = 8  # different ones, so that no branch is learned by heart


@dataclass(frozen=True)
class Job:
    """A model and how it is trained; nothing but builtins, so that another process can be told.

    Args:
        model: its configuration, without the shape.
        n: pixels.
        optimizer: its configuration.
        batch: images in a training step.
        seed: of weights, images and samples.
        device: where it is computed, ``cpu`` or ``cuda``.
    """

    model: dict[str, Any]
    n: int
    optimizer: dict[str, Any]
    batch: int
    seed: int
    device: str = "cpu"

    @property
    def d(self) -> int | None:
        """Hidden units, where there are some."""
        return self.model.get("hidden")

    @property
    def shape(self) -> tuple[int, int]:
        return shape_of(self.n)

    def changed(self, **model: object) -> Job:
        """The same with other arguments of the model."""
        return replace(self, model=self.model | model)

    def density(self) -> AutoregressiveDensity:
        """The model with its biases at the images' log-odds: its samples have as many pixels on as they."""
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            density: AutoregressiveDensity = instantiate(self.model, shape=self.shape, _convert_="all")
        density.to(self.device).initialize(self.images(BATCHES * self.batch)[:, density.order])
        return density

    def images(self, count: int) -> Tensor:
        """(count, n) uint8."""
        return strokes(count, self.shape, self.seed).to(self.device)

    def training(self) -> Training:
        return Training(self, self.density())


def job(cfg: DictConfig, name: str, n: int, d: int | None = None) -> Job:
    """The job of a model of ``cfg.zoo`` at a size; ``d`` where the model has hidden units."""
    return Job(
        model=_plain(cfg.zoo[name]) | ({} if d is None else {"hidden": d}),
        n=n,
        optimizer=_plain(cfg.optimizer),
        batch=cfg.batch,
        seed=cfg.seed,
        device=cfg.device,
    )


def _plain(cfg: DictConfig) -> dict[str, Any]:
    content = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(content, Mapping)
    return {str(key): value for key, value in content.items()}


class Training:
    """A training step each time it is called: forward, backward, optimizer, on the next batch."""

    def __init__(self, job: Job, density: AutoregressiveDensity, *, bf16: bool = False) -> None:
        self.density, self.bf16, self.device = density.train(), bf16, job.device
        self.optimizer: torch.optim.Optimizer = instantiate(job.optimizer, _convert_="all")(density.parameters())
        self.size = BATCHES * job.batch
        self.batches = itertools.cycle(job.images(self.size).split(job.batch))

    def __call__(self) -> None:
        x = next(self.batches)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bf16):
            nll = -self.density.log_prob(x).mean() - self.density.log_prior() / self.size
        self.optimizer.zero_grad()
        nll.backward()
        self.optimizer.step()
