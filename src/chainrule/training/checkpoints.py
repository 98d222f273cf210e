"""Checkpoints that survive: written whole, checked before they are used, and exact to go on from."""

from __future__ import annotations

import csv
import io
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import CSVLogger

from chainrule.files import content_of, is_intact, seal, write_whole

log = logging.getLogger(__name__)

BEST, LAST, PREVIOUS = "best.ckpt", "last.ckpt", "previous.ckpt"
OURS = "chainrule"  # where our part of a checkpoint is
TRAINING = ("optimizer_states", "current_model_state")  # the latter of EMA: the weights that it averages


class SealedFiles(CheckpointIO):
    """Writes and reads checkpoints: files with a checksum, whole or absent; ``last.ckpt`` keeps its predecessor.

    ``best.ckpt`` leaves out what only training needs: nobody resumes from it, and people hand it on.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: object = None) -> None:
        file = Path(path)
        previous = file.with_name(PREVIOUS) if file.name == LAST else None
        if file.name == BEST:
            checkpoint = {key: value for key, value in checkpoint.items() if key not in TRAINING}
        write_whole(file, seal(content_of(lambda archive: torch.save(checkpoint, archive))), previous=previous)

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any = "cpu",  # noqa: ANN401
        weights_only: bool | None = True,
    ) -> dict[str, Any]:
        """Reads a checkpoint without executing anything, whatever Lightning's own default is."""
        content: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=True)
        return content

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)


def resumable(folder: Path) -> Path | None:
    """The newest checkpoint that a run can go on from; None: it starts from the beginning.

    What is torn or altered is passed over, with a warning in the log; ``last.ckpt`` is removed then, or the next one
    written would push it onto ``previous.ckpt``, which is good.
    """
    good = [folder / name for name in (LAST, PREVIOUS) if _usable(folder / name)]
    if folder / LAST not in good:
        (folder / LAST).unlink(missing_ok=True)
    if good and not _usable(folder / BEST):
        log.warning("%s has no usable %s: the run starts from the beginning", folder, BEST)
        return None
    return good[0] if good else None


@dataclass(frozen=True)
class Progress:
    """How far a run has come."""

    best_epoch: int
    epochs: int
    steps: int  # of the optimizer
    seconds: float  # of training, over all parts of the run
    images_per_second: float  # of the last epoch
    kernel: str | None  # that trained


def progress(folder: Path) -> Progress:
    """How far the run has come whose checkpoints these are, in whichever process it was trained."""
    path = next(path for path in (folder / LAST, folder / PREVIOUS, folder / BEST) if path.is_file())
    found = SealedFiles().load_checkpoint(path)
    best_epoch, seconds = found[OURS]["best_epoch"], found[OURS]["seconds"]
    return Progress(
        best_epoch, found["epoch"], found["global_step"], seconds, found["images_per_second"], found["kernel"]
    )


def _usable(path: Path) -> bool:
    if not path.is_file():
        return False
    if not is_intact(path.read_bytes()):
        log.warning("%s is torn or altered: it is not used, but the checkpoint before it", path)
        return False
    return True


class Savers(Checkpoint):
    """Writes ``best.ckpt`` when ``val/nll`` has improved, and ``last.ckpt`` after every epoch.

    The latter waits until the next epoch starts, or until the last one is over: only then have the loggers all
    metrics of the epoch. It holds ``metrics.csv`` as it stands, the best NLL so far, the seconds trained so far, and
    whether training is over: going on from it is as if nothing had happened.

    Args:
        folder: where the checkpoints go.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.nll = math.inf
        self.best_epoch = 0
        self._epochs = 0  # that the newest last.ckpt has behind it
        self._seconds = 0.0  # in parts of the run that ended early
        self._started: float | None = None
        self._over = False
        self._selected = False  # whether there is a best.ckpt

    @property
    def seconds(self) -> float:
        """Seconds trained, over all parts of the run."""
        return self._seconds + (0 if self._started is None else time.perf_counter() - self._started)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._started = time.perf_counter()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.callback_metrics.pop("val/nll", None)  # of an epoch before this one
        if trainer.current_epoch + 1 == trainer.max_epochs:
            trainer.check_val_every_n_epoch = 1  # the last epoch is always validated
        if trainer.current_epoch > self._epochs:
            self._save_last(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if (metric := trainer.callback_metrics.get("val/nll")) is None:
            return
        nll = float(metric)
        if nll < self.nll or not self._selected:  # asked of the disk, processes might find different answers
            self._selected = True
            self.nll, self.best_epoch = math.inf if math.isnan(nll) else nll, trainer.current_epoch
            trainer.save_checkpoint(self.folder / BEST)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._over = True
        self._save_last(trainer)

    def _save_last(self, trainer: L.Trainer) -> None:
        self._epochs = trainer.current_epoch
        trainer.save_checkpoint(self.folder / LAST)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        # To Lightning an epoch that is about to start is one to finish: it would resume at its end, and lose it.
        for counts in checkpoint["loops"]["fit_loop"]["epoch_progress"].values():
            counts["ready"] = counts["started"]
        checkpoint[OURS] = {
            "nll": self.nll,
            "best_epoch": self.best_epoch,
            "seconds": self.seconds,
            "over": self._over,
            "metrics": [_read(logger) for logger in _csv_loggers(trainer)],
        }

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        state = checkpoint[OURS]
        self.nll, self.best_epoch, self._epochs = state["nll"], state["best_epoch"], checkpoint["epoch"]
        self._seconds, self._over, self._selected = state["seconds"], state["over"], True
        _restore_all(trainer, state["metrics"])
        if self._over:  # some callback may have ended it early, and would not do so again
            trainer.fit_loop.max_epochs = checkpoint["epoch"]


def restore_metrics(trainer: L.Trainer, folder: Path) -> None:
    """Gives the loggers of a trainer the metrics that another process has trained."""
    if (folder / LAST).is_file():
        _restore_all(trainer, SealedFiles().load_checkpoint(folder / LAST)[OURS]["metrics"])


def _restore_all(trainer: L.Trainer, metrics: list[str]) -> None:
    for logger, text in zip(_csv_loggers(trainer), metrics, strict=False):
        _restore(logger, text)


def _csv_loggers(trainer: L.Trainer) -> list[CSVLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, CSVLogger)]


def _read(logger: CSVLogger) -> str:
    path = Path(logger.log_dir) / "metrics.csv"
    return path.read_bytes().decode() if path.is_file() else ""


def _restore(logger: CSVLogger, text: str) -> None:
    """Gives the logger, which starts with an empty file, the rows back that it had written."""
    if text:
        writer = logger.experiment  # made first: a new one begins by removing the file
        write_whole(Path(logger.log_dir) / "metrics.csv", text.encode())
        writer.metrics_keys = next(csv.reader(io.StringIO(text)))
