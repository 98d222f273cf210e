"""A training as a run of Weights & Biases: its metrics, pictures while it trains, and its result."""

from __future__ import annotations

import inspect
import logging
import os
import secrets
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import lightning as L
import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer

from chainrule.density import AutoregressiveDensity, BinaryDensity
from chainrule.evaluation.images import as_bytes, colored, conditionals, gray, grid, heat_map
from chainrule.files import write_whole
from chainrule.runs.directory import RunDir
from chainrule.runs.record import Record
from chainrule.runs.settings import NEUTRAL, without
from chainrule.validate import choice

if TYPE_CHECKING:
    from wandb import Table

# wandb is imported where it is used: half a second that a run without W&B need not spend.

log = logging.getLogger(__name__)
logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # W&B's measurements of itself

ID = "wandb_id"  # the file of a run directory that remembers which W&B run it is
STEP = "trainer/global_step"  # Lightning's name for the number of optimizer steps
LABEL = 100  # characters in the name of a run without its seed
FLUSH = 0.1  # seconds after which a row is on the disk, whatever happens to the process
FINISH = 60  # seconds for the last uploads, should the network have gone away meanwhile
OURS = {"dir", "id", "config", "settings", "reinit", "resume"}  # arguments of wandb.init that are not the user's
SHOWN = 16  # samples in a picture
EXTREMES = 8  # test images at either end of the table


def logged_in() -> bool:
    """Whether this machine has the user's W&B key; the network is not asked.

    Raises:
        ValueError: what stands there cannot be a key.
    """
    import wandb  # noqa: PLC0415

    if wandb.setup(wandb.Settings(silent=True)).settings.mode in ("offline", "dryrun", "disabled"):
        return False
    try:
        return bool(wandb.login(prompt=False, verify=False))
    except wandb.Error as error:
        raise ValueError(f"{error} Correct it, or use logger=csv") from error


class Tracker(WandbLogger):
    """A W&B run: online if the user is logged in and the server answers, else offline in ``run_dir``.

    It has one row an epoch, at the number of optimizer steps: a resumed run continues there. Its name is the model
    with the settings of the command line (of a sweep, those that vary) and the seed, its group the experiment or the
    sweep; what ``WANDB_NAME``, ``WANDB_RUN_GROUP``, ``WANDB_JOB_TYPE`` and so on say goes before that, and what
    ``init`` says before these.

    Args:
        run_dir: the run directory. It remembers the id: a run that is resumed there is the same W&B run.
        model: a tag.
        data: a tag.
        seed: of the run.
        config: the resolved configuration, which W&B gets nested, and shows with dots: ``optimizer.lr``.
        tags: more tags, besides ``config["tags"]`` and ``WANDB_TAGS``.
        mode: online, offline or disabled; None: ``WANDB_MODE``, else online if possible.
        init_timeout: seconds that the server may take to make a run.
        pictures: epochs between pictures of samples; None: only at the end.
        watch: log histograms of weights and gradients once an epoch.
        log_model: send the selected checkpoint as an artifact.
        log_nll: send the NLL of every test image as an artifact.
        **init: more arguments of ``wandb.init``.

    Raises:
        ValueError: W&B does not know an argument, or its value cannot be right.
    """

    def __init__(
        self,
        *,
        run_dir: Path,
        model: str,
        data: str,
        seed: int,
        config: dict[str, Any],
        tags: Sequence[str] = (),
        mode: str | None = None,
        init_timeout: float = 2.0,
        pictures: int | None = None,
        watch: bool = False,
        log_model: bool = False,
        log_nll: bool = False,
        **init: Any,  # noqa: ANN401
    ) -> None:
        import wandb  # noqa: PLC0415

        with suppress(RuntimeError):  # its service looks nowhere else
            os.environ.setdefault("HOME", str(Path.home()))
        known = inspect.signature(wandb.init).parameters.keys() - OURS
        if unknown := sorted(init.keys() - known):
            raise ValueError(f"logger.wandb.{unknown[0]}: wandb.init knows {', '.join(sorted(known))}")
        self.pictures, self.histograms, self.sends_model, self.sends_nll = pictures, watch, log_model, log_nll
        self._open: int | None = None  # the step of the row that is not finished
        choice("logger.wandb.mode", mode, (None, "online", "offline", "disabled"))
        named = {
            "model": config["model"] | {"name": model},
            "data": config["data"] | {"name": data},
            "settings": _label(model),
        }
        try:
            user = wandb.setup(wandb.Settings(silent=True)).settings
            wanted = mode or user.mode
            online = wanted not in ("offline", "dryrun", "disabled") and not _waiting(run_dir) and logged_in()
            own = {
                "project": None,
                "name": user.run_name or f"{_label(model, varying=True)}-s{seed}",
                "group": user.run_group or _group(),
                "job_type": user.run_job_type or "train",
                "tags": list(dict.fromkeys([model, data, *(config.get("tags") or ()), *(user.run_tags or ()), *tags])),
                "config": config | named,
                "mode": "online" if online else "disabled" if wanted == "disabled" else "offline",
                "id": None if wanted == "disabled" else user.run_id or _id(run_dir),
                "settings": wandb.Settings(
                    silent=True, console="wrap", x_transaction_log_flush_interval=FLUSH, init_timeout=init_timeout,
                    finish_timeout=FINISH,
                ),
            }  # fmt: skip
            super().__init__(save_dir=run_dir, **own | {key: value for key, value in init.items() if value is not None})
            try:
                self._begin()
            except wandb.errors.CommError as error:
                log.warning("W&B: %s", str(error).splitlines()[0])
                wandb.teardown()  # otherwise the id would still be in use
                self._wandb_init["mode"] = "offline"
                self._begin()
        except (TypeError, ValueError, wandb.errors.UsageError) as error:
            reason = " ".join(str(error).partition("For further")[0].split())
            raise ValueError(f"logger.wandb, or WANDB_…: {reason}") from error

    @rank_zero_only
    def _begin(self) -> None:
        """Makes the run at W&B, and says where it can be seen."""
        self.experiment.define_metric("val/nll", summary="min", step_metric=STEP)
        if self.experiment.offline:
            parts = shlex.quote(str(Path(str(self.save_dir)) / "wandb")) + "/offline-run-*"
            log.info("W&B: offline (no login, no network, or begun so); upload later: wandb sync %s", parts)
        elif not self.experiment.disabled:
            log.info("W&B: %s", self.experiment.url)

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
        """Sends the row. Before, it would be lost with the process."""
        if self._open is not None:
            self.experiment.log({}, step=self._open, commit=True)
            self._open = None


def _label(model: str, *, varying: bool = False) -> str:
    """The model and the settings of the command line, in a sweep perhaps only those that vary: ``nade-hidden=16``."""
    if not HydraConfig.initialized():
        return model
    job = HydraConfig.get()
    given = dict(word.lstrip("+~").partition("=")[::2] for word in job.overrides.task)
    same = job.job.config.override_dirname.exclude_keys if varying else ()
    settings = without((*NEUTRAL, *same, "seed", "model"), given)
    return "-".join([model, *(f"{key.rpartition('.')[2]}={value}" for key, value in settings.items())])[:LABEL]


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


def _waiting(run_dir: Path) -> bool:
    """Whether the run's first part is still to be uploaded: the order matters, so what follows is offline, too."""
    return any(not any(part.glob("*.synced")) for part in run_dir.glob("wandb/offline-run-*"))


# ---- while it trains ------------------------------------------------------------------------------------


class WandbCallback(L.Callback):
    """Gives a :class:`Tracker` what Lightning does not: samples, the norm of the gradient, histograms.

    It stands before the callback that averages weights, and so samples from the averaged ones. It keeps nothing, and
    draws from a generator of its own: training is the same without it. Where there is no tracker it does nothing.
    """

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if (tracker := _tracker(trainer)) and tracker.pictures:
            _samples(pl_module, 1)  # compiled here, before the training's time is taken

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if tracker := _tracker(trainer):
            tracker.finish_row()

    on_train_end = on_train_epoch_start

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        if trainer.is_last_batch and (tracker := _tracker(trainer)):  # once an epoch: somebody waits for the number
            parameters = [(name, p, p.grad) for name, p in pl_module.named_parameters() if p.grad is not None]
            norm = torch.stack([gradient.norm() for _, _, gradient in parameters]).norm()
            row: dict[str, Any] = {"train/grad_norm": float(norm)}
            if tracker.histograms:
                row |= {f"weights/{name}": _histogram(weight) for name, weight, _ in parameters}
                row |= {f"gradients/{name}": _histogram(gradient) for name, _, gradient in parameters}
            tracker.log_metrics(row, trainer.global_step)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        tracker, epoch = _tracker(trainer), trainer.current_epoch
        if trainer.state.fn != "fit" or not tracker or not tracker.pictures or epoch % tracker.pictures:
            return
        if epoch + 1 != trainer.max_epochs:  # the result brings pictures of its own
            picture = _image(as_bytes(_samples(pl_module, SHOWN)), f"epoch {epoch + 1}")
            tracker.log_metrics({"pictures/samples": picture}, trainer.global_step - 1)


def _samples(module: L.LightningModule, n: int) -> Tensor:
    """A picture of n samples, always from the same uniforms."""
    density = cast(BinaryDensity, module.density)
    return grid(density.sample(n, torch.Generator().manual_seed(0)).cpu(), density.shape)


def _tracker(trainer: L.Trainer) -> Tracker | None:
    """Where the one process that logs sends things to."""
    return next((t for t in trainer.loggers if isinstance(t, Tracker)), None) if trainer.is_global_zero else None


def _histogram(values: Tensor) -> Any:  # noqa: ANN401 (wandb is imported late)
    from wandb import Histogram  # noqa: PLC0415

    return Histogram(np_histogram=np.histogram(values.detach().float().cpu().numpy(), bins=64))


def _image(picture: np.ndarray | Path, caption: str | None = None) -> Any:  # noqa: ANN401
    from wandb import Image  # noqa: PLC0415

    return Image(str(picture) if isinstance(picture, Path) else picture, caption=caption)


# ---- the result -----------------------------------------------------------------------------------------


def conclude(
    tracker: Tracker,
    run: RunDir,
    record: Record,
    *,
    steps: int,
    density: BinaryDensity,
    images: Tensor,
    nll: np.ndarray,
    pixels: np.ndarray | None = None,
) -> None:
    """Sends numbers into the summary, what was computed with what, pictures, tables, and the artifacts asked for.

    What W&B cannot take is left out, with a warning: the result does not depend on it.

    Args:
        tracker: where to.
        run: the run directory.
        record: of the run.
        steps: of the optimizer, in the whole of the training.
        density: the selected model.
        images: the test images, (N, n) bits.
        nll: of each of them in nats, (N,).
        pixels: nats of each pixel, mean over the test images, (n,); None: the density is not autoregressive.
    """
    try:
        tracker.log_metrics(_summary(record))
        sha256 = {"data": record.data.sha256, "code": record.code_sha256, "checkpoint": record.checkpoint_sha256}
        origin = {"sha256": sha256, "commit": record.git.commit, "dirty": record.git.dirty}
        tracker.experiment.config.update(origin, allow_val_change=True)
        # Logged, too: what a sweep of W&B goes by has to be.
        row = {"val/best_nll": record.nll["valid"].mean, "pictures/samples": _image(run.samples, "the selected model")}
        tracker.log_metrics(row, steps)
        if isinstance(density, AutoregressiveDensity) and pixels is not None:
            tracker.log_metrics(_pictures(run, density, images, pixels), steps)
        tracker.log_metrics({"test/extremes": _extremes(density, images, nll), "samples": _row(run, record)}, steps)
        if tracker.sends_model:
            _send(tracker, "model", [run.best, run.config], record)
        if tracker.sends_nll:
            _send(tracker, "nll", [run.nll_test], record)
    except Exception as error:  # whatever comes out of W&B: it does not document what does
        log.warning("W&B: %s", error)
    tracker.finish_row()


def _summary(record: Record) -> dict[str, Any]:
    return {
        "test/nll": record.test.mean,
        "test/nll_stderr": record.test.stderr,
        "val/nll": {"min": record.nll["valid"].mean},  # the best epoch may have been before a resumption
        "parameters": record.parameters.count,
        "parameters_effective": record.parameters.effective,
        **record.model_dump(include={"seconds", "epochs", "best_epoch", "bits_per_pixel", "kernel"}),
    }


def _pictures(run: RunDir, density: AutoregressiveDensity, images: Tensor, pixels: np.ndarray) -> dict[str, Any]:
    (chances,), (nats,) = _conditionals(density, images[:1])
    mean = f"mean over the test images: {pixels.sum():.2f} nats in all"
    first = f"test image 0: −log p(x) = {nats.sum():.2f} nats"
    return {
        "pictures/completions": _image(run.completions, "the original, what the model was shown, its completions"),
        "pictures/nats_per_pixel": _image(heat_map(torch.from_numpy(pixels), density.shape, mean)),
        "pictures/conditionals": _image(conditionals(images[0], chances, nats, density.shape, first)),
    }


def _row(run: RunDir, record: Record) -> Table:
    """A row of samples; a dashboard puts those of all runs into one table."""
    from wandb import Table  # noqa: PLC0415

    row = [run.path.name, record.model, record.seed, record.test.mean, _image(run.samples)]
    return Table(columns=["run", "model", "seed", "test NLL", "samples"], data=[row])


def _extremes(density: BinaryDensity, images: Tensor, nll: np.ndarray) -> Table:
    """The test images that cost most and least; pixel by pixel, if the density has an order."""
    from wandb import Table  # noqa: PLC0415

    ranked = np.argsort(-nll, kind="stable")
    worst, best = ranked[:EXTREMES].tolist(), ranked[::-1][:EXTREMES].tolist()
    shown, shape = images[[*worst, *best]], density.shape
    columns, views = ["x"], [[_image(gray(x, shape))] for x in shown]
    if isinstance(density, AutoregressiveDensity):
        columns += ["p(pixel on)", "nats by pixel"]
        chances, nats = _conditionals(density, shown)
        for row, chance, cost in zip(views, chances, nats, strict=True):
            row.extend(map(_image, (gray(chance, shape), colored(cost, shape, float(nats.max())))))
    table = Table(columns=["kind", "test image", "nats", *columns])
    kinds = ["worst"] * len(worst) + ["best"] * len(best)
    for kind, i, row in zip(kinds, [*worst, *best], views, strict=True):
        table.add_data(kind, i, float(nll[i]), *row)
    return table


@torch.inference_mode()
def _conditionals(density: AutoregressiveDensity, images: Tensor) -> tuple[Tensor, Tensor]:
    """p(pixel on | those before it), and −log p(pixel as it is | …) in nats; both (B, n) float64."""
    logits = density(images.to(density.device)).double().cpu()
    return torch.sigmoid(logits), F.binary_cross_entropy_with_logits(logits, images.double(), reduction="none")


def _send(tracker: Tracker, kind: str, files: Sequence[Path], record: Record) -> None:
    from wandb import Artifact  # noqa: PLC0415

    about = {"val/nll": record.nll["valid"].mean, "checkpoint_sha256": record.checkpoint_sha256}
    artifact = Artifact(f"{kind}-{tracker.version}", type=kind, metadata=about)
    for file in files:
        artifact.add_file(str(file))
    tracker.experiment.log_artifact(artifact, aliases=["best"])
