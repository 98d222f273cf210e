"""What is known of a model, and of all models on the same images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from chainrule.reporting.claims.formulas import FORMULAS, Formula

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


def difference(a: Figures, b: Figures) -> tuple[float, float]:
    """``a`` minus ``b``: the mean paired difference of test NLL in nats, and its standard error over images."""
    d = a.nll - b.nll
    return float(d.mean()), float(d.std(ddof=1)) / math.sqrt(len(d))


def same_images(places: Sequence[Place], *models: str) -> list[tuple[Place, list[Figures]]]:
    """The places where all these models are, and of each model the selected one."""
    found = [(place, [place.selected(model) for model in models]) for place in places]
    return [(place, [f for f in chosen if f]) for place, chosen in found if all(chosen)]
