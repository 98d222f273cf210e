"""A training as a run of Weights & Biases."""

from __future__ import annotations

import logging
import secrets
import shlex
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from chainrule.files import write_whole
from chainrule.training.login import logged_in

log = logging.getLogger(__name__)
logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # how W&B measures itself is not the user's affair

ID = "wandb_id"  # the file of a run directory that remembers which W&B run it is
STEP = "trainer/global_step"  # Lightning's name for the number of optimizer steps

INIT_PATIENCE = 10.0  # seconds that a server which answers may take to make a run
FINISH_PATIENCE = 60.0  # seconds for the last uploads, should the network have gone away meanwhile
FLUSH = 0.1  # seconds after which a row is on the disk, whatever happens to the process


class Tracker(WandbLogger):
    """A W&B run with one row an epoch, at the number of optimizer steps: what is resumed goes on there, too.

    Args:
        pictures: epochs between pictures of samples; None: only at the end.
        log_model: whether the selected checkpoint becomes an artifact.
        init: arguments of ``wandb.init``.
    """

    def __init__(self, *, pictures: int | None, log_model: bool, **init: Any) -> None:  # noqa: ANN401
        super().__init__(**init)
        self.pictures, self.sends_model = pictures, log_model
        self._open: int | None = None  # the step of the row that is not finished

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Adds to the row of a step; without a step, to the summary."""
        if step is None:
            self.experiment.summary.update(dict(metrics))
        else:
            self.experiment.log({**metrics, STEP: step}, step=step)
            self._open = step

    @rank_zero_only
    def finish_row(self) -> None:
        """Sends the row on its way. Before, it would be lost with the process."""
        if self._open is not None:
            self.experiment.log({}, step=self._open, commit=True)
            self._open = None


def wandb_logger(
    *,
    run_dir: Path,
    name: str,
    model: str,
    data: str,
    config: dict[str, Any],
    project: str,
    group: str | None,
    tags: Sequence[str],
    pictures: int | None,
    log_model: bool,
) -> Tracker:
    """A W&B run: online when the user is logged in and the server answers, offline in ``run_dir`` if not.

    Args:
        run_dir: the run directory. It remembers the id, so that what is resumed there is the same W&B run.
        name: of the run.
        model: a tag.
        data: a tag.
        config: the resolved configuration. W&B gets it nested, as it is, and shows it with dots: ``optimizer.lr``.
        project: of W&B.
        group: of W&B; None: the experiment, or the sweep that the run is part of.
        tags: more tags.
        pictures: epochs between pictures of samples; None: only at the end.
        log_model: whether the selected checkpoint becomes an artifact.
    """
    import wandb  # noqa: PLC0415 (half a second that a run without W&B need not spend)

    settings = wandb.setup(wandb.Settings(silent=True)).settings
    make = partial(
        Tracker, save_dir=run_dir, project=project, name=name, group=group or settings.run_group or _group(),
        tags=list(dict.fromkeys([model, data, *tags])), job_type="train", config=_named(config, model=model, data=data),
        pictures=pictures, log_model=log_model, settings=_settings(wandb.Settings),
    )  # fmt: skip
    if settings.mode == "disabled":
        return make(mode="disabled")
    tracker = make(mode=_mode(run_dir), id=_id(run_dir))
    try:
        _begin(tracker)
    except wandb.Error as error:
        log.warning("W&B: %s", str(error).splitlines()[0])
        wandb.teardown()  # otherwise the id would still be in use
        tracker = make(mode="offline", id=_id(run_dir))
        _begin(tracker)
    return tracker


def _settings(make: type) -> Any:  # noqa: ANN401 (wandb is imported late)
    return make(
        silent=True, console="off", x_transaction_log_flush_interval=FLUSH,
        init_timeout=INIT_PATIENCE, finish_timeout=FINISH_PATIENCE,
    )  # fmt: skip


def _named(config: dict[str, Any], **names: str) -> dict[str, Any]:
    """The configuration, with ``model.name`` and ``data.name``: what people group by."""
    return config | {key: {**config[key], "name": name} for key, name in names.items()}


def _group() -> str | None:
    """The experiment that Hydra composed, or the sweep that this is a job of."""
    if not HydraConfig.initialized():
        return None
    job = HydraConfig.get()
    if experiment := job.runtime.choices.get("experiment"):
        return str(experiment)
    return Path(job.sweep.dir).name if job.mode == RunMode.MULTIRUN else None


def _id(run_dir: Path) -> str:
    file = run_dir / ID
    if not file.is_file():
        write_whole(file, secrets.token_hex(4).encode())
    return file.read_text()


@rank_zero_only
def _begin(tracker: Tracker) -> None:
    """Makes the run at W&B, and says where it can be seen."""
    run = tracker.experiment
    run.define_metric("val/nll", summary="min", step_metric=STEP)
    if run.offline:
        parts = shlex.quote(str(Path(str(tracker.save_dir)) / "wandb")) + "/offline-run-*"
        log.info("W&B: offline (no login, no network, or begun so); upload later: wandb sync %s", parts)
    else:
        log.info("W&B: %s", run.url)


def _mode(run_dir: Path) -> str:
    """``online`` or ``offline``. A run whose first part is still to be uploaded stays offline: the order matters."""
    waiting = [part for part in run_dir.glob("wandb/offline-run-*") if not any(part.glob("*.synced"))]
    return "online" if not waiting and logged_in() else "offline"
