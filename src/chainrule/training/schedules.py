"""Learning-rate schedules: (optimizer, steps of the whole training) → a torch scheduler, stepped every batch."""

from __future__ import annotations

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler


def constant(optimizer: Optimizer, steps: int) -> LRScheduler:
    """The learning rate of the optimizer, throughout."""
    return LambdaLR(optimizer, lambda step: 1.0)


def cosine(optimizer: Optimizer, steps: int, *, final: float = 0.0) -> LRScheduler:
    """From lr down to ``final`` · lr along half a cosine (Loshchilov & Hutter, 2017, eq. 5, without restarts)."""
    if not (isinstance(final, int | float) and 0 <= final <= 1):
        raise ValueError(f"scheduler.final is a fraction of the learning rate, 0 to 1, got {final}")
    return CosineAnnealingLR(optimizer, T_max=max(1, steps), eta_min=final * optimizer.defaults["lr"])


def inverse_time(optimizer: Optimizer, steps: int, *, tau: float) -> LRScheduler:
    """lr / (1 + step / ``tau``), which meets the conditions of Robbins & Monro (1951); τ in steps."""
    if not (isinstance(tau, int | float) and tau > 0):
        raise ValueError(f"scheduler.tau, in steps, must be above 0, got {tau}")
    return LambdaLR(optimizer, lambda step: 1 / (1 + step / tau))
