"""What a run shows at W&B besides its metrics: pictures while it trains, and its result."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer

from chainrule.density import AutoregressiveDensity, BinaryDensity
from chainrule.evaluation.images import as_bytes, colored, conditionals, gray, grid, heat_map
from chainrule.runs.directory import RunDir
from chainrule.runs.record import Record
from chainrule.training.tracker import Tracker

if TYPE_CHECKING:
    from wandb import Table

log = logging.getLogger(__name__)

SHOWN = 16  # samples in a picture
EXTREMES = 8  # test images at either end of the table


class Dashboard(L.Callback):
    """Gives a :class:`Tracker` what Lightning does not: pictures of samples, and the norm of the gradient.

    It stands before the callback that averages weights, and so samples from the averaged ones. It keeps nothing, and
    draws from a generator of its own: training is the same without it. Where there is no tracker it does nothing.
    """

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if (tracker := _tracker(trainer)) and tracker.pictures:
            _samples(pl_module, 1)  # compiled here, before the training's time is taken

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if tracker := _tracker(trainer):
            tracker.finish_row()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if tracker := _tracker(trainer):
            tracker.finish_row()

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        if trainer.is_last_batch and (tracker := _tracker(trainer)):  # once an epoch: somebody waits for the number
            norms = [p.grad.norm() for p in pl_module.parameters() if p.grad is not None]
            tracker.log_metrics({"train/grad_norm": float(torch.stack(norms).norm())}, trainer.global_step)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit" and (tracker := _tracker(trainer)) and _is_due(trainer, tracker.pictures):
            picture = _image(as_bytes(_samples(pl_module, SHOWN)), f"epoch {trainer.current_epoch + 1}")
            tracker.log_metrics({"pictures/samples": picture}, trainer.global_step - 1)


def _samples(module: L.LightningModule, n: int) -> Tensor:
    """A picture of n samples, always from the same uniforms."""
    density = cast(BinaryDensity, module.density)
    return grid(density.sample(n, torch.Generator().manual_seed(0)).cpu(), density.shape)


def _tracker(trainer: L.Trainer) -> Tracker | None:
    """Where the one process that logs sends things to."""
    if not trainer.is_global_zero:
        return None
    return next((logger for logger in trainer.loggers if isinstance(logger, Tracker)), None)


def _is_due(trainer: L.Trainer, every: int | None) -> bool:
    """Every so many epochs, but not in the last one: the result brings pictures of its own."""
    epoch = trainer.current_epoch
    return every is not None and epoch % every == 0 and epoch + 1 != trainer.max_epochs


# ---- the result ---------------------------------------------------------------------------------------


def conclude(
    tracker: Tracker,
    run: RunDir,
    record: Record,
    *,
    steps: int,
    density: AutoregressiveDensity,
    images: Tensor,
    nll: np.ndarray,
    pixels: np.ndarray,
) -> None:
    """Sends numbers into the summary, pictures, and a table of the worst and the best test images.

    What W&B cannot take is left out, with a warning: the result does not depend on it.

    Args:
        tracker: where to.
        run: the run directory; its pictures and perhaps its checkpoint go along.
        record: as in ``result.json``.
        steps: of the optimizer, in the whole of the training.
        density: the selected model.
        images: the test images, (N, n) bits.
        nll: of each of them in nats, (N,).
        pixels: nats of each pixel, mean over the test images, (n,).
    """
    try:
        tracker.log_metrics(_summary(record))
        tracker.log_metrics(_pictures(run, density, images, pixels), steps)
        tracker.log_metrics({"test/extremes": _extremes(density, images, nll)}, steps)
        if tracker.sends_model:
            _send_model(tracker, run, record)
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
        "pictures/samples": _image(run.samples, "the selected model"),
        "pictures/completions": _image(run.completions, "the original, what the model was shown, its completions"),
        "pictures/nats_per_pixel": _image(heat_map(torch.from_numpy(pixels), density.shape, mean)),
        "pictures/conditionals": _image(conditionals(images[0], chances, nats, density.shape, first)),
    }


def _extremes(density: AutoregressiveDensity, images: Tensor, nll: np.ndarray) -> Table:
    from wandb import Table  # noqa: PLC0415

    ranked = np.argsort(-nll, kind="stable")
    chosen = np.concatenate([ranked[:EXTREMES], ranked[::-1][:EXTREMES]])
    kinds = ["worst"] * len(ranked[:EXTREMES]) + ["best"] * len(ranked[:EXTREMES])
    shown = images[torch.from_numpy(chosen)]
    chances, nats = _conditionals(density, shown)
    table = Table(columns=["kind", "test image", "nats", "x", "p(pixel on)", "nats by pixel"])
    for kind, i, x, chance, cost in zip(kinds, chosen, shown, chances, nats, strict=True):
        views = (gray(x, density.shape), gray(chance, density.shape), colored(cost, density.shape, float(nats.max())))
        table.add_data(kind, int(i), float(nll[i]), *map(_image, views))
    return table


@torch.inference_mode()
def _conditionals(density: AutoregressiveDensity, images: Tensor) -> tuple[Tensor, Tensor]:
    """p(pixel on | those before it), and −log p(pixel as it is | …) in nats; both (B, n) float64."""
    logits = density(images.to(density.device)).double().cpu()
    return torch.sigmoid(logits), F.binary_cross_entropy_with_logits(logits, images.double(), reduction="none")


def _image(picture: np.ndarray | Path, caption: str | None = None) -> Any:  # noqa: ANN401 (wandb is imported late)
    from wandb import Image  # noqa: PLC0415

    return Image(str(picture) if isinstance(picture, Path) else picture, caption=caption)


def _send_model(tracker: Tracker, run: RunDir, record: Record) -> None:
    from wandb import Artifact  # noqa: PLC0415

    about = {"val/nll": record.nll["valid"].mean, "checkpoint_sha256": record.checkpoint_sha256}
    artifact = Artifact(f"model-{tracker.version}", type="model", metadata=about)
    artifact.add_file(str(run.best))
    artifact.add_file(str(run.config))
    tracker.experiment.log_artifact(artifact, aliases=["best"])
