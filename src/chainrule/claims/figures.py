"""What is measured of finished runs: their records, and what only the densities themselves can tell."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig
from torch import Tensor

from chainrule import experiment, runs
from chainrule.bench.clock import Action, Clock, spread
from chainrule.bench.speed import score
from chainrule.claims.formulas import FORMULAS, Formula
from chainrule.data import Images
from chainrule.density import AutoregressiveDensity
from chainrule.empirical import Empirical, empirical
from chainrule.tables import Record, Row, Section

log = logging.getLogger(__name__)

MANY = 1000  # images scored and drawn at once
REPEATING = 0.9  # of so many distinct images in a set, its entropy says nothing more


@dataclass(frozen=True)
class Seconds:
    """Until an image alone is there, and for each of ``MANY`` at once; ``passes``: drawn by n full passes."""

    score_one: float
    draw_one: float
    passes_one: float
    score_many: float
    draw_many: float


@dataclass(frozen=True)
class Figures:
    """What was measured of a model; NLL and KL in nats, means over its seeds. ``train`` is of all training images."""

    model: str
    n: int
    d: int | None
    parameters: int
    seeds: tuple[int, ...]
    valid: float
    train: float
    test: float
    test_stderr: float
    kl_train: float
    kl_test: float
    images_per_second: float | None  # of training; None for what was written down, not trained
    seconds: Seconds
    nll: NDArray[np.float64] = field(repr=False)  # (N,) of each test image

    @property
    def name(self) -> str:
        return self.model if self.d is None else f"{self.model}-{self.d}"

    @property
    def formula(self) -> Formula:
        return FORMULAS[self.model]

    @property
    def claimed(self) -> int:
        """The parameters that the text's formula counts."""
        return self.formula.count(self.n, self.d or 0)

    @property
    def leading(self) -> int:
        """What the text says that they are of the order of."""
        return self.formula.leading(self.n, self.d or 0)


@dataclass(frozen=True)
class Support:
    """The size of a set of images, how many of them differ, and the entropy in nats of their distribution."""

    total: int
    distinct: int
    entropy: float

    @property
    def telling(self) -> bool:
        """Whether images repeat often enough for a KL to say more than an NLL."""
        return self.distinct < REPEATING * self.total


@dataclass(frozen=True)
class Place:
    """All that was scored on one test set."""

    data: str
    side: int
    n: int
    sha256: str
    train: Support
    test: Support
    figures: tuple[Figures, ...]

    def of(self, model: str) -> list[Figures]:
        return [f for f in self.figures if f.model == model]

    def selected(self, model: str, below: float = math.inf) -> Figures | None:
        """The one with the lowest validation NLL, of those with fewer than ``below`` parameters."""
        small = [f for f in self.of(model) if f.parameters < below]
        return min(small, key=lambda f: f.valid, default=None)


# ---- measuring --------------------------------------------------------------------------------------


def measure_place(section: Section, cfg: DictConfig, clock: Clock) -> Place:
    """Everything about the runs on one test set.

    Raises:
        ValueError: the images at hand are not those of the runs, or a checkpoint is damaged.
        OSError: images or checkpoints cannot be found.
    """
    data = _load(section.rows[0].first, cfg)
    train, test = empirical(data.train), empirical(data.test)
    figures = [_measure(row, train, test, data, clock) for row in _best(section.rows)]
    return Place(section.data, section.side, section.n, section.sha256, _support(train), _support(test), tuple(figures))


def _best(rows: Sequence[Row]) -> list[Row]:
    """Of several settings of one model and size, those with the lowest validation NLL."""
    best: dict[tuple[str, int | None], Row] = {}
    for row in sorted(rows, key=_valid):
        best.setdefault((row.first.model, _hidden(row)), row)
    return list(best.values())


def _valid(row: Row) -> float:
    return fmean(r.nll["valid"].mean for r in row.records)


def _hidden(row: Row) -> int | None:
    d = row.first.settings.get("model.hidden")
    return d if isinstance(d, int) else None


def _load(record: Record, cfg: DictConfig) -> Images:
    data = experiment.load_data(cfg, runs.load_config(runs.open_run(record.path)).data)
    if data.sha256 != record.raw["data"]["sha256"]:
        raise ValueError(
            f"{record.path} is of other {data.name} images (test set SHA-256 {record.sha256[:12]}…) than are in "
            f"{cfg.paths.data_dir} ({data.sha256['test'][:12]}…): give their paths.data_dir"
        )
    return data


def _support(images: Empirical) -> Support:
    return Support(images.total, images.distinct, images.entropy)


def _measure(row: Row, train: Empirical, test: Empirical, data: Images, clock: Clock) -> Figures:
    first, d = row.first, _hidden(row)
    log.info("%s, n = %d%s", first.model, first.n, "" if d is None else f", d = {d}")
    densities = [runs.load_autoregressive(r.path) for r in row.records]
    crosses = [(train.cross_entropy(p), test.cross_entropy(p)) for p in densities]
    on_train, on_test = (fmean(c) for c in zip(*crosses, strict=True))
    return Figures(
        model=first.model,
        n=first.n,
        d=d,
        parameters=densities[0].parameter_count,
        seeds=tuple(r.seed for r in row.records),
        valid=_valid(row),
        train=on_train,
        test=row.nll,
        test_stderr=row.stderr,
        kl_train=on_train - train.entropy,
        kl_test=on_test - test.entropy,
        images_per_second=row.mean("images_per_second") or None,
        seconds=_seconds(densities[0], data.test, clock),
        nll=np.mean([experiment.nll_per_image(p, data.test) for p in densities], axis=0),
    )


def _seconds(density: AutoregressiveDensity, images: Tensor, clock: Clock) -> Seconds:
    many = images.repeat(math.ceil(MANY / len(images)), 1)[:MANY]
    actions: dict[str, tuple[Action, int]] = {
        "score_one": (lambda: score(density, many[:1]), 1),
        "draw_one": (lambda: density.sample(1), 1),
        "passes_one": (lambda: draw_by_passes(density, torch.rand(1, density.dim)), 1),
        "score_many": (lambda: score(density, many), MANY),
        "draw_many": (lambda: density.sample(MANY), MANY),
    }
    times = clock.alternate({name: action for name, (action, _) in actions.items()})
    return Seconds(**{name: spread(times[name]).median / count for name, (_, count) in actions.items()})


@torch.no_grad()
def draw_by_passes(density: AutoregressiveDensity, u: Tensor) -> Tensor:
    """Sampling as the text describes it: a full pass for each pixel, (B, n) uniforms in chain order → bits."""
    z = torch.zeros_like(u)
    for t in range(density.dim):
        z[:, t] = u[:, t] < torch.sigmoid(density.conditionals(z)[:, t])
    return z


def difference(a: Figures, b: Figures) -> tuple[float, float]:
    """``a`` minus ``b``: the mean paired difference of test NLL in nats, and its standard error over images."""
    d = a.nll - b.nll
    return float(d.mean()), float(d.std(ddof=1)) / math.sqrt(len(d))


def same_images(places: Sequence[Place], *models: str) -> list[tuple[Place, list[Figures]]]:
    """The places where all these models are, and of each model the selected one."""
    found = [(place, [place.selected(model) for model in models]) for place in places]
    return [(place, [f for f in chosen if f]) for place, chosen in found if all(chosen)]
