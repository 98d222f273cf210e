"""Every model that ``conf/model/`` knows, small enough that 3×3 images are all there is to say about it."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from hydra.utils import get_class, instantiate
from numpy.typing import ArrayLike
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from chainrule import testing
from chainrule.density import AutoregressiveDensity
from chainrule.orders import ORDERS

ROOT = Path(__file__).resolve().parents[1]
MODELS = sorted(path.stem for path in (ROOT / "conf/model").glob("*.yaml"))


def configuration(name: str) -> DictConfig:
    return cast(DictConfig, OmegaConf.load(ROOT / "conf/model" / f"{name}.yaml"))


def model_class(name: str) -> type[AutoregressiveDensity]:
    return get_class(configuration(name)._target_)


def an_order(name: str, wanted: str = "random-3") -> str:
    """The wanted order, or one that makes sense for the model."""
    orders = model_class(name).orders
    return wanted if orders == ORDERS else orders[-1]


def base_of(kind: type[AutoregressiveDensity]) -> str:
    """The model that a class is derived from: ``fvsbn``, ``nade``, …"""
    return next(c.__module__ for c in kind.__mro__ if c.__module__.startswith("chainrule.models.")).rpartition(".")[2]


def told(name: str) -> dict[str, object]:
    """Arguments that switch on what a Transformer may have, for mistakes that are made there."""
    return {"patch": 2, "told": True} if name == "transformer" else {}


def build(name: str, shape: tuple[int, int] | None = None, seed: int = 0, **arguments: object) -> AutoregressiveDensity:
    """The model in float64 and evaluation mode, made small, with every parameter perturbed."""
    cfg, small = configuration(name), dict(model_class(name).small)
    shape = shape or small.pop("shape", (3, 3))
    chosen = {key: value for key, value in (small | arguments).items() if key in cfg}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = instantiate(cfg, shape=shape, _convert_="all", **chosen)
    return testing.perturbed(model.double().eval(), seed)


def every_image(n: int = 9) -> Tensor:
    """All 2ⁿ images, (2ⁿ, n) float64."""
    return testing.every_image(n)


def chance(counts: ArrayLike, expected: ArrayLike) -> float:
    """Of counts at least as far from what is expected as these: Pearson's χ² test."""
    found, wanted = (torch.as_tensor(values, dtype=torch.float64) for values in (counts, expected))
    assert torch.isclose(found.sum(), wanted.sum(), rtol=1e-8)  # else it is no test of these
    chi2, freedom = ((found - wanted) ** 2 / wanted).sum(), torch.tensor(len(found) - 1.0, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom / 2, chi2 / 2))
