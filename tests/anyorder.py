"""A model that works in every order, as small as can be, and the command line with it in this process."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from chainrule import cli
from chainrule.density import AutoregressiveDensity


class AnyOrder(AutoregressiveDensity):
    """A linear logit of whatever pixels come before: the weights belong to pixels, not to steps."""

    any_order: ClassVar[bool] = True

    def __init__(self, *, shape: tuple[int, int], order: str = "raster", **_: object) -> None:
        super().__init__(shape=shape, order=order)
        self.W = nn.Parameter(0.1 * torch.randn(self.dim, self.dim))
        self.b = nn.Parameter(torch.zeros(self.dim))

    def conditionals(self, z: Tensor) -> Tensor:
        W = self.W[self.order][:, self.order].tril(-1)
        return z @ W.T + self.b[self.order]

    def loss(self, x: Tensor) -> Tensor:
        return -self.reordered(torch.randperm(self.dim)).log_prob(x)


def command(patch: pytest.MonkeyPatch, folder: Path, *words: str) -> None:
    patch.chdir(folder)
    patch.setattr(sys, "argv", ["chainrule", *words])
    patch.delenv("HYDRA_FULL_ERROR", raising=False)
    cli.main()


def train(run: Path) -> None:
    words = ["data=toy", "model=fvsbn", "model._target_=anyorder.AnyOrder", "logger=none", "trainer.max_epochs=3"]
    with pytest.MonkeyPatch.context() as patch:
        command(patch, run.parent, "train", *words, "optimizer.lr=0.03", f"hydra.run.dir={run.name}")
