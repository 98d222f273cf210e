"""What Lightning and W&B do not already have."""

from __future__ import annotations

import logging
import math
import socket
import warnings
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as Timeout
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import CSVLogger, WandbLogger

log = logging.getLogger(__name__)

PATIENCE = 0.8  # seconds that finding out about the network may cost


class ProgressBar(RichProgressBar):
    """Lightning's bar, without the version number that our run directories do not have."""

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        metrics: dict[str, Any] = super().get_metrics(trainer, pl_module)
        return {key: value for key, value in metrics.items() if key != "v_num"}


class EpochLines(L.Callback):
    """A line of the log after every epoch, where there is no terminal to draw a bar on."""

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            nll = trainer.callback_metrics.get("val/nll", math.nan)
            log.info("epoch %d of %s: val/nll %.3f", trainer.current_epoch + 1, trainer.max_epochs, nll)


def csv_logger(*, run_dir: Path, name: str, config: dict[str, Any]) -> CSVLogger:
    """``metrics.csv`` in the run directory, written after every epoch; ``name`` and ``config`` stand elsewhere."""
    # Lightning warns of a folder that is not empty; ours holds the configuration and the log already.
    warnings.filterwarnings("ignore", message=".*Experiment logs directory.*")
    return CSVLogger(run_dir, name="", version="", flush_logs_every_n_steps=1)


def wandb_logger(
    *, run_dir: Path, name: str, config: dict[str, Any], project: str, group: str | None, tags: list[str]
) -> WandbLogger:
    """A W&B run: online when the user is logged in and the server answers, offline in ``run_dir`` if not."""
    import wandb  # noqa: PLC0415 (half a second that a run without W&B need not spend)

    wandb.setup(wandb.Settings(silent=True))
    mode = "online" if _logged_in(wandb) else "offline"
    logger = WandbLogger(
        save_dir=run_dir,
        project=project,
        name=name,
        group=group,
        tags=tags,
        config=config,
        mode=mode,
        settings=wandb.Settings(silent=True, console="off"),
    )
    run = logger.experiment
    run.define_metric("val/nll", summary="min")
    if mode == "online":
        log.info("W&B: %s", run.url)
    else:
        log.info("W&B: offline (no login, or no network); upload later: wandb sync %s", Path(run.dir).parent)
    return logger


def _logged_in(wandb: ModuleType) -> bool:
    settings = wandb.setup().settings
    if settings.mode in ("offline", "dryrun", "disabled"):
        return False
    # A login asks the server, and gives up only after ten seconds: first see that there is one.
    return _reachable(settings.base_url) and bool(wandb.login(prompt=False))


def _reachable(url: str) -> bool:
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    pool = ThreadPoolExecutor(1)  # a thread, since looking up a name knows no time limit
    try:
        pool.submit(socket.create_connection, (parts.hostname, port), PATIENCE).result(PATIENCE).close()
    except (OSError, Timeout):
        return False
    finally:
        pool.shutdown(wait=False)
    return True
