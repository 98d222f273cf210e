"""What Lightning does not already have."""

from __future__ import annotations

import logging
import math
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, RichProgressBar
from torch import Tensor
from torch.optim import Optimizer

log = logging.getLogger(__name__)

CHECK_EVERY = 50  # steps after which losses and gradients are looked at: looking waits for the device


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
            nll = trainer.callback_metrics.get("val/nll")
            said = "not validated" if nll is None else f"val/nll {nll:.3f}"
            log.info("epoch %d of %s: %s", trainer.current_epoch + 1, trainer.max_epochs, said)


class StopOnNonFinite(L.Callback):
    """Stops a run whose loss, gradient or validation NLL is not finite, before the epoch's checkpoints are written.

    Raises:
        ValueError: the message names the step, the learning rate and the cure.
    """

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._first, self._step, self._rates = trainer.global_step, 0, dict[int, float]()
        self._seen: list[tuple[int, str, Tensor]] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        self._rates[self._step] = optimizer.param_groups[0]["lr"]
        if getattr(trainer.precision_plugin, "scaler", None) is None:  # a scaler lives with infinities
            # A sum is finite only when all of its terms are: one pass, whose result nobody waits for.
            sums = [p.grad.sum() for p in pl_module.parameters() if p.grad is not None]
            self._seen.append((self._step, "training gradient", torch.stack(sums).sum()))

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,  # noqa: ANN401 (Lightning's)
        batch: Tensor,
        batch_idx: int,
    ) -> None:
        self._seen.append((self._step, "training NLL", outputs["loss"]))
        self._step += 1
        if self._step % CHECK_EVERY == 0:
            self._check(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if (nll := trainer.callback_metrics.get("val/nll")) is not None:
            # The last step of an epoch may be the one that ruins the weights: only validation sees that in time.
            self._seen.append((self._step - 1, "validation NLL", nll))
        self._check(trainer)

    def _check(self, trainer: L.Trainer) -> None:
        finite = torch.stack([value.double() for *_, value in self._seen]).isfinite().tolist() if self._seen else []
        bad = [(step, what) for (step, what, _), good in zip(self._seen, finite, strict=True) if not good]
        self._seen.clear()
        if bad:
            step, what = min(bad, key=lambda found: (found[0], found[1] != "training NLL"))
            raise ValueError(
                f"the {what} is not finite at step {self._first + step + 1}, in epoch {trainer.current_epoch}, with a "
                f"learning rate of {self._rates.get(step, math.nan):.3g}. Lower optimizer.lr, or set "
                "trainer.gradient_clip_val=1; the checkpoints that are there are from before"
            )
