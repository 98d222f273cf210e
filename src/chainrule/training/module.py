"""The one LightningModule, for every density: maximum likelihood by mini-batch gradients.

Minimizing the mean NLL of the training images is minimizing KL(p_data ‖ p_θ), up to the entropy of the data.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MeanMetric

from chainrule.density import BinaryDensity
from chainrule.training.ddp import sum_over_processes, weight


class DensityModule(L.LightningModule):
    """Trains a density; reports ``train/nll`` and ``val/nll`` in nats per image.

    Args:
        density: the model.
        optimizer: parameters → optimizer.
        scheduler: (optimizer, number of steps) → scheduler, stepped after every batch.
        train_size: training images N; the loss is −(Σ log p(x) / B + log_prior / N).
        seed: of what is random in training. What an epoch draws depends on it and on the epoch, on nothing else.
    """

    def __init__(
        self,
        density: BinaryDensity,
        *,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[[Optimizer, int], LRScheduler],
        train_size: int,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.density = density
        self.make_optimizer = optimizer
        self.make_scheduler = scheduler
        self.train_size = train_size
        self.seed = seed
        # float64 sums and counts, divided once: a short last batch weighs what it is worth.
        # torchmetrics would otherwise leave images with a NaN out of the mean.
        self.val_nll = MeanMetric(nan_strategy="disable").set_dtype(torch.float64)
        self.images_per_second = 0.0
        self.kernel: str | None = None

    def on_fit_start(self) -> None:
        # Asked here, where the parameters are on the device that they are trained on.
        self.kernel = self.density.backend

    def optimizer_and_scheduler(self, steps: int) -> tuple[Optimizer, LRScheduler]:
        """Both as the configuration asks for, for so many steps.

        Raises:
            ValueError: torch does not take what it was given.
        """
        parameters = list(self.density.parameters())
        groups: list[dict[str, Any]] = [
            {"params": [p for p in parameters if p.ndim >= 2]},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},  # biases do not decay
        ]
        try:
            optimizer = self.make_optimizer([group for group in groups if group["params"]])
            return optimizer, self.make_scheduler(optimizer, steps)
        except Exception as error:  # torch checks little before it computes with what it was given
            values = {**getattr(self.make_optimizer, "keywords", {}), **getattr(self.make_scheduler, "keywords", {})}
            given = ", ".join(f"{key}={value}" for key, value in values.items())
            raise ValueError(f"optimizer or scheduler: {error}; given {given}. Compare with conf/optimizer/") from error

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer, scheduler = self.optimizer_and_scheduler(int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_epoch_start(self) -> None:
        torch.manual_seed(_mixed(self.seed, self.current_epoch, self.global_rank))
        self._started, self._images = time.perf_counter(), 0
        self._nats: list[Tensor] = []

    def training_step(self, x: Tensor, batch_idx: int) -> Tensor:
        nll = self.density.loss(x).mean()
        # Nobody reads the loss of a single step: keep it, and look at many at once.
        self._images += len(x)
        self._nats.append(nll.detach() * len(x))
        return nll * weight(len(x), x.device) - self.density.log_prior() / self.train_size

    def on_train_epoch_end(self) -> None:
        seconds = time.perf_counter() - self._started
        nats = torch.stack(self._nats).double().sum()
        nats, images = sum_over_processes(torch.stack([nats, nats.new_tensor(self._images)]))
        self.images_per_second = float(images) / seconds
        mean = nats / images
        rate = cast(Optimizer, self.optimizers()).param_groups[0]["lr"]
        self.log_dict(
            {"train/nll": mean, "train/images_per_second": self.images_per_second, "lr": rate}, sync_dist=True
        )

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clips in bfloat16 with a fused optimizer, too: Lightning refuses that, for the sake of float16's scaler."""
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        if gradient_clip_val and gradient_clip_algorithm in (None, "norm") and not scaled:
            torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["image_shape"] = list(self.density.shape)
        checkpoint["images_per_second"], checkpoint["kernel"] = self.images_per_second, self.kernel

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.images_per_second = checkpoint["images_per_second"]

    def validation_step(self, x: Tensor, batch_idx: int) -> None:
        # Updated here and not at the epoch's end: Lightning's EMA weights are in place only during the steps.
        self.val_nll.update(-self.density.log_prob(x).double())
        self.log("val/nll", self.val_nll, prog_bar=True, on_epoch=True, on_step=False)


def _mixed(*words: int) -> int:
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0])
