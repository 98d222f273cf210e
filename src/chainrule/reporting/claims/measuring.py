"""Finished runs to figures: from their records, and from what only the densities themselves can tell."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Sequence
from statistics import fmean

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from chainrule.bench.clock import Action, Clock, spread
from chainrule.bench.speed import score
from chainrule.data import Images
from chainrule.density import AutoregressiveDensity
from chainrule.evaluation import scoring
from chainrule.evaluation.empirical import Empirical, empirical
from chainrule.reporting.claims.figures import MANY, Figures, Place, Seconds, Support
from chainrule.reporting.tables import Record, Row, Section
from chainrule.runs.directory import load_config, open_run
from chainrule.runs.load import load_autoregressive

log = logging.getLogger(__name__)


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
    data = scoring.load_data(cfg, load_config(open_run(record.path)).data)
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
    densities = [load_autoregressive(r.path) for r in row.records]
    on_train, on_test = _cross_entropies(densities, train, test)
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
        nll=np.mean([scoring.nll_per_image(p, data.test) for p in densities], axis=0),
    )


def _cross_entropies(densities: Sequence[AutoregressiveDensity], *sets: Empirical) -> list[float]:
    """The mean over the densities, for each set; in float64 where images are small enough to make KL telling."""
    small = all(_support(images).telling for images in sets)
    exact = [copy.deepcopy(p).double() if small else p for p in densities]
    return [fmean(images.cross_entropy(p) for p in exact) for images in sets]


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
