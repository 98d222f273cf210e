"""Learning-rate schedules: (optimizer, steps of the whole training) → a torch scheduler, stepped every batch."""

from __future__ import annotations

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LinearLR, LRScheduler, SequentialLR


def constant(optimizer: Optimizer, steps: int) -> LRScheduler:
    """The learning rate of the optimizer, throughout."""
    return LambdaLR(optimizer, lambda step: 1.0)


def cosine(optimizer: Optimizer, steps: int, *, final: float = 0.0, warmup: int = 0) -> LRScheduler:
    """Linearly up to lr in ``warmup`` steps, then down to ``final`` · lr along half a cosine.

    Loshchilov & Hutter, 2017, eq. 5, without restarts.
    """
    if not (isinstance(final, int | float) and 0 <= final <= 1):
        raise ValueError(f"scheduler.final is a fraction of the learning rate, 0 to 1, got {final}")
    if not (isinstance(warmup, int) and warmup >= 0):
        raise ValueError(f"scheduler.warmup is a number of steps, at least 0, got {warmup}")
    down = CosineAnnealingLR(optimizer, T_max=max(1, steps - warmup), eta_min=final * optimizer.defaults["lr"])
    if not warmup:
        return down
    return SequentialLR(optimizer, [LinearLR(optimizer, 1 / warmup, total_iters=warmup), down], [warmup])


def inverse_time(optimizer: Optimizer, steps: int, *, tau: float) -> LRScheduler:
    """lr / (1 + step / ``tau``), which meets the conditions of Robbins & Monro (1951); τ in steps."""
    if not (isinstance(tau, int | float) and tau > 0):
        raise ValueError(f"scheduler.tau, in steps, must be above 0, got {tau}")
    return LambdaLR(optimizer, lambda step: 1 / (1 + step / tau))
