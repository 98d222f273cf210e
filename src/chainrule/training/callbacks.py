"""What Lightning does not already have."""

from __future__ import annotations

import logging
import math
import warnings
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import EMAWeightAveraging, RichProgressBar
from lightning.pytorch.loggers import CSVLogger

log = logging.getLogger(__name__)


class ProgressBar(RichProgressBar):
    """Lightning's bar, without the version number that our run directories do not have."""

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        metrics: dict[str, Any] = super().get_metrics(trainer, pl_module)
        return {key: value for key, value in metrics.items() if key != "v_num"}


class EMA(EMAWeightAveraging):
    """Lightning's moving average of the weights, which can be sent to other processes before it has begun."""

    def __init__(self, decay: float, use_buffers: bool) -> None:
        super().__init__(decay=decay, use_buffers=use_buffers)
        self._arguments = decay, use_buffers

    def __reduce__(self) -> tuple[type[EMA], tuple[float, bool]]:
        return type(self), self._arguments


class EpochLines(L.Callback):
    """A line of the log after every epoch, where there is no terminal to draw a bar on."""

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            nll = trainer.callback_metrics.get("val/nll", math.nan)
            log.info("epoch %d of %s: val/nll %.3f", trainer.current_epoch + 1, trainer.max_epochs, nll)


def csv_logger(*, run_dir: Path, **about: object) -> CSVLogger:
    """``metrics.csv`` in the run directory, written after every epoch; what the run is about stands elsewhere."""
    # Lightning warns of a folder that is not empty; ours holds the configuration and the log already.
    warnings.filterwarnings("ignore", message=".*Experiment logs directory.*")
    return CSVLogger(run_dir, name="", version="", flush_logs_every_n_steps=1)
