"""Every model that ``conf/model/`` knows, small enough that 3×3 images are all there is to say about it."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, cast

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from chainrule.density import AutoregressiveDensity

ROOT = Path(__file__).resolve().parents[1]
MODELS = sorted(path.stem for path in (ROOT / "conf/model").glob("*.yaml"))
SMALL: dict[str, Any] = {"hidden": 5, "block": 4}  # what a configuration has of these is made small


def configuration(name: str) -> DictConfig:
    return cast(DictConfig, OmegaConf.load(ROOT / "conf/model" / f"{name}.yaml"))


def build(name: str, shape: tuple[int, int] = (3, 3), seed: int = 0, **arguments: object) -> AutoregressiveDensity:
    """The model in float64 and evaluation mode, with every parameter perturbed."""
    cfg = configuration(name)
    chosen = {key: value for key, value in (SMALL | arguments).items() if key in cfg}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: AutoregressiveDensity = instantiate(cfg, shape=shape, _convert_="all", **chosen).double().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
    return model


def every_image(n: int = 9) -> Tensor:
    """All 2ⁿ images, (2ⁿ, n) float64."""
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=n)), dtype=torch.float64)
