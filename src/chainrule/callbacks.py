"""What Lightning and W&B do not already have."""

from __future__ import annotations

import logging
import socket
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as Timeout
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lightning.pytorch.loggers import WandbLogger

log = logging.getLogger(__name__)

PATIENCE = 0.8  # seconds that finding out about the network may cost


def wandb_logger(
    *, run_dir: Path, name: str, config: dict[str, Any], project: str, group: str | None, tags: list[str]
) -> WandbLogger:
    """A W&B run: online when the user is logged in and the server answers, offline in ``run_dir`` if not."""
    mode = "online" if _logged_in() else "offline"
    if mode == "offline":
        log.info("W&B is offline (no login, or no network). Upload this run later with: wandb sync %s", run_dir)
    logger = WandbLogger(save_dir=run_dir, project=project, name=name, group=group, tags=tags, config=config, mode=mode)
    logger.experiment.define_metric("val/nll", summary="min")
    return logger


def _logged_in() -> bool:
    import wandb  # noqa: PLC0415 (half a second that a run without W&B need not spend)

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
