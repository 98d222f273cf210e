"""What Lightning adds: an epoch through DensityModule and the Trainer against a bare loop over the same batches."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig
from torch import Tensor

from chainrule.bench.clock import Clock, spread
from chainrule.bench.job import Job
from chainrule.data.images import Batches
from chainrule.density import AutoregressiveDensity
from chainrule.runs.directory import RunDir
from chainrule.training.callbacks import csv_logger
from chainrule.training.checkpoints import Savers, SealedFiles
from chainrule.training.module import DensityModule

SCORE_BATCH = 1000
VALIDATION = 5  # training images per validation image, as 50,000 to 10,000


class Stopwatch(Callback):
    """Times what lies between the start and the end of training: the epoch, its validation, logs and checkpoints.

    Making a Trainer and tearing it down, once a run, is not part of an epoch.
    """

    seconds = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._started = time.perf_counter()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.seconds = time.perf_counter() - self._started


class Epoch:
    """One epoch over the same images, either way; both train, validate and step the schedule."""

    def __init__(self, cfg: DictConfig, job: Job, count: int) -> None:
        self.cfg, self.job, self.count = cfg, job, count
        images = job.images(count + max(1, count // VALIDATION))
        self.train, self.valid = images[:count], images[count:]

    def lightning(self) -> float:
        """Seconds, with the callbacks and the CSV log of a run of ``chainrule train``, without its progress bar."""
        optimizer, scheduler = (instantiate(self.cfg[part], _convert_="all") for part in ("optimizer", "scheduler"))
        module = DensityModule(self.job.density(), optimizer=optimizer, scheduler=scheduler, train_size=self.count)
        watch = Stopwatch()
        with tempfile.TemporaryDirectory() as folder:
            trainer = self._trainer(Path(folder), watch)
            trainer.fit(module, *self._batches())
        return watch.seconds

    def _trainer(self, folder: Path, watch: Stopwatch) -> L.Trainer:
        log = csv_logger(run_dir=folder, name="", config={})
        make = instantiate(self.cfg.trainer, _partial_=True, _convert_="all")
        trainer: L.Trainer = make(
            accelerator=self.job.device, max_epochs=1, enable_progress_bar=False,
            callbacks=[watch, Savers(RunDir(folder).checkpoints)], plugins=[SealedFiles()], logger=[log],
            default_root_dir=folder,
        )  # fmt: skip
        return trainer

    def bare(self) -> float:
        """Seconds of the plain loop."""
        density = self.job.density()
        optimizer = instantiate(self.cfg.optimizer, _convert_="all")(density.parameters())
        train, valid = self._batches()
        scheduler = instantiate(self.cfg.scheduler, _convert_="all")(optimizer, len(train))
        started = time.perf_counter()
        for x in train:
            optimizer.zero_grad()
            (-density.log_prob(x).mean()).backward()
            optimizer.step()
            scheduler.step()
        _mean_nll(density.eval(), valid)
        return time.perf_counter() - started

    def _batches(self) -> tuple[Batches, Batches]:
        return Batches(self.train, self.job.batch, self.job.seed), Batches(self.valid, SCORE_BATCH)


@torch.no_grad()
def _mean_nll(density: AutoregressiveDensity, batches: Iterable[Tensor]) -> float:
    nats = torch.cat([-density.log_prob(x).double() for x in batches])
    return float(nats.mean())


def of_lightning(cfg: DictConfig, job: Job, count: int, clock: Clock) -> dict[str, Any]:
    """Lightning's epoch over the bare one's, in turns. Each epoch starts anew, so each times itself."""
    epoch = Epoch(cfg, job, count)
    epoch.lightning(), epoch.bare()
    pairs = torch.tensor([(epoch.lightning(), epoch.bare()) for _ in range(clock.rounds)]).numpy()
    return {
        "images": count,
        "seconds": {"lightning": asdict(spread(pairs[:, 0])), "bare": asdict(spread(pairs[:, 1]))},
        "ratio": asdict(spread(pairs[:, 0] / pairs[:, 1])),
    }
